"""Figures of a run: learning curves, and evaluation images with their predictions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mixer_jax import figures
from mixer_jax.data import ops


def learning_curves(records: list[dict[str, Any]], evaluator: str) -> Any:
  """Returns a figure: the loss of training and of an evaluator, its top-1, learning rate, against the step."""
  figure = figures.empty(12, 3.6)
  left, middle, right = figure.subplots(1, 3)
  for axes, names in (
    (left, ("loss", f"{evaluator}/loss")),
    (middle, (f"{evaluator}/top1",)),
    (right, ("lr",)),
  ):
    for name in names:
      points = [(r["step"], r[name]) for r in records if name in r]
      if points:
        marker = "o" if len(points) < 20 else None
        axes.plot(*zip(*points, strict=True), label=name, marker=marker, markersize=3)
    axes.set_xlabel("step")
    axes.set_title(" and ".join(names))
    axes.grid(alpha=0.3)
  left.legend()
  return figure


def predictions(source: Any, rows: dict[str, np.ndarray], image_channels: int) -> Any:
  """Returns a figure of images with the predicted class; the wrong ones first, in red."""
  wrong = rows["top1"] == 0
  cells = []
  for i in np.argsort(~wrong, kind="stable")[: 12 * 4]:
    image = ops.decode_image(source[int(rows["index"][i])]["image"], max(image_channels, 3))
    text = _names(source, rows["prediction"][i])
    if wrong[i]:
      text += f", is {_names(source, rows['label'][i])}"
    cells.append((image, text, "tab:red" if wrong[i] else "black"))
  figure = grid(cells, 12, 4, 0.9)
  figure.suptitle(f"{int(wrong.sum())} of {len(wrong)} wrong (red: predicted, true)", fontsize=10)
  return figure


def grid(
  cells: Sequence[tuple[np.ndarray, str, str]], columns: int, lines: int, width: float
) -> Any:
  """Returns a figure of images (h, w, c) with their text in its colour; `width` of each in inches."""
  figure = figures.empty(columns * width, lines * (width + 0.25) + 0.5)
  places = figure.subplots(lines, columns, squeeze=False).ravel()
  for axes in places:
    axes.set_axis_off()
  for axes, (image, text, color) in zip(places, cells, strict=False):
    axes.imshow(image, interpolation="nearest")
    axes.set_title(figures.label(text), fontsize=8, color=color, pad=2)
  return figure


def _names(source: Any, classes: np.ndarray) -> str:
  """Returns the names of one class or of a list padded with −1; numbers where they have no names."""
  ids = [int(i) for i in np.atleast_1d(classes) if i >= 0]
  names = source.class_names or []
  return ", ".join(names[i] if i < len(names) else str(i) for i in ids)
