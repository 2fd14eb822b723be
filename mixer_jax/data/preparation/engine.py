"""Writes a data set shard by shard in processes: resumable, and visible only when it is whole.

All is written next to where it will be, in VERSION.incomplete: shards, each atomically, and what each
holds in `finished/`. A run that is cut off, however, is gone on with by the same plan. The directory is
renamed when everything is there.
"""

import collections
import concurrent.futures
import contextlib
import ctypes
import fcntl
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from mixer_jax.data.preparation import shards
from mixer_jax.errors import InputError

SUMMARY, QUARANTINE = "preparation.json", "quarantine.jsonl"
_REPORT_SECS = 10.0


class Plan(Protocol):
  """What is to be written.

  Attributes:
    name, version: of the data set, and below data_dir of its directory.
    classes: names by index; empty where the data set has none.
    multi_label: whether the labels are several.
    num_examples: of each split, before bad ones are left out.
    num_bytes: about.
    ignored: (path, why) of files that are no images.
    fingerprint: equal for equal plans.
  """

  name: str
  version: str
  classes: Sequence[str]
  multi_label: bool
  num_examples: dict[str, int]
  num_bytes: int
  ignored: Sequence[tuple[str, str]]
  fingerprint: str

  def shards(self) -> Iterator[shards.Shard]: ...

  def describe(
    self, directory: pathlib.Path, lengths: dict[str, list[int]], num_bytes: dict[str, int]
  ) -> None:
    """Writes the description of the data set, dataset_info.json last."""
    ...


@dataclass(frozen=True, kw_only=True)
class Prepared:
  """A prepared data set.

  Attributes:
    directory: of the data set.
    splits: {split: number of examples}.
    classes: {split: {class name: number of images}}.
    num_bad: images or records left out, listed in quarantine.jsonl.
    num_ignored: files that are no images, listed there too.
    again: it was there already.
  """

  directory: pathlib.Path
  splits: dict[str, int]
  classes: dict[str, dict[str, int]]
  num_bad: int
  num_ignored: int
  again: bool = False


def prepare(
  plan: Plan, data_dir: str, *, num_workers: int, verify: shards.Verify,
  on_bad_record: Literal["stop", "skip"], report: Callable[[str], None] = print,
) -> Prepared:  # fmt: skip
  """Writes the data set into data_dir/name/version, going on where an earlier run was cut off.

  Args:
    plan: what to write.
    data_dir: TFDS's directory of data sets.
    num_workers: processes; 0: this one.
    verify: "decode": each image is decoded, and left out if that fails; "none": copied unseen.
    on_bad_record: whether the data set is finished without the bad images ("skip"), or not ("stop").
    report: told the progress, a line at a time.

  Raises:
    InputError: bad images with "stop"; another data set is there; no room; another process at work.
  """
  directory = pathlib.Path(data_dir).expanduser().absolute() / plan.name / plan.version
  arguments = {"fingerprint": plan.fingerprint, "verify": verify}
  with _lock(directory):
    if directory.exists():
      return _already_prepared(directory, arguments)
    work = directory.with_name(f"{directory.name}.incomplete")
    _begin(work, arguments)
    done = [s for shard in plan.shards() if (s := shards.finished(work, shard)) is not None]
    if on_bad_record == "stop":
      done = [s for s in done if not s["bad"]]  # they may have been repaired
    _check_room(work, plan.num_bytes - sum(s["num_bytes"] for s in done))
    there = {s["file"] for s in done}
    left = (shard for shard in plan.shards() if shard.file not in there)
    progress = _Progress(plan, done, report)
    done += _write(left, work, verify, num_workers, progress)
    return _finish(plan, work, directory, done, arguments, on_bad_record)


def _already_prepared(directory: pathlib.Path, arguments: dict[str, Any]) -> Prepared:
  try:
    summary = json.loads((directory / SUMMARY).read_text())
    same = all(summary[key] == value for key, value in arguments.items())
    prepared = Prepared(
      directory=directory, splits=summary["splits"], classes=summary["classes"],
      num_bad=summary["num_bad"], num_ignored=summary["num_ignored"], again=True,
    )  # fmt: skip
  except (OSError, ValueError, KeyError):
    same = False
  if not same:
    raise InputError(
      f"{directory} is there already, prepared from other images or with other arguments. Give another "
      "--name or --data_dir, or remove it."
    )
  _clean(directory)
  return prepared


@contextlib.contextmanager
def _lock(directory: pathlib.Path) -> Iterator[None]:
  """Lets one process at a time prepare a data set; the lock goes with the process that holds it."""
  try:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (directory.parent / f".{directory.name}.lock").open("w") as f:
      try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as e:
        raise InputError(f"another process is preparing {directory}.") from e
      yield
  except OSError as e:
    raise InputError(f"{directory} cannot be written: {e}") from e


