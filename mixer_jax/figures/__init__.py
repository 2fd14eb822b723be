"""Pictures: learning curves, predictions, hidden units."""

import io
import os
from typing import Any


def empty(width: float, height: float) -> Any:
  """Returns matplotlib's figure of this size in inches; no window system or notebook has a part in it."""
  os.environ["MPLBACKEND"] = "agg"  # a notebook's is no backend elsewhere
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), layout="constrained")


def label(name: str) -> str:
  """Returns a name that matplotlib draws as it is, and not as a formula."""
  return name.replace("$", r"\$")


def encode(figure: Any) -> bytes:
  """Returns a figure as PNG."""
  picture = io.BytesIO()
  figure.savefig(picture, format="png", dpi=120)
  return picture.getvalue()
