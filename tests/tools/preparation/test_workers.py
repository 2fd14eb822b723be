"""Worker processes that hang, die or fail: an error in bounded time, and nobody left behind."""

import multiprocessing
import os
import signal
import time

import pytest

from mixer_jax.errors import InputError
from mixer_jax.tools.preparation import shards, workers
from tests.tools.preparation import preparation_sets as sets


def hang(_):
  time.sleep(600)


def die(_):
  os.kill(os.getpid(), signal.SIGKILL)


def fail(_):
  raise InputError("as said")


@pytest.mark.parametrize(
  ("examples", "message"),
  [
    (hang, "no image was finished in 4 s, of a, b: the storage does not answer"),
    (die, "a worker process died"),
    (fail, "as said"),
  ],
)
def test_a_worker_that_hangs_dies_or_fails_is_an_error(tmp_path, monkeypatch, examples, message):
  monkeypatch.setattr(workers, "PATIENCE_SECS", 4.0 if examples is hang else 60.0)
  sets.folder(tmp_path / "in", {"x": 1})
  progress = workers.Progress(sets.plan(tmp_path / "in"), [], print)
  left = (
    shards.Shard(file=name, split="train", index=i, examples=examples)
    for i, name in enumerate("abc")
  )
  with pytest.raises(InputError, match=message):
    workers.write(left, tmp_path, True, 2, progress)
  assert multiprocessing.active_children() == []