def _begin(work: pathlib.Path, arguments: dict[str, Any]) -> None:
  """Makes the directory, or finds it as the same plan left it."""
  work.mkdir(exist_ok=True)
  path = work / "plan.json"
  if not path.exists():
    shards.save_json(path, arguments)
    return
  try:
    same = json.loads(path.read_text()) == arguments
  except ValueError:
    same = False
  if not same:
    raise InputError(
      f"{work} was begun from other images or with other arguments. Give those again to go on with it, "
      "another --name or --data_dir, or remove it."
    )


def _check_room(work: pathlib.Path, needed: int) -> None:
  free = shutil.disk_usage(work).free
  if needed > free:
    raise InputError(
      f"{work} has room for {free / 1e9:.1f} GB; {needed / 1e9:.1f} GB are needed. Give another --data_dir."
    )


class _Progress:
  """Says how far it is, every ten seconds."""

  def __init__(self, plan: Plan, done: list[dict[str, Any]], report: Callable[[str], None]):
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


def _write(
  left: Iterator[shards.Shard], work: pathlib.Path, verify: shards.Verify, num_workers: int,
  progress: _Progress,
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
  left: Iterator[shards.Shard], work: pathlib.Path, verify: shards.Verify, progress: _Progress
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


def _write_in_worker(
  shard: shards.Shard, work: pathlib.Path, verify: shards.Verify
) -> dict[str, Any]:
  def count(images: int) -> None:
    if _WORKER["stop"].is_set():
      raise shards.Stopped
    with _WORKER["counter"].get_lock():
      _WORKER["counter"].value += images

  return shards.write(shard, work, verify, count)


def _finish(
  plan: Plan, work: pathlib.Path, directory: pathlib.Path, done: list[dict[str, Any]],
  arguments: dict[str, Any], on_bad_record: str,
) -> Prepared:  # fmt: skip
  """Describes what was written and makes it visible; raises InputError if bad images are in the way."""
  done = sorted(done, key=lambda s: (s["split"], s["index"]))
  bad = [b for s in done for b in s["bad"]]
  _save_quarantine(work / QUARANTINE, bad, plan.ignored)
  if bad and on_bad_record == "stop":
    listed = "".join(f"\n  {b['record']}: {b['reason']}" for b in bad[:10])
    more = f"\n  … and {len(bad) - 10:,} more" if len(bad) > 10 else ""
    raise InputError(
      f"{len(bad):,} of {sum(plan.num_examples.values()):,} images are bad:{listed}{more}\n"
      f"All are listed in {work / QUARANTINE}. Repair them and give the same command again, or leave them "
      "out with --on_bad_record=skip: the shards that are done are kept."
    )
  lengths: dict[str, list[int]] = collections.defaultdict(list)
  num_bytes: collections.Counter[str] = collections.Counter()
  counts: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
  for summary in done:
    lengths[summary["split"]].append(summary["num_examples"])
    num_bytes[summary["split"]] += summary["num_bytes"]
    counts[summary["split"]].update({int(k): n for k, n in summary["classes"].items()})
  if empty := [split for split in lengths if not sum(lengths[split])]:
    raise InputError(f"no image of the split {empty[0]!r} is good: see {work / QUARANTINE}.")
  prepared = Prepared(
    directory=directory,
    splits={split: sum(lengths[split]) for split in plan.num_examples},
    classes={split: _by_name(plan.classes, counts[split]) for split in plan.num_examples},
    num_bad=len(bad),
    num_ignored=len(plan.ignored),
  )
  shards.save_json(
    work / SUMMARY,
    arguments
    | {key: getattr(prepared, key) for key in ("splits", "classes", "num_bad", "num_ignored")},
  )
  plan.describe(work, {s: lengths[s] for s in plan.num_examples}, dict(num_bytes))
  work.rename(directory)
  _clean(directory)
  return prepared


def _clean(directory: pathlib.Path) -> None:
  """Removes what only the preparation needs; after the renaming, so that until then it can go on."""
  shutil.rmtree(directory / "finished", ignore_errors=True)
  (directory / "plan.json").unlink(missing_ok=True)


def _by_name(classes: Sequence[str], counts: collections.Counter[int]) -> dict[str, int]:
  names = dict(enumerate(classes))
  return {names.get(i, str(i)): counts[i] for i in sorted({*names, *counts})}


def _save_quarantine(
  path: pathlib.Path, bad: list[dict[str, str]], ignored: Sequence[tuple[str, str]]
) -> None:
  with path.open("w") as f:
    for record in bad:
      f.write(json.dumps(record) + "\n")
    for name, why in ignored:
      f.write(json.dumps({"ignored": name, "reason": why}) + "\n")
