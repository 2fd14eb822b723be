"""Accuracy of each class, and which classes are taken for which: table, CSV files and picture.

From the evaluation's rows of single-label data; k classes. What is kept are the pairs that occur, so
that 21 843 classes need no table of 477 million numbers.
"""

import csv
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from mixer_jax.errors import InputError

MATRIX_CLASSES = 40  # more are not readable as a matrix
LISTED = 20  # classes, and pairs, that a table or picture lists of many
_NAME_WIDTH = 24


@dataclasses.dataclass(frozen=True)
class Confusion:
  """How often a class was taken for another.

  Attributes:
    names: of the k classes.
    count: images of each class.
    correct: those that were predicted right.
    label, prediction, times: the pairs that occur, right ones included, ordered by label, then
      prediction.
  """

  names: Sequence[str]
  count: Int[np.ndarray, " k"]
  correct: Int[np.ndarray, " k"]
  label: Int[np.ndarray, " p"]
  prediction: Int[np.ndarray, " p"]
  times: Int[np.ndarray, " p"]

  @property
  def accuracy(self) -> Float[np.ndarray, " k"]:
    """Share of each class's images that were predicted right; NaN for a class without images."""
    with np.errstate(invalid="ignore"):
      return self.correct / self.count

  def matrix(self) -> Int[np.ndarray, "k k"]:
    """Returns the matrix of times: row the true class, column the predicted one."""
    matrix = np.zeros((len(self.names), len(self.names)), np.int64)
    matrix[self.label, self.prediction] = self.times
    return matrix

  def confused(self) -> Int[np.ndarray, " q"]:
    """Returns the positions of the wrong pairs, the most frequent first."""
    wrong = np.flatnonzero(self.label != self.prediction)
    return wrong[np.argsort(-self.times[wrong], kind="stable")]


def count(
  rows: dict[str, np.ndarray], num_classes: int, names: Sequence[str] | None = None
) -> Confusion:
  """Counts the evaluation's rows.

  Args:
    rows: of classification.evaluate: prediction and label, (n,) each.
    num_classes: k.
    names: of the classes; classes without a name are called by their number.

  Raises:
    InputError: images with several labels, of which none was mistaken for another.
  """
  label, prediction = rows["label"].astype(np.int64), rows["prediction"].astype(np.int64)
  if label.ndim != 1:
    raise InputError("accuracy by class needs data with one label an image.")
  pairs, times = np.unique(label * num_classes + prediction, return_counts=True)
  names = list(names or [])[:num_classes]
  return Confusion(
    names=names + [str(i) for i in range(len(names), num_classes)],
    count=np.bincount(label, minlength=num_classes),
    correct=np.bincount(label[label == prediction], minlength=num_classes),
    label=pairs // num_classes,
    prediction=pairs % num_classes,
    times=times,
  )


def table(confusion: Confusion) -> str:
  """Returns a text: every class, or of many the worst, and the most frequent confusions."""
  names, accuracy = confusion.names, confusion.accuracy
  seen = np.flatnonzero(confusion.count)
  if len(names) <= MATRIX_CLASSES:
    title, listed = "accuracy by class", np.arange(len(names))
  else:
    title = f"the {min(LISTED, len(seen))} worst of {len(seen)} classes"
    listed = seen[np.argsort(accuracy[seen], kind="stable")[:LISTED]]
  lines = [title]
  for i in map(int, listed):
    share = f"{accuracy[i]:.4f}" if confusion.count[i] else "     –"
    lines.append(f"  {_shorten(names[i]):<{_NAME_WIDTH}}  {share}  of {confusion.count[i]:>6}")
  wrong = confusion.confused()[:LISTED]
  lines.append("most frequent confusions" if len(wrong) else "no confusions")
  for p in wrong:
    true, predicted = names[int(confusion.label[p])], names[int(confusion.prediction[p])]
    lines.append(
      f"  {_shorten(true):<{_NAME_WIDTH}}  taken for  {_shorten(predicted):<{_NAME_WIDTH}}"
      f"  {confusion.times[p]:>6}"
    )
  return "\n".join(lines)


