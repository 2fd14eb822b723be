"""Pictures of a run: learning curves, evaluation images with their predictions, a Mixer's weights."""

from typing import Any

import jax
import numpy as np
from etils import epath

from mixer_jax.data import ops
from mixer_jax.errors import InputError
from mixer_jax.figures import hidden_units
from mixer_jax.workdir import metrics


def save_all(
  workdir: epath.Path, source: Any, rows: dict[str, np.ndarray], image_channels: int
) -> list[epath.Path]:
  """Writes the pictures as PNG to `workdir/plots` and returns their paths.

  Args:
    workdir: a run's directory, with metrics.jsonl.
    source: the evaluation split.
    rows: the evaluation's rows (classification.evaluate).
    image_channels: of the model.
  """
  directory = workdir / "plots"
  directory.mkdir(exist_ok=True)
  figures = {
    "learning_curves.png": learning_curves(metrics.read_metrics(workdir)),
    "predictions.png": predictions(source, rows, image_channels),
  }
  paths = []
  for name, figure in figures.items():
    with (directory / name).open("wb") as f:
      figure.savefig(f, format="png", dpi=120)
    paths.append(directory / name)
  return paths


def save_weights(
  workdir: epath.Path, params: dict[str, Any], step: int, image_size: tuple[int, int]
) -> list[epath.Path]:
  """Writes pictures of a Mixer's weights (the paper's figures 5 and 7) to `workdir/plots`.

  Returns their paths; none for models that have no such weights, or if they are spread over processes.
  """
  leaves = jax.tree.leaves(params)
  if not all(x.is_fully_addressable or x.is_fully_replicated for x in leaves):
    return []
  try:
    images = {
      "hidden_units": hidden_units.encode_png(hidden_units.paired_mosaics(params, image_size)),
      "embedding": hidden_units.encode_png([hidden_units.filter_mosaic(params)]),
    }
  except InputError:
    return []
  directory = workdir / "plots"
  directory.mkdir(exist_ok=True)
  paths = [directory / f"{name}_step{step}.png" for name in images]
  for path, image in zip(paths, images.values(), strict=True):
    path.write_bytes(image)
  return paths


def learning_curves(records: list[dict[str, Any]]) -> Any:
  """Returns a figure: training and evaluation loss, top-1, learning rate, against the step."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(12, 3.6), layout="constrained")
  left, middle, right = figure.subplots(1, 3)
  for axes, names in (
    (left, ("loss", "evaluation/loss")),
    (middle, ("evaluation/top1",)),
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
  from matplotlib.figure import Figure

  columns, lines = 12, 4
  wrong = rows["top1"] == 0
  order = np.argsort(~wrong, kind="stable")[: columns * lines]
  figure = Figure(figsize=(columns * 0.9, lines * 1.15 + 0.5), layout="constrained")
  figure.suptitle(f"{int(wrong.sum())} of {len(wrong)} wrong (red: predicted, true)", fontsize=10)
  grid = figure.subplots(lines, columns, squeeze=False).ravel()
  for axes in grid:
    axes.set_axis_off()
  for axes, i in zip(grid, order, strict=False):
    image = ops.decode_image(source[int(rows["index"][i])]["image"], max(image_channels, 3))
    axes.imshow(image, interpolation="nearest")
    text = _names(source, rows["prediction"][i])
    if wrong[i]:
      text += f", is {_names(source, rows['label'][i])}"
    axes.set_title(text, fontsize=8, color="tab:red" if wrong[i] else "black", pad=2)
  return figure


def _names(source: Any, classes: np.ndarray) -> str:
  """Returns the names of one class or of a list padded with −1; numbers where they have no names."""
  ids = [int(i) for i in np.atleast_1d(classes) if i >= 0]
  names = source.class_names or []
  return ", ".join(names[i] if i < len(names) else str(i) for i in ids)
