"""Figures of a run: learning curves, and evaluation images with their predictions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mixer_jax import figures
from mixer_jax.data import ops

_FRAMES = 4  # of a video, that are drawn


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
  """Returns a figure of images, or of frames of videos, with the predicted class; the wrong ones first, in red."""
  frames = 1 if isinstance(source[0]["image"], bytes) else _FRAMES
  columns, lines = 12 // frames, 4 * frames
  wrong = rows["top1"] == 0
  order = np.argsort(~wrong, kind="stable")[: columns * lines]
  figure = figures.empty(columns * frames * 0.9, lines * 1.15 + 0.5)
  figure.suptitle(f"{int(wrong.sum())} of {len(wrong)} wrong (red: predicted, true)", fontsize=10)
  grid = figure.subplots(lines, columns, squeeze=False).ravel()
  for axes in grid:
    axes.set_axis_off()
  for axes, i in zip(grid, order, strict=False):
    encoded = source[int(rows["index"][i])]["image"]
    axes.imshow(_picture(encoded, max(image_channels, 3)), interpolation="nearest")
    text = _names(source, rows["prediction"][i])
    if wrong[i]:
      text += f", is {_names(source, rows['label'][i])}"
    axes.set_title(figures.label(text), fontsize=8, color="tab:red" if wrong[i] else "black", pad=2)
  return figure


def _picture(encoded: bytes | Sequence[bytes], channels: int) -> np.ndarray:
  """Returns the pixels of an image, or of frames of a video, one beside the other."""
  if isinstance(encoded, bytes):
    return ops.decode_image(encoded, channels)
  places = np.linspace(0, len(encoded) - 1, _FRAMES).round().astype(int)
  return np.hstack([ops.decode_image(encoded[i], channels) for i in places])


def _names(source: Any, classes: np.ndarray) -> str:
  """Returns the names of one class or of a list padded with −1; numbers where they have no names."""
  ids = [int(i) for i in np.atleast_1d(classes) if i >= 0]
  names = source.class_names or []
  return ", ".join(names[i] if i < len(names) else str(i) for i in ids)