def _shorten(name: str) -> str:
  return name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 1] + "…"


def save(directory: epath.Path, confusion: Confusion) -> list[epath.Path]:
  """Writes classes.csv, confusions.csv and confusions.png to the directory, which exists; returns their paths.

  classes.csv has a line for each class, confusions.csv one for each pair of true and predicted class
  that occurs.
  """
  names, accuracy = confusion.names, confusion.accuracy
  classes = [
    (i, names[i], confusion.count[i], confusion.correct[i], accuracy[i]) for i in range(len(names))
  ]
  pairs = [
    (a, names[a], b, names[b], n)
    for a, b, n in zip(confusion.label, confusion.prediction, confusion.times, strict=True)
  ]
  picture = io.BytesIO()
  figure(confusion).savefig(picture, format="png", dpi=120)
  contents = {
    "classes.csv": _csv(("class", "name", "count", "correct", "accuracy"), classes),
    "confusions.csv": _csv(
      ("label", "label_name", "prediction", "prediction_name", "times"), pairs
    ),
    "confusions.png": picture.getvalue(),
  }
  for name, content in contents.items():
    (directory / name).write_bytes(content)
  return [directory / name for name in contents]


def _csv(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> bytes:
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(header)
  writer.writerows(lines)
  return text.getvalue().encode()


def figure(confusion: Confusion) -> Any:
  """Returns a picture: the matrix of up to 40 classes; of more, the worst classes and confusions."""
  from matplotlib.figure import Figure

  k = len(confusion.names)
  if k > MATRIX_CLASSES:
    picture = Figure(figsize=(14, 6), layout="constrained")
    _draw_worst(picture, confusion)
    return picture
  side = 2.5 + 0.36 * k
  picture = Figure(figsize=(side + 0.8, side), layout="constrained")
  _draw_matrix(picture.subplots(), confusion)
  return picture


def _draw_matrix(axes: Any, confusion: Confusion) -> None:
  """Colours are shares of the true class, numbers are images."""
  matrix = confusion.matrix()
  share = matrix / np.maximum(confusion.count, 1)[:, None]
  axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
  names = [_shorten(n) for n in confusion.names]
  axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
  axes.set_yticks(range(len(names)), names, fontsize=8)
  axes.set_xlabel("predicted")
  axes.set_ylabel("true")
  axes.set_title(f"{confusion.correct.sum()} of {confusion.count.sum()} right", fontsize=10)
  for i, j in zip(*np.nonzero(matrix), strict=True):
    colour = "white" if share[i, j] > 0.5 else "black"
    axes.text(j, i, matrix[i, j], ha="center", va="center", fontsize=7, color=colour)


def _draw_worst(picture: Any, confusion: Confusion) -> None:
  histogram, classes, pairs = picture.subplots(1, 3)
  names, accuracy = [_shorten(n) for n in confusion.names], confusion.accuracy
  seen = np.flatnonzero(confusion.count)
  histogram.hist(accuracy[seen], bins=20, range=(0, 1))
  histogram.set_xlabel("accuracy of a class")
  histogram.set_ylabel("classes")
  worst = seen[np.argsort(accuracy[seen], kind="stable")[:LISTED]]
  _bars(classes, [names[i] for i in worst], accuracy[worst], f"worst of {len(seen)} classes")
  wrong = confusion.confused()[:LISTED]
  labels = [f"{names[confusion.label[p]]} → {names[confusion.prediction[p]]}" for p in wrong]
  _bars(pairs, labels, confusion.times[wrong], "confusions: true → predicted")


def _bars(axes: Any, labels: list[str], values: np.ndarray, title: str) -> None:
  axes.barh(range(len(labels)), values)
  axes.set_yticks(range(len(labels)), labels, fontsize=7)
  axes.invert_yaxis()
  axes.set_title(title, fontsize=10)
