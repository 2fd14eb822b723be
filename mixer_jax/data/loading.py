"""Batches loaded ahead of the step, in threads or in worker processes."""

import functools
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
from absl import flags

from mixer_jax.data import lending, segments
from mixer_jax.data.pipeline import Batch, EvalBatches, TrainBatches
from mixer_jax.errors import RetryError

PREFETCH = 2  # batches ready ahead of the step, in each worker or, without workers, in this process

MAX_LOST = 3  # times that workers are killed without a batch in between
SAY_SECONDS = 30.0  # of waiting, until a line says so
LIMIT_SECONDS = 600.0  # of waiting, until the workers count as dead
_KILLED = re.compile(r"Worker process was terminated unexpectedly with exit code (-?\d+)")
_ADVICE = (
  "If memory or /dev/shm is full, give more (docker run --shm-size=16g) or lower num_workers."
)


def iterate(
  batches: TrainBatches | EvalBatches, *, start: int = 0, num_workers: int
) -> "ClosingIterator":
  """Iterates over `batches[start:]` in order, loading ahead in threads or in `num_workers` processes."""
  import grain

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain reads its own absl flags, which a library call never parses.
  threads = grain.ReadOptions(num_threads=PREFETCH, prefetch_buffer_size=PREFETCH)

  def begin(first: int, borrower: lending.Borrower | None) -> Any:
    source: Any = batches if borrower is None else lending.Lender(batches, borrower.name)
    dataset: Any = grain.MapDataset.source(source)[first:].to_iter_dataset(threads)
    if borrower is None:
      return iter(dataset)
    options = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=PREFETCH)
    # What the lender leaves goes through a pipe, and must fit into it (64 KiB): closing an iterator, Grain waits for the
    # rest of a message that was cut.
    piped = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
    dataset = grain.experimental.WithOptionsIterDataset(dataset, piped)
    return iter(dataset.mp_prefetch(options, functools.partial(_init_worker, segments.owned())))

  return ClosingIterator(begin, start, workers=num_workers > 0)


class ClosingIterator:
  """An iterator that ends its worker processes when its `with` block is left.

  Workers that were killed are started again, from the batch that is due. Nothing waits for ever: workers without a
  sign of life are killed, and if that does not help, the run is asked to stop.

  Args:
    begin: number of a batch, what takes batches from workers -> iterator from that one on.
    start: number of the first batch.
    workers: whether there are any.

  Raises:
    RetryError: workers were killed again and again.
  """

  def __init__(
    self, begin: Callable[[int, lending.Borrower | None], Any], start: int, *, workers: bool
  ):
    self._begin, self._number = begin, start
    self._borrower = lending.Borrower() if workers else None
    self._lost = 0  # times that workers were killed since the last batch
    self._iterator: Any = begin(start, self._borrower)
    self._since: float | None = None  # when the wait for a batch began
    self._closed = threading.Event()
    threading.Thread(target=self._watch, daemon=True).start()

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    while True:
      try:
        self._since = time.monotonic()
        batch = next(self._iterator)
      except RuntimeError as e:
        if not (killed := _KILLED.search(str(e))):
          raise
        self._start_again(killed[1])
        continue
      finally:
        self._since = None
      self._number, self._lost = self._number + 1, 0
      return batch if self._borrower is None else self._borrower.copied(batch)

  def _start_again(self, status: str) -> None:
    """Starts the workers anew, from the batch that is due; raises RetryError if that has been tried in vain."""
    self._lost += 1
    lost = f"a loader worker was killed (exit code {status})"
    if self._lost == MAX_LOST:
      raise RetryError(f"{lost}, {MAX_LOST} times at batch {self._number}. {_ADVICE}")
    print(f"{lost}: starting again from batch {self._number}. {_ADVICE}", file=sys.stderr)
    self._close()
    self._iterator = self._begin(self._number, self._borrower)

  def __enter__(self) -> "ClosingIterator":
    return self

  def __exit__(self, *exc: object) -> None:
    self._closed.set()
    self._close()

  def _close(self) -> None:
    if hasattr(self._iterator, "close"):
      self._iterator.close()
    self._iterator = None
    if self._borrower is not None:
      self._borrower.close()

  def _watch(self) -> None:
    """Says what the main thread waits for, and ends the wait when it has lasted too long."""
    said = -1
    while not self._closed.wait(1.0):
      since, number = self._since, self._number
      waited = 0.0 if since is None else time.monotonic() - since
      if waited > SAY_SECONDS and said != number:
        print(f"waiting for batch {number} of the data for {waited:.0f} s", file=sys.stderr)
        said = number
      if waited > LIMIT_SECONDS:
        for worker in multiprocessing.active_children():
          worker.kill()
      if waited > 2 * LIMIT_SECONDS:
        print(
          f"no batch of the data in {waited:.0f} s: the storage does not answer", file=sys.stderr
        )
        os.kill(os.getpid(), signal.SIGTERM)
        return


def _init_worker(mark: str, index: int, count: int) -> None:
  """Leaves signals to the parent, and makes the worker die with it, however that dies.

  Args:
    mark: of the parent (segments.py).
    index: of the worker.
    count: of workers.
  """
  del index, count
  cv2.setNumThreads(1)
  for number in segments.SIGNALS:
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_follow_parent, args=(mark,), daemon=True).start()


def _follow_parent(mark: str) -> None:
  """Ends this process after its parent."""
  parent = multiprocessing.parent_process()
  assert parent is not None
  parent.join()
  segments.forget(mark)
  os._exit(1)
