"""What a run reports: the progress line, metrics.jsonl and TensorBoard events, from the same numbers."""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from mixer_jax import files, printing
from mixer_jax.workdir.trackers import Tracker


def format_duration(seconds: float) -> str:
  """Returns h:mm:ss."""
  minutes, s = divmod(round(seconds), 60)
  return f"{minutes // 60}:{minutes % 60:02d}:{s:02d}"


def log(text: str) -> None:
  """Prints on process 0, at once; names from outside keep no escape codes."""
  if jax.process_index() == 0:
    print(printing.printable(text), flush=True)


class MetricWriter:
  """Appends records to `workdir/metrics.jsonl` and `workdir/events`; one process of a run writes.

  A resumed run drops the records after the step that it resumes from, so the file reads like that of
  an undisturbed run. Lines that are unreadable are reported and stay as they are.
  """

  def __init__(
    self,
    workdir: epath.Path,
    start_step: int,
    expected: int | None = None,
    sha256: str | None = None,
    trackers: Sequence[Tracker] = (),
  ):
    """Opens the files.

    Args:
      start_step: of the checkpoint that it resumes from.
      expected: number of records up to that step. None: it is not known.
      sha256: `digest` of those. None: it is not known.
      trackers: where every record goes besides; they are closed with the files.
    """
    self._trackers = trackers
    self._path = workdir / "metrics.jsonl"
    lines = read_lines(self._path)
    kept = [x for x in lines if x.record is None or x.record["step"] <= start_step]
    self.records = [x.record for x in kept if x.record is not None]
    _report(self._path, kept, len(self.records), expected)
    whole = len(self.records) == len(kept) >= (expected or 0)
    if sha256 is not None and whole and digest(self.records[:expected]) != sha256:
      log(
        f"WARNING: {self._path}: not all of the {expected} records up to here are as they were written"
      )
    self._unreadable = [x.text for x in kept if x.record is None]
    with files.replacing(self._path) as partial:
      partial.write_bytes(b"".join(x.text + b"\n" for x in kept))
    # Object stores cannot append: there the file is written anew, at the pace of the log.
    self._local = "://" not in str(workdir)
    self._file = self._path.open("a") if self._local else None
    self._events = _open_events(workdir / "events", start_step + 1)

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes the values of a step, once; names with a slash group in TensorBoard."""
    if any(r["step"] == step and values.keys() <= r.keys() for r in self.records):
      return
    record = {"step": step, **values}
    self.records.append(record)
    if self._file is not None:
      self._file.write(json.dumps(record) + "\n")
      self._file.flush()
    else:
      with files.replacing(self._path) as partial:
        written = [json.dumps(r).encode() for r in self.records]
        partial.write_bytes(b"".join(x + b"\n" for x in [*self._unreadable, *written]))
    scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    self._events.write_event(
      Event(wall_time=time.time(), step=step, summary=Summary(value=scalars))
    )
    self._events.flush()
    for tracker in self._trackers:
      tracker.write(step, values)

  def has(self, step: int, section: str) -> bool:
    """Returns whether there are values of this step whose names begin with the section."""
    names = [name for r in self.records if r["step"] == step for name in r]
    return any(name.startswith(f"{section}/") for name in names)

  def last(self, name: str, default: float) -> float:
    """Returns the latest value under this name."""
    return next((r[name] for r in reversed(self.records) if name in r), default)

  def close(self) -> None:
    if self._file is not None:
      self._file.close()
    self._events.close()
    for tracker in self._trackers:
      tracker.close()


def digest(records: Iterable[Mapping[str, Any]]) -> str:
  """Returns the SHA-256 of records."""
  found = hashlib.sha256()
  for record in records:
    found.update(json.dumps(record).encode() + b"\n")
  return found.hexdigest()


def _open_events(directory: epath.Path, purge_step: int) -> EventsWriter:
  """Opens an event file; TensorBoard hides what earlier files hold from `purge_step` on.

  Written without tensorboardX's SummaryWriter, whose thread would meet a full disk out of sight.
  """
  directory.mkdir(parents=True, exist_ok=True)
  writer = EventsWriter(str(directory / "events"), f".{os.getpid()}")
  start = SessionLog(status=SessionLog.START)
  writer.write_event(Event(wall_time=time.time(), step=purge_step, session_log=start))
  return writer


def read_metrics(workdir: epath.Path) -> list[dict[str, Any]]:
  """Returns the records of metrics.jsonl."""
  return read_records(workdir / "metrics.jsonl")


def read_records(path: epath.Path) -> list[dict[str, Any]]:
  """Returns the records of a file; lines that are unreadable are left out. [] without a file."""
  return [line.record for line in read_lines(path) if line.record is not None]


class Line(NamedTuple):
  """A line of a file of records: its number from 1, its bytes, and the record. None if it is unreadable."""

  number: int
  text: bytes
  record: dict[str, Any] | None


def read_lines(path: epath.Path) -> list[Line]:
  """Returns the lines of a file, without a last one that a kill left incomplete. [] where there is no file to read."""
  try:
    *whole, rest = files.read(path).split(b"\n")
  except (FileNotFoundError, ValueError):
    return []
  lines = [Line(i, text, _record(text)) for i, text in enumerate([*whole, rest], 1)]
  return lines if lines[-1].record else lines[:-1]


def _record(text: bytes) -> dict[str, Any] | None:
  """Returns the record of a line: its step, and numbers or texts by name. None if it is not one."""
  try:
    record = json.loads(text)
  except (ValueError, RecursionError):
    return None
  if not isinstance(record, dict) or type(record.get("step")) is not int:
    return None
  return record if all(isinstance(v, int | float | str) for v in record.values()) else None


def _report(path: epath.Path, lines: list[Line], found: int, expected: int | None) -> None:
  """Says which lines are unreadable, and how many records are lost."""
  if numbers := [f"{line.number}" for line in lines if line.record is None]:
    log(
      f"WARNING: {path}: {len(numbers)} unreadable line(s), which stay as they are: {', '.join(numbers[:10])}"
    )
  if expected is not None and found < expected:
    log(f"WARNING: {path}: {expected - found} of the {expected} records up to here are lost")


WORTH_SAYING = 0.1  # share of the time that is spent waiting for data


class Progress:
  """Speed, waiting, time left and core-hours; core-hours add up over interruptions."""

  def __init__(
    self, *, start_step: int, total_steps: int, batch_size: int, num_cores: int, core_hours: float
  ):
    self._total_steps, self._batch_size, self._num_cores = total_steps, batch_size, num_cores
    self._core_hours = core_hours
    self._begin = self._last_time = time.perf_counter()
    self._last_step = start_step
    self._paused = self._waited = 0.0

  def wait(self, seconds: float) -> None:
    """Counts time for which the step had no batch yet."""
    self._waited += seconds

  def pause(self, seconds: float) -> None:
    """Leaves time (of an evaluation, a checkpoint) out of the next speed; core-hours keep it."""
    self._paused += seconds

  def measure(self, step: int) -> dict[str, float]:
    """Returns seconds, images/s and the share of waiting for data since the last call, seconds left, core-hours."""
    now = time.perf_counter()
    seconds = max(now - self._last_time - self._paused, 1e-9)
    steps, waited = step - self._last_step, self._waited
    self._last_time, self._last_step, self._paused, self._waited = now, step, 0.0, 0.0
    return {
      "seconds": seconds,
      "images_per_sec": steps * self._batch_size / seconds,
      "data_wait": min(waited / seconds, 1.0),
      "seconds_left": (self._total_steps - step) * seconds / max(steps, 1),
      "core_hours": self._core_hours + (now - self._begin) * self._num_cores / 3600,
    }


def progress_line(step: int, total_steps: int, values: dict[str, float], examples: str) -> str:
  """Returns the line that is printed at every log step; `examples` is what is counted."""
  wait = values["data_wait"]
  waits = f"  waits for data {wait:.0%} of the time" if wait >= WORTH_SAYING else ""
  return (
    f"step {step:>{len(str(total_steps))}}/{total_steps} ({step / total_steps:4.0%})"
    f"  loss {values['loss']:.4f}  lr {values['lr']:.2e}"
    f"  {values['images_per_sec']:,.0f} {examples}/s{waits}"
    f"  left {format_duration(values['seconds_left'])}  core-hours {values['core_hours']:.4f}"
  )
