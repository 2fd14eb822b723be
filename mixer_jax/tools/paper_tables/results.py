"""The runs and evaluations in a results directory.

Every directory below it with a config.json is a run. Its metrics are in metrics.jsonl (workdir/metrics.py). `eval.py
--record` adds to evaluations.jsonl (inference/evaluate.py). The transfer protocol writes result.json
(sweep/worker.py).
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

from etils import epath

from mixer_jax import configuration
from mixer_jax.errors import InputError
from mixer_jax.workdir import directory as workdirs
from mixer_jax.workdir import metrics

_NOT_RUNS = ("checkpoints", "damaged_checkpoints", "events", "plots")


@dataclasses.dataclass(frozen=True)
class Run:
  """A workdir.

  Attributes:
    config: nested, as JSON has it, with today's keys.
    records: metrics by step, ascending.
    evaluations: results of `eval.py --record`, oldest first.
    top1: result of the transfer protocol. None if the run is not part of it or not finished.
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
    """Returns the configuration's value of a dotted key. None if it does not have the key."""
    return configuration.flatten(self.config).get(key)

  def curve(self, name: str) -> list[tuple[int, float]]:
    """Returns (step, value) of all records that have this metric."""
    return [(r["step"], float(r[name])) for r in self.records if name in r]


@dataclasses.dataclass(frozen=True)
class Results:
  """All runs of a directory."""

  directory: pathlib.Path
  runs: list[Run]


def scan(directory: pathlib.Path) -> Results:
  """Returns the runs below a directory, in the order of their paths. None if there is no such directory.

  Raises:
    InputError: the path is a file, or a config.json is damaged.
  """
  if directory.exists() and not directory.is_dir():
    raise InputError(f"--results={directory} is not a directory.")
  runs = []
  for place, below, files in os.walk(directory):
    below[:] = sorted(d for d in below if d not in _NOT_RUNS)
    if "config.json" in files:
      runs.append(read(pathlib.Path(place)))
  return Results(directory, runs)


def read(path: pathlib.Path) -> Run:
  """Returns the run of a workdir."""
  directory, result = epath.Path(path), path / "result.json"
  return Run(
    path,
    workdirs.load_config(directory),
    metrics.read_metrics(directory),
    metrics.read_records(directory / "evaluations.jsonl"),
    json.loads(result.read_text())["top1"] if result.exists() else None,
  )
