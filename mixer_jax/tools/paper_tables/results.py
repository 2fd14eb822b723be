"""What runs and evaluations left in a results directory.

Every directory below it with a config.json is a run: metrics.jsonl (metrics.py) is its course,
evaluations.jsonl what `eval.py --record` measured later (inference/evaluate.py), result.json what the transfer
protocol keeps (transfer.py). What cannot be read is named and left out.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

from etils import epath

from mixer_jax import configuration
from mixer_jax.errors import InputError
from mixer_jax.tools.paper_tables.comparison import Exclusion
from mixer_jax.workdir import metrics

_NOT_RUNS = ("checkpoints", "damaged_checkpoints", "events", "plots")


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
class Results:
  """All runs of a directory, and what was unreadable."""

  directory: pathlib.Path
  runs: list[Run]
  left_out: list[Exclusion]


def scan(directory: pathlib.Path) -> Results:
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
      except (OSError, ValueError, KeyError, TypeError) as e:
        left_out.append(Exclusion(str(path), f"unreadable: {e}"))
  return Results(directory, runs, left_out)


def _read(path: pathlib.Path) -> Run:
  directory = epath.Path(path)
  result = path / "result.json"
  return Run(
    path,
    configuration.load(directory / "config.json"),
    metrics.read_metrics(directory),
    metrics.read_records(directory / "evaluations.jsonl"),
    float(json.loads(result.read_text())["top1"]) if result.exists() else None,
  )
