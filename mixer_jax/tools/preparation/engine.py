"""Writes a data set shard by shard in processes. It can be resumed, and is visible only when it is whole.

Shards are written into VERSION.incomplete, each atomically, and a summary of each into `finished/`. After
any interruption the same plan resumes. When everything is there, the directory is renamed to VERSION.
"""

import collections
import contextlib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mixer_jax import files
from mixer_jax.data import builders
from mixer_jax.errors import InputError, SaveError
from mixer_jax.tools.preparation import shards, workers

_FACTS = ("splits", "classes", "num_bad", "num_ignored")  # of Prepared, kept in SUMMARY
SUMMARY, QUARANTINE = "preparation.json", "quarantine.jsonl"


@dataclass(frozen=True, kw_only=True)
class Prepared:
  """A prepared data set.

  Attributes:
    directory: of the data set.
    splits: {split: number of examples}.
    classes: {split: {class name: number of images}}.
    num_bad: images or records left out, listed in quarantine.jsonl.
    num_ignored: files that are no images, listed there too.
    again: whether it had been prepared before.
  """

  directory: pathlib.Path
  splits: dict[str, int]
  classes: dict[str, dict[str, int]]
  num_bad: int
  num_ignored: int
  again: bool = False


def prepare(
  plan: shards.Plan, data_dir: str, *, num_workers: int, verify: bool,
  skip_bad: bool, report: Callable[[str], None] = print,
) -> Prepared:  # fmt: skip
  """Writes the data set into data_dir/name/version; resumes an interrupted preparation.

  Args:
    plan: what to write.
    data_dir: TFDS's directory of data sets.
    num_workers: processes. If 0, this process writes.
    verify: decode each image, which is bad if that fails. Without it images are only copied.
    skip_bad: leave bad images out. Without it bad images are an error.
    report: called with each line of progress.

  Raises:
    InputError: there are bad images and `skip_bad` is off, another data set is there, the disk has no room, or
      another process is preparing it.
  """
  if "://" in data_dir:
    raise InputError(f"{data_dir} is no local directory: prepare into one, and copy the result.")
  directory = (
    pathlib.Path(files.path_of(data_dir, "--data_dir")).absolute() / plan.name / plan.version
  )
  arguments = {"fingerprint": plan.fingerprint, "verify": verify}
  with _lock(directory):
    if directory.exists():
      return _already_prepared(directory, arguments, plan.what)
    work = directory.with_name(f"{directory.name}.incomplete")
    _begin(work, arguments, plan.what)
    done = [s for shard in plan.shards() if (s := shards.finished(work, shard)) is not None]
    if not skip_bad:
      done = [s for s in done if not s["bad"]]  # they may have been repaired
    if plan.what == "images":  # nobody knows what videos need before they are decoded
      _check_room(work, plan.num_bytes - sum(s["num_bytes"] for s in done))
    there = {s["file"] for s in done}
    left = (shard for shard in plan.shards() if shard.file not in there)
    progress = workers.Progress(plan, done, report)
    done += workers.write(left, work, verify, num_workers, progress)
    return _finish(plan, work, directory, done, arguments, skip_bad)


def _already_prepared(directory: pathlib.Path, arguments: dict[str, Any], what: str) -> Prepared:
  summary = shards.load_json(directory / SUMMARY)
  if not arguments.items() <= summary.items():
    raise InputError(
      f"{directory} is there already, prepared from other {what} or with other arguments. Give another "
      "--name or --data_dir, or remove it."
    )
  _clean(directory)
  return Prepared(directory=directory, again=True, **{key: summary[key] for key in _FACTS})


@contextlib.contextmanager
def _lock(directory: pathlib.Path) -> Iterator[None]:
  """Lets one process at a time prepare a data set."""

  def refuse() -> None:
    raise InputError(f"another process is preparing {directory}.")

  try:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(directory.parent / f".{directory.name}.lock", refuse):
      yield
  except (OSError, SaveError) as e:
    raise InputError(f"{directory} cannot be written: {e}") from e


def _begin(work: pathlib.Path, arguments: dict[str, Any], what: str) -> None:
  """Makes the directory; raises InputError if another plan has begun it."""
  work.mkdir(exist_ok=True)
  path = work / "plan.json"
  if not path.exists():
    shards.save_json(path, arguments)
  elif shards.load_json(path) != arguments:
    raise InputError(
      f"{work} was begun from other {what} or with other arguments. Give those again to resume it, "
      "another --name or --data_dir, or remove it."
    )


def _check_room(work: pathlib.Path, needed: int) -> None:
  free = shutil.disk_usage(work).free
  if needed > free:
    raise InputError(
      f"{work} has room for {free / 1e9:.1f} GB; {needed / 1e9:.1f} GB are needed. Give another --data_dir."
    )


def _finish(
  plan: shards.Plan, work: pathlib.Path, directory: pathlib.Path, done: list[dict[str, Any]],
  arguments: dict[str, Any], skip_bad: bool,
) -> Prepared:  # fmt: skip
  """Describes what was written and makes it visible; raises InputError if there are bad images."""
  done = sorted(done, key=lambda s: (s["split"], s["index"]))
  bad = [b for s in done for b in s["bad"]]
  _save_quarantine(work / QUARANTINE, bad, plan.ignored)
  if bad and not skip_bad:
    listed = "".join(f"\n  {b['record']}: {b['reason']}" for b in bad[:10])
    more = f"\n  … and {len(bad) - 10:,} more" if len(bad) > 10 else ""
    raise InputError(
      f"{len(bad):,} of {sum(plan.num_examples.values()):,} {plan.what} cannot be used:{listed}{more}\n"
      f"All are listed in {work / QUARANTINE}. Repair them and give the same command again, or leave them "
      "out with --on_bad_record=skip: the shards that are done are kept."
    )
  by_split = {split: [s for s in done if s["split"] == split] for split in plan.num_examples}
  lengths = {split: [s["num_examples"] for s in found] for split, found in by_split.items()}
  num_bytes = {split: sum(s["num_bytes"] for s in found) for split, found in by_split.items()}
  if empty := [split for split in lengths if not sum(lengths[split])]:
    raise InputError(
      f"no {plan.what[:-1]} of the split {empty[0]!r} is good: see {work / QUARANTINE}."
    )
  prepared = Prepared(
    directory=directory,
    splits={split: sum(lengths[split]) for split in lengths},
    classes={split: _count_classes(plan.classes, found) for split, found in by_split.items()},
    num_bad=len(bad),
    num_ignored=len(plan.ignored),
  )
  facts = {key: getattr(prepared, key) for key in _FACTS}
  shards.save_json(work / SUMMARY, arguments | facts)
  plan.describe(work, lengths, num_bytes)
  builders.list_checksums(work)
  work.rename(directory)
  _clean(directory)
  return prepared


def _clean(directory: pathlib.Path) -> None:
  """Removes what only the preparation needs, after the renaming: until then it can resume."""
  shutil.rmtree(directory / "finished", ignore_errors=True)
  (directory / "plan.json").unlink(missing_ok=True)


def _count_classes(classes: Sequence[str], summaries: list[dict[str, Any]]) -> dict[str, int]:
  """Returns {class name: number of images}; a class without a name goes by its index."""
  counts: collections.Counter[int] = collections.Counter()
  for summary in summaries:
    counts.update({int(k): n for k, n in summary["classes"].items()})
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
