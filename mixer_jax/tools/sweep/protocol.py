"""The paper's transfer protocol (section 3) as data: which runs, which learning rate wins, which table.

For each pair of weights and data set, one run per learning rate of the grid trains on "tune" and is evaluated on
"dev". Then runs of three seeds at the best rate train on "train" and are evaluated on "test".
"""

import dataclasses
import re
import statistics
from collections.abc import Mapping, Sequence

from mixer_jax import schema, tables
from mixer_jax.data import datasets
from mixer_jax.errors import InputError

GRID = (0.003, 0.01, 0.03, 0.06)
VTAB_GRID = (0.003, 0.01, 0.03)
NUM_SEEDS = 3
FIVE = ("imagenet2012", "cifar10", "cifar100", "oxford_iiit_pet", "oxford_flowers102")
"""The data sets of the paper's "Avg 5"."""


@dataclasses.dataclass(frozen=True)
class Transfer:
  """One cell of the table: weights, a data set, and the image size in pixels, a side or "HEIGHTxWIDTH"."""

  weights: str
  dataset: str
  size: int | str

  @property
  def name(self) -> str:
    """Directory of its runs."""
    clean = [re.sub(r"[^A-Za-z0-9._-]+", "-", t).strip("-.") for t in (self.weights, self.dataset)]
    if not all(clean):
      raise InputError(f"{self.weights!r} and {self.dataset!r} make no name of a directory.")
    return "/".join([*clean, str(self.size)])


@dataclasses.dataclass(frozen=True)
class Run:
  """A training run. It is evaluated on "dev" (runs of the grid) or on "test" (runs that are reported)."""

  transfer: Transfer
  lr: float
  seed: int
  eval_split: str

  @property
  def name(self) -> str:
    """Its directory below the results."""
    return f"{self.transfer.name}/{self.eval_split}-lr{self.lr:g}-seed{self.seed}"

  @property
  def argument(self) -> str:
    """The argument of configs/finetune.py that makes its configuration, apart from the seed."""
    t = self.transfer
    return f"weights={t.weights},dataset={t.dataset},size={t.size},lr={self.lr},eval_split={self.eval_split}"


Results = Mapping[str, float]  # name of a finished run -> top-1, 0 for one that diverged


def expand(names: Sequence[str]) -> list[str]:
  """Returns the data sets of a list in which "vtab" stands for the 19 tasks and "five" for "Avg 5"'s.

  Raises:
    InputError: a data set twice.
  """
  groups = {"vtab": list(datasets.VTAB), "five": list(FIVE)}
  expanded = [d for name in names for d in groups.get(name, [name])]
  if len(set(expanded)) < len(expanded):
    raise InputError(f"--datasets names a data set twice: {', '.join(expanded)}")
  return expanded


def size_of(dataset: str, size: str | None, pretrained: tuple[int, int]) -> int | str:
  """Returns the image size to fine-tune at: `size`, that the user gave, or else that of pre-training, (height, width).

  VTAB-1k's tasks with large images take twice that.
  """
  if size is not None:
    return schema.joined(*schema.sides(size))
  factor = 2 if dataset in datasets.VTAB and not datasets.VTAB[dataset].small else 1
  return schema.joined(factor * pretrained[0], factor * pretrained[1])


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the table. `top1` holds the seeds' results. `lr` is None while the grid is not finished."""

  weights: str
  dataset: str
  size: str
  lr: float | None
  top1: list[float]
  note: str = ""

  @property
  def mean(self) -> float | None:
    return statistics.mean(self.top1) if self.top1 else None

  @property
  def std(self) -> float | None:
    """Sample standard deviation over the seeds."""
    return statistics.stdev(self.top1) if len(self.top1) > 1 else None


