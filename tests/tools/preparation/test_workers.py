"""Worker processes that hang, die or fail: an error in bounded time, and nobody left behind."""

import multiprocessing
import os
import signal
import time

import pytest

from mixer_jax.errors import InputError
from mixer_jax.tools.preparation import shards, workers
from tests.tools.preparation import preparation_sets as sets


class Hanging(shards.Shard):
  def examples(self):
    time.sleep(600)
    yield


class Dying(shards.Shard):
  def examples(self):
    os.kill(os.getpid(), signal.SIGKILL)
    yield


class Failing(shards.Shard):
  def examples(self):
    raise InputError("as said")


@pytest.mark.parametrize(
  ("kind", "message"),
  [
    (Hanging, "no image was finished in 4 s, of a, b: the storage does not answer"),
    (Dying, "a worker process died"),
    (Failing, "as said"),
  ],
)
def test_is_an_error(tmp_path, monkeypatch, kind, message):
  monkeypatch.setattr(workers, "PATIENCE_SECS", 4.0 if kind is Hanging else 60.0)
  sets.folder(tmp_path / "in", {"x": 1})
  progress = workers.Progress(sets.plan(tmp_path / "in"), [], print)
  left = iter([kind(file=name, split="train", index=i) for i, name in enumerate("abc")])
  with pytest.raises(InputError, match=message):
    workers.write(left, tmp_path, True, 2, progress)
  assert multiprocessing.active_children() == []
