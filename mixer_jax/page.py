"""Reports as web pages: one file with its pictures in it, which needs no network and runs no script.

Every function returns a piece of HTML, and `whole` the page of such pieces. Text is escaped here, wherever it comes from.
"""

import base64
import html
from collections.abc import Iterable, Sequence

from mixer_jax import printing

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 0 auto; padding: 0 1rem 2rem; }
h1, h2 { line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
p { max-width: 45rem; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; }
figure { margin: 0; }
.scroll { overflow-x: auto; }
.scroll img { max-width: max(100%, 60rem); }
.panels { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }
.tiles { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(6rem, 1fr)); }
.tiles img { width: 100%; }
.tiles figcaption { font-size: .8rem; line-height: 1.3; overflow-wrap: anywhere; }
.marked figcaption { color: #b3171b; font-weight: 600; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #eee; vertical-align: top; }
pre { background: #f6f6f6; padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def _text(text: object) -> str:
  return html.escape(printing.printable(str(text)))


def heading(text: str) -> str:
  return f"<h2>{_text(text)}</h2>"


def paragraph(text: str) -> str:
  return f"<p>{_text(text)}</p>"


def code(text: str) -> str:
  return f"<pre>{_text(text)}</pre>"


def folded(summary: str, part: str) -> str:
  """Returns a part that the reader opens."""
  return f"<details><summary>{_text(summary)}</summary>{part}</details>"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
  """Returns a table; without a header where that is empty."""

  def line(tag: str, cells: Sequence[object]) -> str:
    return f"<tr>{''.join(f'<{tag}>{_text(cell)}</{tag}>' for cell in cells)}</tr>"

  lines = [line("th", header)] if header else []
  lines += [line("td", row) for row in rows]
  return wide(f"<table>{''.join(lines)}</table>")


def picture(png: bytes, description: str) -> str:
  """Returns a picture, with the text that stands for it where it cannot be seen."""
  data = base64.b64encode(png).decode()
  return f'<img src="data:image/png;base64,{data}" alt="{_text(description)}">'


def wide(part: str) -> str:
  """Returns a part over the whole width, which a narrow window scrolls."""
  return f'<div class="scroll">{part}</div>'


def panels(parts: Iterable[str]) -> str:
  """Returns parts side by side, as many as the window is wide for."""
  return f'<div class="panels">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def tiles(captioned: Iterable[tuple[bytes, str, bool]]) -> str:
  """Returns small pictures of (PNG, caption, whether it is marked)."""
  figures = [
    f"<figure{' class=marked' if marked else ''}>{picture(png, caption)}<figcaption>{_text(caption)}</figcaption></figure>"
    for png, caption, marked in captioned
  ]
  return f'<div class="tiles">{"".join(figures)}</div>'


def whole(title: str, parts: Iterable[str]) -> str:
  """Returns the page."""
  return "\n".join(
    [
      '<!doctype html><html lang="en"><head><meta charset="utf-8">',
      f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>",
      f"<h1>{_text(title)}</h1>",
      *parts,
      "</body></html>\n",
    ]
  )
