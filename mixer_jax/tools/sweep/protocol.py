"""The paper's transfer protocol (section 3) as data: which runs, which learning rate wins, which table.

For weights and a data set: a run for each learning rate of the grid, trained on "tune" and judged on
"dev"; then, at the best rate, runs of three seeds trained on "train" and judged on "test".
"""

import csv
import dataclasses
import io
import re
import statistics
from collections.abc import Mapping, Sequence

from mixer_jax import tables
from mixer_jax.data import datasets
from mixer_jax.errors import InputError

GRID = (0.003, 0.01, 0.03, 0.06)
VTAB_GRID = (0.003, 0.01, 0.03)
NUM_SEEDS = 3
FIVE = ("imagenet2012", "cifar10", "cifar100", "oxford_iiit_pet", "oxford_flowers102")
"""The data sets of the paper's "Avg 5"."""


@dataclasses.dataclass(frozen=True)
class Transfer:
  """One cell of the table: weights, a data set, and the image size in pixels."""

  weights: str
  dataset: str
  size: int

  @property
  def name(self) -> str:
    """Directory of its runs."""
    clean = [re.sub(r"[^A-Za-z0-9._-]+", "-", t).strip("-.") for t in (self.weights, self.dataset)]
    if not all(clean):
      raise InputError(f"{self.weights!r} and {self.dataset!r} make no name of a directory.")
    return "/".join([*clean, str(self.size)])


@dataclasses.dataclass(frozen=True)
class Run:
  """A training run: judged on "dev" for the grid, on "test" for the report."""

  transfer: Transfer
  lr: float
  seed: int
  judge: str

  @property
  def name(self) -> str:
    """Its directory below the results."""
    return f"{self.transfer.name}/{self.judge}-lr{self.lr:g}-seed{self.seed}"

  @property
  def argument(self) -> str:
    """The argument of configs/finetune.py that makes its configuration, apart from the seed."""
    t = self.transfer
    return f"weights={t.weights},dataset={t.dataset},size={t.size},lr={self.lr},judge={self.judge}"


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


def size_of(dataset: str, size: int | None, pretrained_size: int) -> int:
  """Returns the image size: as given; for VTAB-1k, 224 and 448 by the size of its images; else unchanged."""
  if size is not None:
    return size
  if dataset in datasets.VTAB and not datasets.VTAB[dataset].small:
    return 2 * pretrained_size
  return pretrained_size


def grid_runs(transfer: Transfer, lrs: Sequence[float] | None) -> list[Run]:
  """Returns the runs of the grid."""
  grid = lrs or (VTAB_GRID if transfer.dataset in datasets.VTAB else GRID)
  return [Run(transfer, lr, 0, "dev") for lr in grid]


def best_lr(transfer: Transfer, lrs: Sequence[float] | None, results: Results) -> float | None:
  """Returns the rate with the best top-1 on the development split (the lowest of equals).

  None while a run of the grid is missing.
  """
  runs = grid_runs(transfer, lrs)
  if any(r.name not in results for r in runs):
    return None
  return min(runs, key=lambda r: (-results[r.name], r.lr)).lr


def test_runs(
  transfer: Transfer, lrs: Sequence[float] | None, num_seeds: int, results: Results
) -> list[Run]:
  """Returns the runs that are reported; none while the grid is not finished."""
  lr = best_lr(transfer, lrs, results)
  return [] if lr is None else [Run(transfer, lr, seed, "test") for seed in range(num_seeds)]


def open_runs(
  transfers: Sequence[Transfer], lrs: Sequence[float] | None, num_seeds: int, results: Results
) -> list[Run]:
  """Returns the runs that can be started now: they are not finished, and what they need is."""
  return [
    r
    for t in transfers
    for r in grid_runs(t, lrs) + test_runs(t, lrs, num_seeds, results)
    if r.name not in results
  ]


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the table; None: not finished. `top1` are the seeds' results."""

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


def table(
  transfers: Sequence[Transfer], lrs: Sequence[float] | None, num_seeds: int, results: Results
) -> list[Row]:
  """Returns a row for each transfer, and the averages "VTAB-1k" and "Avg 5" where they were asked for."""
  rows = []
  for t in transfers:
    runs = test_runs(t, lrs, num_seeds, results)
    done = [results[r.name] for r in runs if r.name in results]
    note = "" if len(done) == num_seeds else f"{len(done)} of {num_seeds} seeds finished"
    if 0.0 in done:
      note += f" {done.count(0.0)} diverged, counted as 0"
    rows.append(
      Row(t.weights, t.dataset, str(t.size), best_lr(t, lrs, results), done, note.strip())
    )
  for title, members in (("VTAB-1k", tuple(datasets.VTAB)), ("Avg 5", FIVE)):
    for weights in dict.fromkeys(t.weights for t in transfers):
      own = [r for r in rows if r.weights == weights and r.dataset in members]
      if {r.dataset for r in own} == set(members):
        rows.append(_average(title, weights, own, num_seeds))
  return rows


def _average(title: str, weights: str, rows: Sequence[Row], num_seeds: int) -> Row:
  """Averages data sets seed by seed; empty unless all are finished: a mean of some would mislead."""
  finished = [r for r in rows if len(r.top1) == num_seeds]
  if len(finished) < len(rows):
    return Row(weights, title, "", None, [], f"{len(finished)} of {len(rows)} data sets finished")
  means = [statistics.mean(values) for values in zip(*(r.top1 for r in rows), strict=True)]
  return Row(weights, title, "", None, means)


_HEADER = ("weights", "data set", "px", "lr", "top-1 %", "± std", "seeds", "")


def _cells(row: Row) -> list[str]:
  def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"

  lr = "–" if row.lr is None else f"{row.lr:g}"
  mean, std = percent(row.mean), percent(row.std)
  return [row.weights, row.dataset, row.size, lr, mean, std, str(len(row.top1)), row.note]


def as_text(rows: Sequence[Row]) -> str:
  """Returns the table for a terminal."""
  return tables.as_text([_HEADER, *map(_cells, rows)])


def as_markdown(rows: Sequence[Row]) -> str:
  """Returns the table as Markdown."""
  return tables.as_markdown(_HEADER, list(map(_cells, rows))) + "\n"


def as_csv(rows: Sequence[Row]) -> str:
  """Returns the table as CSV, shares and not per cent, with a column of all seeds."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(("weights", "dataset", "size_px", "lr", "top1_mean", "top1_std", "top1_by_seed"))
  for r in rows:
    by_seed = " ".join(map(str, r.top1))
    writer.writerow((r.weights, r.dataset, r.size, r.lr, r.mean, r.std, by_seed))
  return text.getvalue()
