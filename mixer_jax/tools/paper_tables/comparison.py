"""A table of the paper's numbers beside ours: for a terminal, as Markdown, as CSV."""

import csv
import dataclasses
import io
from collections.abc import Sequence

from mixer_jax import tables

NOTHING = "–"


@dataclasses.dataclass(frozen=True)
class Comparison:
  """The paper's value and ours; None: not reported, or not computed.

  Attributes:
    paper, ours: numbers, or texts such as "7 or 14".
    digits: behind the point, of numbers.
  """

  paper: float | str | None
  ours: float | str | None
  digits: int = 0

  @property
  def difference(self) -> float | None:
    """Ours less the paper's, of the values as they are shown."""
    if isinstance(self.paper, float | int) and isinstance(self.ours, float | int):
      return round(round(self.ours, self.digits) - self.paper, self.digits)
    return None

  def texts(self) -> list[str]:
    """Returns [paper, ours, difference]; texts that differ say so."""
    if self.difference is not None:
      difference = f"{self.difference:+.{self.digits}f}" if self.difference else "0"
    elif self.paper is not None and self.ours is not None:
      difference = "equal" if self.paper == self.ours else "differs"
    else:
      difference = NOTHING
    return [self._text(self.paper), self._text(self.ours), difference.replace("-", "−")]

  def _text(self, value: float | str | None) -> str:
    if value is None:
      return NOTHING
    return value if isinstance(value, str) else f"{value:,.{self.digits}f}"


Cell = str | Comparison


@dataclasses.dataclass(frozen=True)
class MissingResult:
  """What has not been run: the commands that would produce it, in order, and what they cost."""

  what: str
  commands: Sequence[str]
  cost: str


@dataclasses.dataclass(frozen=True)
class Exclusion:
  """A result that was found and not used."""

  path: str
  reason: str


@dataclasses.dataclass(frozen=True)
class ComparisonTable:
  """A table.

  Attributes:
    title: what it is.
    header: a title for each column; a column of `Comparison` becomes three.
    rows: as many cells each.
    notes: what the reader has to know, sentences.
    missing: what has not been run.
    left_out: what was found and not used.
  """

  title: str
  header: Sequence[str]
  rows: Sequence[Sequence[Cell]]
  notes: Sequence[str] = ()
  missing: Sequence[MissingResult] = ()
  left_out: Sequence[Exclusion] = ()

  def is_comparison(self, column: int) -> bool:
    return any(isinstance(row[column], Comparison) for row in self.rows)


def as_text(sheet: ComparisonTable) -> str:
  """Returns the table for a terminal; compared cells read "paper / ours / difference"."""
  text = [sheet.title, "", tables.as_text(_joined(sheet))]
  return "\n".join(text + _remarks(sheet, "  ")) + "\n"


def as_markdown(sheet: ComparisonTable) -> str:
  """Returns the table as Markdown, its commands as code."""
  header, *lines = _joined(sheet)
  text = [f"# {sheet.title}", "", tables.as_markdown(header, lines)]
  return "\n".join(text + _remarks(sheet, "    ")) + "\n"


def as_csv(sheet: ComparisonTable) -> str:
  """Returns the table as CSV; a compared column becomes NAME (paper), (ours), (difference)."""
  header: list[str] = []
  for i, name in enumerate(sheet.header):
    parts = [f"{name} ({p})" for p in ("paper", "ours", "difference")]
    header += parts if sheet.is_comparison(i) else [name]
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(header)
  for row in sheet.rows:
    writer.writerow([value for i, cell in enumerate(row) for value in _values(sheet, i, cell)])
  return out.getvalue()


def _values(sheet: ComparisonTable, column: int, cell: Cell) -> list[float | str | None]:
  if isinstance(cell, Comparison):
    return [cell.paper, cell.ours, cell.difference]
  return [cell, None, None] if sheet.is_comparison(column) else [cell]


def _joined(sheet: ComparisonTable) -> list[list[str]]:
  return [list(sheet.header), *([_one(cell) for cell in row] for row in sheet.rows)]


def _one(cell: Cell) -> str:
  return " / ".join(cell.texts()) if isinstance(cell, Comparison) else cell


def _remarks(sheet: ComparisonTable, indent: str) -> list[str]:
  compared = any(sheet.is_comparison(i) for i in range(len(sheet.header)) if sheet.rows)
  notes = [*(["Cells: paper / ours / difference."] if compared else []), *sheet.notes]
  lines = [""] + [f"- {note}" for note in notes]
  if sheet.missing:
    lines += ["", "Not run, and the commands that would:", ""]
  for item in sheet.missing:
    lines += [f"- {item.what} ({item.cost})", ""] + [indent + c for c in item.commands] + [""]
  if sheet.left_out:
    lines += ["", "Found and left out:", ""]
    lines += [f"- {item.path}: {item.reason}" for item in sheet.left_out]
  return lines
