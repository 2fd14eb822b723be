"""What runs and evaluations left in a results directory.

Every directory below it with a config.json is a run: metrics.jsonl (metrics.py) is its course,
evaluations.jsonl what `eval.py --record` measured later (evaluation.py), result.json what the transfer
protocol keeps (transfer.py). Files may come from anywhere, so that nothing of them is taken unchecked;
what cannot be used is named and left out.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

from mixer_jax import configuration
from mixer_jax.errors import InputError
from mixer_jax.tools.paper_tables.sheets import LeftOut

_MAX_BYTES = {"config.json": 1 << 20, "result.json": 1 << 16, "evaluations.jsonl": 1 << 24, "metrics.jsonl": 1 << 28}  # fmt: skip
_NOT_RUNS = ("checkpoints", "damaged_checkpoints", "events", "plots")


class _UnreadableError(ValueError):
  """A file that is not what its name says."""


@dataclasses.dataclass(frozen=True)
class Run:
  """A workdir.

  Attributes:
    path: of the directory.
    config: nested, as JSON has it.
    records: metrics by step, ascending.
    evaluations: what evaluations of its checkpoints left, oldest first.
    top1: what the transfer protocol kept, None if it was not part of one, or is not finished.
  """

  path: pathlib.Path
  config: dict[str, Any]
  records: list[dict[str, Any]]
  evaluations: list[dict[str, Any]]
  top1: float | None

  @property
  def last_step(self) -> int:
    return max((r["step"] for r in self.records), default=0)

  def value(self, key: str) -> Any:
    """Returns the configuration's value of a dotted key, None where a run of other days has none."""
    return configuration.flatten(self.config).get(key)

  def curve(self, name: str) -> list[tuple[int, float]]:
    """Returns (step, value) of all records that have this metric."""
    return [(r["step"], float(r[name])) for r in self.records if name in r]


@dataclasses.dataclass(frozen=True)
class Found:
  """All runs of a directory, and what was unreadable."""

  directory: pathlib.Path
  runs: list[Run]
  left_out: list[LeftOut]


def scan(directory: pathlib.Path) -> Found:
  """Returns the runs below a directory, in the order of their paths; no directory: no runs.

  Raises:
    InputError: it is a file.
  """
  if directory.exists() and not directory.is_dir():
    raise InputError(f"--results={directory} is no directory.")
  runs, left_out = [], []
  for place, below, files in os.walk(directory):
    below[:] = sorted(d for d in below if d not in _NOT_RUNS)
    if "config.json" in files:
      path = pathlib.Path(place)
      try:
        runs.append(_read(path))
      except (OSError, _UnreadableError) as e:
        left_out.append(LeftOut(str(path), f"unreadable: {e}"))
  return Found(directory, runs, left_out)


def _read(path: pathlib.Path) -> Run:
  config = _parse(_text(path / "config.json"), "config.json")
  if not all(s in config and isinstance(config[s], dict) for s in ("model", "data")):
    raise _UnreadableError("config.json is no configuration of a run")
  top1 = None
  if (path / "result.json").exists():
    top1 = _share(_parse(_text(path / "result.json"), "result.json"), "top1", "result.json")
  records = _lines(path / "metrics.jsonl")
  for i, record in enumerate(records):
    if not isinstance(record.get("step"), int) or isinstance(record["step"], bool):
      raise _UnreadableError(f"metrics.jsonl: line {i + 1} has no step")
    for name in [n for n in record if n.startswith("fewshot/") or n == "evaluation/top1"]:
      _share(record, name, f"metrics.jsonl: line {i + 1}")
  evaluations = _lines(path / "evaluations.jsonl")
  for i, record in enumerate(evaluations):
    _share(record, "top1", f"evaluations.jsonl: line {i + 1}")
  return Run(path, config, sorted(records, key=lambda r: r["step"]), evaluations, top1)


def _text(path: pathlib.Path) -> str:
  limit = _MAX_BYTES[path.name]
  with path.open("rb") as f:
    data = f.read(limit + 1)
  if len(data) > limit:
    raise _UnreadableError(f"{path.name} is larger than {limit:,} bytes")
  try:
    return data.decode()
  except UnicodeDecodeError as e:
    raise _UnreadableError(f"{path.name} is no text: {e}") from e


def _parse(text: str, name: str) -> dict[str, Any]:
  try:
    value = json.loads(text)
  except (ValueError, RecursionError) as e:
    raise _UnreadableError(f"{name} is not JSON: {e}") from e
  if not isinstance(value, dict):
    raise _UnreadableError(f"{name} holds no object")
  return value


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the objects of a file's lines; a last one without its end was cut by a kill."""
  if not path.exists():
    return []
  lines = _text(path).split("\n")[:-1]
  return [_parse(line, f"{path.name}: line {i + 1}") for i, line in enumerate(lines)]


def _share(record: dict[str, Any], name: str, where: str) -> float:
  value: Any = record.get(name)
  number = isinstance(value, int | float) and not isinstance(value, bool)
  if not number or not 0 <= value <= 1:  # NaN is in no order
    raise _UnreadableError(f"{where}: {name} is {value!r}, no share from 0 to 1")
  return float(value)
