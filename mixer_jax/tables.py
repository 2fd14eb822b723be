"""Tables of text, for a terminal, as Markdown and as CSV."""

import csv
import io
from collections.abc import Collection, Iterable, Sequence
from typing import Any


def as_text(lines: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
  """Returns the lines in columns, two blanks apart.

  Args:
    lines: the cells of each, the header's first; equally many.
    right: columns that are aligned to the right.
  """
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

  def aligned(i: int, cell: str) -> str:
    return cell.rjust(widths[i]) if i in right else cell.ljust(widths[i])

  return "\n".join("  ".join(aligned(i, c) for i, c in enumerate(line)).rstrip() for line in lines)


def as_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a Markdown table; bars in cells are escaped."""
  escaped = [[c.replace("|", "\\|") for c in line] for line in (header, *rows)]
  return "\n".join(
    f"| {' | '.join(line)} |" for line in (escaped[0], ["---"] * len(header), *escaped[1:])
  )


def as_csv(lines: Iterable[Iterable[Any]]) -> str:
  """Returns the lines as CSV, the header's first."""
  text = io.StringIO()
  csv.writer(text, lineterminator="\n").writerows(lines)
  return text.getvalue()
