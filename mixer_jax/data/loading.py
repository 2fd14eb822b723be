"""Batches loaded ahead of the step, in threads or in worker processes."""

import contextlib
import gc
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

import cv2
import numpy as np
from absl import flags

from mixer_jax.data.pipeline import Batch, EvalBatches, TrainBatches

PREFETCH = 2  # batches ready ahead of the step, in each worker or, without workers, in this process

# Smaller arrays come through a pipe, larger ones in shared memory. What is in the pipe must fit into it
# (64 KiB): closing an iterator, Grain waits for the rest of a message that was cut.
MIN_SHARED_BYTES = 1 << 12


def iterate(
  batches: TrainBatches | EvalBatches, *, start: int = 0, num_workers: int
) -> "ClosingIterator":
  """Iterates over `batches[start:]` in order, loading ahead in threads or in `num_workers` processes."""
  import grain

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain reads its own absl flags, which a library call never parses.
  threads = grain.ReadOptions(num_threads=PREFETCH, prefetch_buffer_size=PREFETCH)
  source: Any = batches
  dataset = grain.MapDataset.source(source)[start:].to_iter_dataset(threads)
  if num_workers:
    options = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=PREFETCH)
    small = grain.experimental.DatasetOptions(min_shm_size=MIN_SHARED_BYTES)
    dataset = grain.experimental.WithOptionsIterDataset(dataset, small)
    dataset = dataset.mp_prefetch(options, _init_worker)
  return ClosingIterator(iter(dataset), copy=num_workers > 0)


class ClosingIterator:
  """An iterator that ends its worker processes when its `with` block is left.

  With workers, batches arrive in shared memory that ends with the array. JAX may alias host memory for
  as long as it likes, so they are copied first.
  """

  def __init__(self, iterator: Any, copy: bool):
    self._iterator: Any = iterator
    self._copy = copy

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    batch = next(self._iterator)
    return {key: np.array(value) for key, value in batch.items()} if self._copy else batch

  def __enter__(self) -> "ClosingIterator":
    return self

  def __exit__(self, *exc: object) -> None:
    if hasattr(self._iterator, "close"):
      self._iterator.close()
    # Grain's iterators refer to themselves, and the last batch's shared memory ends only with them.
    self._iterator = None
    gc.collect()


def _init_worker(index: int, count: int) -> None:
  """Leaves signals to the parent, and makes the worker die with it, however that dies.

  Args:
    index: of the worker.
    count: of workers.
  """
  del index, count
  cv2.setNumThreads(1)
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
  """Ends this process after its parent, leaving every segment to Python's resource tracker.

  The tracker outlives all workers and unlinks what was registered with it. A segment is registered an
  instant after it is created; death in between would leave it behind.
  """
  parent = multiprocessing.parent_process()
  assert parent is not None
  parent.join()
  for link in pathlib.Path("/proc/self/fd").glob("*"):
    with contextlib.suppress(OSError):
      target = link.readlink()
      if target.name.startswith("psm_") and target.exists():  # not "psm_… (deleted)"
        resource_tracker.register(f"/{target.name}", "shared_memory")
  os._exit(1)
