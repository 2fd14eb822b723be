"""Figures of a run: learning curves, and evaluation images with their predictions."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from mixer_jax import figures, schema
from mixer_jax.data import ops

_COLUMNS, _LINES = 12, 4  # of predictions
_BEFORE = 100  # points of the learning rate, at most, before the first record
_TILE_PX = 128  # the longer side of an image on a page
Points = list[tuple[int, float]]


class Panel(NamedTuple):
  """A diagram of lines, name -> (step, value); unit, log and from_zero are those of its vertical axis."""

  title: str
  unit: str
  lines: dict[str, Points]
  log: bool = False
  from_zero: bool = False


def panels(
  records: list[dict[str, Any]],
  options: schema.Options,
  evaluator: str,
  learning_rate: Callable[[np.ndarray], np.ndarray],
  *,
  log_loss: bool = False,
) -> list[Panel]:
  """Returns the diagrams of the records of a run's metrics.jsonl, without those that nothing was logged for.

  Args:
    records, options: of the run.
    evaluator: name of a classification.
    learning_rate: steps -> their learning rates; it draws those before the first record, where warm-up may lie.
    log_loss: whether the axis of the loss is logarithmic.
  """
  top1 = _points(records, f"{evaluator}/top1", 100)
  loss = {"training": _points(records, "loss"), evaluator: _points(records, f"{evaluator}/loss")}
  rate, fast = _points(records, "lr"), timed(records)
  if rate and rate[0][0] > 1:
    before = np.unique(np.linspace(1, rate[0][0] - 1, _BEFORE, dtype=int))
    rate[:0] = zip(before.tolist(), learning_rate(before).tolist(), strict=True)
  speed, wait = _points(fast, "images_per_sec"), _points(fast, "data_wait", 100)
  every = [
    Panel("loss", f"{options.loss}, mean of the {options.examples}", loss, log_loss),
    Panel(f"top-1 of {evaluator}", f"% of the {options.examples}", {evaluator: top1}),
    Panel("learning rate", "learning rate", {"": rate}),
    Panel("throughput", f"{options.examples}/s of all devices", {"": speed}, from_zero=True),
    Panel("waiting for data", "% of the time", {"": wait}, from_zero=True),
  ]
  return [panel for panel in every if any(panel.lines.values())]


def _points(records: list[dict[str, Any]], name: str, factor: float = 1.0) -> Points:
  return [(r["step"], factor * r[name]) for r in records if name in r]


def timed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns the records without that of a first step, whose time is compilation."""
  return [r for r in records if r.get("images_per_sec") != 0]


def learning_curves(every: Sequence[Panel], title: str) -> Any:
  """Returns a figure of all diagrams."""
  columns = min(3, max(1, len(every)))
  lines = max(1, -(-len(every) // columns))
  figure = figures.empty(4.2 * columns, 3.3 * lines + 0.4)
  figure.suptitle(figures.label(title))
  grid = figure.subplots(lines, columns, squeeze=False).ravel()
  for axes, panel in zip(grid, every, strict=False):
    _draw(axes, panel)
  for axes in grid[len(every) :]:
    axes.set_axis_off()
  return figure


def draw(panel: Panel) -> Any:
  """Returns a figure of one diagram."""
  figure = figures.empty(4.2, 3.2)
  _draw(figure.subplots(), panel)
  return figure


def _draw(axes: Any, panel: Panel) -> None:
  for name, points in panel.lines.items():
    if points:
      marker = "o" if len(points) < 20 else None
      axes.plot(*zip(*points, strict=True), label=name, marker=marker, markersize=3)
  axes.set(title=panel.title, xlabel="step", ylabel=panel.unit)
  axes.set_xlim(left=0)
  if panel.from_zero:
    axes.set_ylim(bottom=0)
  axes.xaxis.get_major_locator().set_params(integer=True)
  if panel.log:
    axes.set_yscale("log")
  axes.grid(alpha=0.3)
  if len(panel.lines) > 1:
    axes.legend()


class Sample(NamedTuple):
  """An evaluated image uint8 (h, w, 3 or 4), the text of its prediction, and whether that is wrong."""

  image: np.ndarray
  text: str
  wrong: bool

  def tile(self) -> tuple[bytes, str, bool]:
    """Returns it as a PNG that is small enough for a page, with its text and whether it is wrong."""
    scale = _TILE_PX / max(self.image.shape[:2])
    scale = int(scale) or scale  # squares of whole pixels
    how = cv2.INTER_NEAREST if scale > 1 else cv2.INTER_AREA
    image = cv2.resize(self.image, None, fx=scale, fy=scale, interpolation=how)
    channels = cv2.COLOR_RGBA2BGRA if image.shape[2] == 4 else cv2.COLOR_RGB2BGR
    return cv2.imencode(".png", cv2.cvtColor(image, channels))[1].tobytes(), self.text, self.wrong


def samples(source: Any, rows: dict[str, np.ndarray], image_channels: int) -> list[Sample]:
  """Returns images, or four frames of videos, with their predictions; the wrong ones first."""
  wrong = rows["top1"] == 0
  found = []
  for i in np.argsort(~wrong, kind="stable")[: _COLUMNS * _LINES]:
    image = picture(source[int(rows["index"][i])]["image"], max(image_channels, 3))
    text = _names(source, rows["prediction"][i])
    if wrong[i]:
      text += f", is {_names(source, rows['label'][i])}"
    found.append(Sample(image, text, bool(wrong[i])))
  return found


def picture(encoded: bytes | Sequence[bytes], channels: int) -> np.ndarray:
  """Returns the pixels of an image, or of four frames of a video, two beside and two below."""
  if isinstance(encoded, bytes):
    return ops.decode_image(encoded, channels)
  places = np.linspace(0, len(encoded) - 1, 4).round().astype(int)
  frames = [ops.decode_image(encoded[i], channels) for i in places]
  return np.vstack([np.hstack(frames[:2]), np.hstack(frames[2:])])


def predictions(
  shown: Sequence[Sample], title: str, columns: int = _COLUMNS, width: float = 0.9
) -> Any:
  """Returns a figure of images with the predicted class, in red where it is wrong; `width` of each in inches."""
  lines = max(1, -(-len(shown) // columns))
  figure = figures.empty(columns * width, lines * (width + 0.25) + 0.5)
  figure.suptitle(figures.label(title), fontsize=10)
  grid = figure.subplots(lines, columns, squeeze=False).ravel()
  for axes in grid:
    axes.set_axis_off()
  for axes, (image, text, wrong) in zip(grid, shown, strict=False):
    axes.imshow(image, interpolation="nearest")
    colour = "tab:red" if wrong else "black"
    axes.set_title(figures.label(text), fontsize=8, color=colour, pad=2)
  return figure


def _names(source: Any, classes: np.ndarray) -> str:
  """Returns the names of one class or of a list padded with −1; numbers where they have no names."""
  ids = [int(i) for i in np.atleast_1d(classes) if i >= 0]
  names = source.class_names or []
  return ", ".join(names[i] if i < len(names) else str(i) for i in ids)
