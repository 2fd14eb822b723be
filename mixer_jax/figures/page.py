"""A page of HTML that needs nothing else: pictures inside, no scripts, no fonts of others, wide and narrow."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 64rem; color: #1a1a1a; background: #fff;
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
img { display: block; max-width: 100%; height: auto; margin: 0.8rem 0; }
.beside { display: flex; flex-wrap: wrap; gap: 0.8rem; align-items: flex-start; }
.beside img { flex: 1 1 18rem; width: 18rem; max-width: 26rem; min-width: 0; margin: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 0.6rem; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #999; }
pre { overflow-x: auto; padding: 0.6rem; background: #f4f4f4; font-size: 0.8rem; }
code { background: #f4f4f4; font-size: 0.85em; }
.holds { color: #0a6b2d; font-weight: 600; } .does-not-hold { color: #a5121b; font-weight: 600; }
.within-noise, .not-run { color: #555; font-weight: 600; }
@media (max-width: 40rem) {
  body { padding: 0.7rem; font-size: 15px; }
  table.stacked thead { display: none; }
  table.stacked tr { display: block; padding: 0.6rem 0; border-bottom: 1px solid #bbb; }
  table.stacked td { display: block; border: 0; padding: 0.1rem 0; }
  table.stacked td::before { content: attr(data-title) ": "; color: #555; font-size: 0.8rem; }
}
"""


def text(value: object) -> str:
  """Returns the value as HTML text."""
  return html.escape(str(value))


def paragraph(value: object) -> str:
  return f"<p>{text(value)}</p>"


def heading(value: object, level: int = 2) -> str:
  return f"<h{level}>{text(value)}</h{level}>"


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, stacked: bool = False) -> str:
  """Returns a table that scrolls by itself where it is too wide.

  Args:
    header: titles of the columns.
    rows: cells; a cell that is one of the page's verdicts is coloured.
    stacked: on a narrow screen show each row as a list instead.
  """
  head = "".join(f"<th>{text(h)}</th>" for h in header)
  body = "".join(
    "<tr>" + "".join(_cell(h, c) for h, c in zip(header, row, strict=True)) + "</tr>"
    for row in rows
  )
  kind = ' class="stacked"' if stacked else ""
  return f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(title: str, value: object) -> str:
  style = str(value).replace(" ", "-")
  kind = (
    f' class="{style}"' if style in ("holds", "does-not-hold", "within-noise", "not-run") else ""
  )
  return f'<td data-title="{html.escape(title)}"{kind}>{text(value)}</td>'


def picture(figure: Any, description: str, *, dpi: int = 110) -> str:
  """Returns a matplotlib figure as an image inside the page."""
  data = io.BytesIO()
  figure.savefig(data, format="png", dpi=dpi)
  return image(data.getvalue(), description)


def image(png: bytes, description: str) -> str:
  encoded = base64.b64encode(png).decode()
  return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{encoded}">'


def beside(*images: str) -> str:
  """Returns images in a row, below each other where there is no room."""
  return f'<div class="beside">{"".join(images)}</div>'


def code(value: str) -> str:
  return f"<pre>{text(value)}</pre>"


def details(summary: str, *parts: str) -> str:
  """Returns what is shown when asked for."""
  return f"<details><summary>{text(summary)}</summary>{''.join(parts)}</details>"


def document(title: str, parts: Sequence[str]) -> str:
  """Returns the whole page."""
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    # Without it a browser asks the site for one.
    '<link rel="icon" href="data:,">'
    f"<title>{text(title)}</title><style>{_STYLE}</style></head><body>\n"
    f"{heading(title, 1)}\n" + "\n".join(parts) + "\n</body></html>\n"
  )
