"""Batches loaded by worker processes: the same ones, also when workers die, and memory that is given back."""

import multiprocessing
import os
import pickle
import re
import signal

import numpy as np
import pytest

from mixer_jax.data import lending, loading, segments
from mixer_jax.errors import InputError, RetryError
from tests.data.batches import assert_same, eval_batches, numbered, train_batches
from tests.marks import long


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loading_is_the_same_with_any_number_of_workers(num_workers):
  batches = pickle.loads(pickle.dumps(train_batches(total_steps=9)))
  with loading.iterate(batches, start=4, num_workers=num_workers) as loaded:
    got = list(loaded)
  assert len(got) == 5
  for step, batch in zip(range(4, 9), got, strict=True):
    assert_same(batch, batches[step])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_record_stops_and_is_named(num_workers):
  batches = eval_batches(numbered(20, {13: b"\x89PNG nonsense"}), 10)
  with (
    loading.iterate(batches, num_workers=num_workers) as loaded,
    pytest.raises(InputError, match=r"bad record 13 of numbered train: .*on_bad_record=skip"),
  ):
    list(loaded)


def test_memory_is_lent_to_arrays_of_its_size_and_removed_after_a_worker_that_died_making_it():
  borrower = lending.Borrower()
  large, small = 1 << 20, 1 << 12

  class Ones:
    def load(self, size, empty):
      array = empty((size,), np.uint8)
      array[:] = 1
      return {"x": array}

  lender = lending.Lender(Ones(), borrower.name)

  def lent(size):
    return lender[size]["x"]

  def copied(*several):
    for one in several:
      assert borrower.copied({"x": one})["x"].all()

  first, second = lent(large), lent(small)
  copied(first, second)
  assert lent(small).segment == second.segment
  (segments.PLACE / f"{borrower.name}-0").touch()
  (segments.PLACE / first.segment).unlink()
  borrower.close()
  assert not [*segments.PLACE.glob(f"{borrower.name}-*")]


@pytest.mark.parametrize("number", [signal.SIGKILL, long(signal.SIGBUS), long(signal.SIGSTOP)])
def test_lost_workers_start_again_with_the_same_batches(monkeypatch, capfd, number):
  """Killed as without memory, or with a full /dev/shm; or frozen."""
  batches = train_batches(total_steps=20)
  with loading.iterate(batches, num_workers=1) as loaded:
    got = [next(loaded)]
    monkeypatch.setattr(loading, "SAY_SECONDS", 1.0)
    monkeypatch.setattr(loading, "LIMIT_SECONDS", 20.0)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid or 0, number)
    got += loaded
  assert len(got) == 20
  for step, batch in enumerate(got):
    assert_same(batch, batches[step])
  said = capfd.readouterr().err
  assert re.search(r"exit code -\d+.* from batch \d+\..*/dev/shm.*num_workers", said), said
  assert number != signal.SIGSTOP or "waiting for batch" in said


@pytest.mark.campaign
def test_workers_that_are_always_lost_end_the_run(monkeypatch):
  batches = train_batches(total_steps=20)
  monkeypatch.setattr(loading, "_init_worker", die)
  with (
    pytest.raises(RetryError, match=r"exit code 9\), 3 times at batch 0"),
    loading.iterate(batches, num_workers=1) as loaded,
  ):
    next(loaded)


def die(mark, index, count):
  """What a worker does that the system ends at once."""
  os._exit(9)
