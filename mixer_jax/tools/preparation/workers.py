"""Shards written by worker processes, with their progress."""

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from mixer_jax.errors import InputError
from mixer_jax.parallel import processes
from mixer_jax.tools.preparation import shards

PATIENCE_SECS = 600.0  # without a sign of any worker
_REPORT_SECS = 10.0


class Progress:
  """Reports the progress every ten seconds."""

  def __init__(self, plan: shards.Plan, done: list[dict[str, Any]], report: Callable[[str], None]):
    self._total = sum(plan.num_examples.values())
    self._before = sum(s["num_examples"] + len(s["bad"]) for s in done)
    self._report, self._start, self._count = report, time.monotonic(), 0
    self._what = plan.what
    self._next = self._start + _REPORT_SECS
    if done:
      report(f"resuming: {len(done)} shards with {self._before:,} {plan.what} are done")

  def add(self, count: int) -> None:
    """Counts images that this run has done."""
    self._count += count
    if time.monotonic() >= self._next:
      self.show()

  def show(self) -> None:
    if not self._count:
      return
    now = time.monotonic()
    self._next = now + _REPORT_SECS
    done, rate = self._before + self._count, self._count / max(now - self._start, 1e-6)
    left = int((self._total - done) / rate)
    self._report(
      f"prepared {done:,}/{self._total:,} {self._what} ({done / max(self._total, 1):.0%})  "
      f"{rate:,.0f} {self._what}/s  left {left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
    )


def write(
  left: Iterator[shards.Shard], work: pathlib.Path, verify: bool, num_workers: int,
  progress: Progress,
) -> list[dict[str, Any]]:  # fmt: skip
  """Writes shards in worker processes and returns their summaries. With 0 workers this process writes."""
  if num_workers == 0:
    done = [shards.write(shard, work, verify, progress.add) for shard in left]
  else:
    done = list(_write_in_processes(left, work, verify, num_workers, progress))
  progress.show()
  return done


def _write_in_processes(
  left: Iterator[shards.Shard], work: pathlib.Path, verify: bool, num_workers: int,
  progress: Progress,
) -> Iterator[dict[str, Any]]:  # fmt: skip
  heard = time.monotonic()
  with _processes(num_workers, work, verify) as idle:
    busy = _hand_out(left, idle)
    while busy:
      for connection in multiprocessing.connection.wait(
        list(busy), min(_REPORT_SECS, PATIENCE_SECS)
      ):
        heard, message = time.monotonic(), _receive(connection)
        if isinstance(message, int):
          progress.add(message)
        else:
          yield message
          del busy[connection]
          busy |= _hand_out(left, [connection])
      if time.monotonic() - heard > PATIENCE_SECS:
        raise InputError(
          f"no image was finished in {PATIENCE_SECS:.0f} s, of {', '.join(busy.values())}: the storage does "
          "not answer, or an image cannot be decoded in that time. Finished shards are kept."
        )


@contextlib.contextmanager
def _processes(number: int, work: pathlib.Path, verify: bool) -> Iterator[list[Any]]:
  """Yields the connections of worker processes, which are killed at the end: shards are atomic."""
  context = multiprocessing.get_context("spawn")
  started, connections = [], []
  try:
    # Ctrl-C is for this process alone, also while a worker is starting: the mask is inherited. The
    # tracker takes it away when it is started.
    multiprocessing.resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
      for _ in range(number):
        ours, theirs = context.Pipe()
        arguments = (theirs, os.getpid(), work, verify)
        started.append(context.Process(target=_work, args=arguments, daemon=True))
        connections.append(ours)
        started[-1].start()
        theirs.close()
    finally:
      signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    yield connections
  finally:
    for process in started:
      if process.pid is not None:
        process.kill()
        process.join()


def _hand_out(left: Iterator[shards.Shard], idle: list[Any]) -> dict[Any, str]:
  """Gives each idle worker the next shard; returns the names of the shards by connection."""
  busy = {}
  for connection in idle:
    shard = next(left, None)
    if shard is not None:
      with contextlib.suppress(BrokenPipeError):  # receiving says that it died
        connection.send(shard)
      busy[connection] = shard.file
  return busy


def _receive(connection: Any) -> Any:
  """Returns a number of images or a summary; raises the worker's error, or InputError if it died."""
  try:
    message = connection.recv()
  except (EOFError, ConnectionResetError) as e:
    raise InputError(
      "a worker process died; out of memory? Give the same command again with fewer --num_workers: "
      "finished shards are kept."
    ) from e
  if isinstance(message, Exception):
    raise message
  return message


def _work(connection: Any, parent: int, work: pathlib.Path, verify: bool) -> None:
  """Writes the shards that the parent sends; ends when the parent ends."""
  processes.die_with(parent, 1)
  with contextlib.suppress(EOFError, ConnectionError):  # the parent's end may be seen here first
    while True:
      shard = connection.recv()
      try:
        connection.send(shards.write(shard, work, verify, connection.send))
      except InputError as e:
        connection.send(e)
