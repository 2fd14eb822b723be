"""Shards written by worker processes, with their progress."""

import concurrent.futures
import ctypes
import multiprocessing
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from mixer_jax.data.preparation import shards
from mixer_jax.errors import InputError

_REPORT_SECS = 10.0


class Progress:
  """Says how far it is, every ten seconds."""

  def __init__(self, plan: shards.Plan, done: list[dict[str, Any]], report: Callable[[str], None]):
    self._total = sum(plan.num_examples.values())
    self._before = sum(s["num_examples"] + len(s["bad"]) for s in done)
    self._report, self._start = report, time.monotonic()
    self._next = self._start + _REPORT_SECS
    if done:
      report(f"going on: {len(done)} shards with {self._before:,} images are there")

  def __call__(self, count: int, last: bool = False) -> None:
    """Reports `count` images done by this run."""
    now = time.monotonic()
    if now < self._next and not last:
      return
    self._next = now + _REPORT_SECS
    done, rate = self._before + count, count / max(now - self._start, 1e-6)
    left = int((self._total - done) / rate) if rate else 0
    self._report(
      f"prepared {done:,}/{self._total:,} images ({done / max(self._total, 1):.0%})  "
      f"{rate:,.0f} images/s  left {left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
    )


def write(
  left: Iterator[shards.Shard], work: pathlib.Path, verify: bool, num_workers: int,
  progress: Progress,
) -> list[dict[str, Any]]:  # fmt: skip
  """Writes shards; returns their summaries. A few are handed out ahead: a shard holds its entries."""
  if num_workers == 0:
    return _write_here(left, work, verify, progress)
  context = multiprocessing.get_context("spawn")
  counter, stop = context.Value(ctypes.c_int64, 0), context.Event()
  executor = concurrent.futures.ProcessPoolExecutor(
    num_workers, context, _init_worker, (counter, stop, os.getpid())
  )
  done, running = [], set()
  with executor:
    try:
      while True:
        while len(running) < 2 * num_workers and (shard := next(left, None)) is not None:
          running.add(executor.submit(_write_in_worker, shard, work, verify))
        if not running:
          break
        finished, running = concurrent.futures.wait(running, 1.0, "FIRST_COMPLETED")
        done += [f.result() for f in finished]
        progress(counter.value)
    except concurrent.futures.BrokenExecutor as e:
      raise InputError(
        "a worker process died; out of memory? Give the same command again with fewer --num_workers: "
        "finished shards are kept."
      ) from e
    finally:
      stop.set()
      executor.shutdown(cancel_futures=True)
  progress(counter.value, last=True)
  return done


def _write_here(
  left: Iterator[shards.Shard], work: pathlib.Path, verify: bool, progress: Progress
) -> list[dict[str, Any]]:
  total = 0

  def count(images: int) -> None:
    nonlocal total
    total += images
    progress(total)

  done = [shards.write(shard, work, verify, count) for shard in left]
  progress(total, last=True)
  return done


_WORKER: dict[str, Any] = {}  # what a worker process shares with its parent


def _init_worker(counter: Any, stop: Any, parent: int) -> None:
  """Makes a worker die with its parent, however that dies, and leave Ctrl-C to it."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  if sys.platform == "linux":
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
  if os.getppid() != parent:
    os._exit(1)  # it died while this process was starting
  _WORKER.update(counter=counter, stop=stop)


def _write_in_worker(shard: shards.Shard, work: pathlib.Path, verify: bool) -> dict[str, Any]:
  def count(images: int) -> None:
    if _WORKER["stop"].is_set():
      raise shards.Stopped
    with _WORKER["counter"].get_lock():
      _WORKER["counter"].value += images

  return shards.write(shard, work, verify, count)
