"""A table of the paper's numbers beside ours: for a terminal, as Markdown, as CSV."""

import dataclasses
from collections.abc import Sequence

from mixer_jax import tables

NOTHING = "–"


@dataclasses.dataclass(frozen=True)
class Comparison:
  """The paper's value and ours. None if a value is not reported, or not computed.

  Attributes:
    paper, ours: numbers, or texts such as "7 or 14".
    digits: digits of numbers after the decimal point.
  """

  paper: float | str | None
  ours: float | str | None
  digits: int = 0

  @property
  def difference(self) -> float | None:
    """Our value minus the paper's, both as they are shown."""
    if isinstance(self.paper, float | int) and isinstance(self.ours, float | int):
      return round(round(self.ours, self.digits) - self.paper, self.digits)
    return None

  def texts(self) -> list[str]:
    """Returns [paper, ours, difference]. Of texts the difference is "equal" or "differs"."""
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
  """A result that is missing: the commands that would produce it, in order, and what they cost."""

  what: str
  commands: Sequence[str]
  cost: str


@dataclasses.dataclass(frozen=True)
class Exclusion:
  """A result that was found and not used, with the reason."""

  path: str
  reason: str


@dataclasses.dataclass(frozen=True)
class ComparisonTable:
  """A table; its rows have as many cells as the header, its notes are sentences printed below it."""

  title: str
  header: Sequence[str]
  rows: Sequence[Sequence[Cell]]
  notes: Sequence[str] = ()
  missing: Sequence[MissingResult] = ()
  left_out: Sequence[Exclusion] = ()

  def column(self, name: str) -> list[Cell]:
    index = list(self.header).index(name)
    return [row[index] for row in self.rows]

  def is_comparison(self, name: str) -> bool:
    return any(isinstance(cell, Comparison) for cell in self.column(name))


def as_text(table: ComparisonTable) -> str:
  """Returns the table for a terminal, below what has not been run; compared cells read "paper / ours / difference"."""
  text = [table.title, "", tables.as_text(_joined(table)), *_notes(table)]
  return "\n".join([*_not_used(table, "  "), "", *text]).lstrip() + "\n"


def as_markdown(table: ComparisonTable) -> str:
  """Returns the table as Markdown, its commands as code."""
  header, *lines = _joined(table)
  text = [f"# {table.title}", "", tables.as_markdown(header, lines)]
  return "\n".join([*text, *_notes(table), *_not_used(table, "    ")]) + "\n"


def as_csv(table: ComparisonTable) -> str:
  """Returns the table as CSV; a compared column becomes NAME (paper), (ours), (difference)."""
  columns = []
  for name in table.header:
    cells = table.column(name)
    if not table.is_comparison(name):
      columns.append([name, *cells])
      continue
    for part in ("paper", "ours", "difference"):
      values = [getattr(c, part) if isinstance(c, Comparison) else None for c in cells]
      columns.append([f"{name} ({part})", *values])
  return tables.as_csv(zip(*columns, strict=True))


def _joined(table: ComparisonTable) -> list[list[str]]:
  """Returns the header and the rows as texts."""
  lines = [
    [" / ".join(c.texts()) if isinstance(c, Comparison) else c for c in r] for r in table.rows
  ]
  return [list(table.header), *lines]


def _notes(table: ComparisonTable) -> list[str]:
  notes = list(table.notes)
  if any(map(table.is_comparison, table.header)):
    notes.insert(0, "Cells: paper / ours / difference.")
  return [""] + [f"- {note}" for note in notes]


def _not_used(table: ComparisonTable, indent: str) -> list[str]:
  """Returns lines of the results that are missing or left out."""
  lines = []
  if table.missing:
    lines += ["", "Not run, with the commands that run it:", ""]
  for item in table.missing:
    lines += [f"- {item.what} ({item.cost})", ""] + [indent + c for c in item.commands] + [""]
  if table.left_out:
    lines += ["", "Found and left out:", ""]
    lines += [f"- {item.path}: {item.reason}" for item in table.left_out]
  return lines