@dataclasses.dataclass(frozen=True)
class Sweep:
  """The runs that fill a table.

  Attributes:
    transfers: its cells.
    lrs: learning rates. Default: the paper's for each data set.
    num_seeds: runs at the best rate.
  """

  transfers: Sequence[Transfer]
  lrs: Sequence[float] | None = None
  num_seeds: int = NUM_SEEDS

  def grid(self, transfer: Transfer) -> list[Run]:
    """Returns the runs that choose the learning rate."""
    lrs = self.lrs or (VTAB_GRID if transfer.dataset in datasets.VTAB else GRID)
    return [Run(transfer, lr, 0, "dev") for lr in lrs]

  def best_lr(self, transfer: Transfer, results: Results) -> float | None:
    """Returns the rate with the best top-1 on the development split (the lowest of equals).

    None while a run of the grid is missing.
    """
    runs = self.grid(transfer)
    if any(r.name not in results for r in runs):
      return None
    return min(runs, key=lambda r: (-results[r.name], r.lr)).lr

  def reported(self, transfer: Transfer, results: Results) -> list[Run]:
    """Returns the runs at the best rate; none while the grid is not finished."""
    lr = self.best_lr(transfer, results)
    return [] if lr is None else [Run(transfer, lr, s, "test") for s in range(self.num_seeds)]

  def runs(self, results: Results) -> list[Run]:
    """Returns all runs that are finished or can be started now."""
    return [r for t in self.transfers for r in self.grid(t) + self.reported(t, results)]

  def open_runs(self, results: Results) -> list[Run]:
    """Returns the runs that can be started now."""
    return [r for r in self.runs(results) if r.name not in results]

  def table(self, results: Results) -> list[Row]:
    """Returns a row for each transfer, and the averages "VTAB-1k" and "Avg 5" where they were asked for."""
    rows = [self._row(t, results) for t in self.transfers]
    averages = []
    for title, members in (("VTAB-1k", set(datasets.VTAB)), ("Avg 5", set(FIVE))):
      for weights in dict.fromkeys(t.weights for t in self.transfers):
        own = [r for r in rows if r.weights == weights and r.dataset in members]
        if {r.dataset for r in own} == members:
          averages.append(_average(title, weights, own, self.num_seeds))
    return rows + averages

  def _row(self, t: Transfer, results: Results) -> Row:
    done = [results[r.name] for r in self.reported(t, results) if r.name in results]
    notes = [f"{len(done)} of {self.num_seeds} seeds finished"] * (len(done) < self.num_seeds)
    notes += [f"{done.count(0.0)} diverged, counted as 0"] * (0.0 in done)
    lr = self.best_lr(t, results)
    return Row(t.weights, t.dataset, str(t.size), lr, done, " ".join(notes))


def _average(title: str, weights: str, rows: Sequence[Row], num_seeds: int) -> Row:
  """Averages data sets seed by seed; empty unless all are finished: a mean of some would mislead."""
  finished = [r for r in rows if len(r.top1) == num_seeds]
  if len(finished) < len(rows):
    return Row(weights, title, "", None, [], f"{len(finished)} of {len(rows)} data sets finished")
  means = [statistics.mean(values) for values in zip(*(r.top1 for r in rows), strict=True)]
  return Row(weights, title, "", None, means)


HEADER = ("weights", "data set", "px", "lr", "top-1 %", "± std", "seeds", "")


def cells(row: Row) -> list[str]:
  """Returns the texts below `HEADER`."""
  lr = "–" if row.lr is None else f"{row.lr:g}"
  mean, std = ("–" if x is None else f"{100 * x:.2f}" for x in (row.mean, row.std))
  return [row.weights, row.dataset, row.size, lr, mean, std, str(len(row.top1)), row.note]


def as_csv(rows: Sequence[Row]) -> str:
  """Returns the table as CSV, shares and not per cent, with a column of all seeds."""
  header = ("weights", "dataset", "size_px", "lr", "top1_mean", "top1_std", "top1_by_seed")
  lines = [
    (r.weights, r.dataset, r.size, r.lr, r.mean, r.std, " ".join(map(str, r.top1))) for r in rows
  ]
  return tables.as_csv([header, *lines])
