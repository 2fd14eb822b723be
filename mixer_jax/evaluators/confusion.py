"""Accuracy of each class, and which classes are taken for which: table, CSV files and picture.

For single-label data with k classes. The matrix is sparse: 21 843 classes have 477 million pairs, few of which occur.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int
from scipy import sparse

from mixer_jax import figures, tables
from mixer_jax.errors import InputError

MATRIX_CLASSES = 40  # more are not readable as a matrix
LISTED = 20  # classes, and pairs, that a table or picture lists of many
_NAME_WIDTH = 24


@dataclasses.dataclass(frozen=True)
class Confusion:
  """How often a class was taken for another.

  Attributes:
    names: of the k classes.
    matrix: (k, k) number of images, row the true class, column the predicted one.
  """

  names: Sequence[str]
  matrix: Any

  @property
  def count(self) -> Int[np.ndarray, " k"]:
    return self.matrix.sum(axis=1)

  @property
  def correct(self) -> Int[np.ndarray, " k"]:
    return self.matrix.diagonal()

  @property
  def accuracy(self) -> Float[np.ndarray, " k"]:
    """Share of each class's images that were predicted right; NaN for a class without images."""
    with np.errstate(invalid="ignore"):
      return self.correct / self.count

  def pairs(self) -> list[tuple[int, int, int]]:
    """Returns (true class, predicted class, images) of the pairs that occur, ordered by class."""
    pairs = self.matrix.tocoo()
    return sorted(zip(*(x.tolist() for x in (pairs.row, pairs.col, pairs.data)), strict=True))

  def confusions(self) -> list[tuple[str, str, int]]:
    """Returns (true class, predicted class, images) of the most frequent errors."""
    wrong = sorted((p for p in self.pairs() if p[0] != p[1]), key=lambda pair: -pair[2])[:LISTED]
    return [(_shorten(self.names[a]), _shorten(self.names[b]), n) for a, b, n in wrong]

  def seen(self) -> Int[np.ndarray, " s"]:
    """Returns the classes that have images, the least accurate first."""
    seen = np.flatnonzero(self.count)
    return seen[np.argsort(self.accuracy[seen], kind="stable")]


def count(
  rows: dict[str, np.ndarray], num_classes: int, names: Sequence[str] | None = None
) -> Confusion:
  """Counts the evaluation's outputs.

  Args:
    rows: of Classification.rows: prediction and label, (n,) each.
    num_classes: k.
    names: of the classes; a class without a name is called by its number.

  Raises:
    InputError: images with several labels, of which none was mistaken for another.
  """
  label, prediction = rows["label"], rows["prediction"]
  if label.ndim != 1:
    raise InputError("accuracy by class needs data with one label an image.")
  pairs = (np.ones(len(label), np.int64), (label, prediction))
  names = list(names or [])[:num_classes]
  return Confusion(
    names=names + [str(i) for i in range(len(names), num_classes)],
    matrix=sparse.coo_array(pairs, shape=(num_classes, num_classes)).tocsr(),
  )


def table(confusion: Confusion) -> str:
  """Returns a text: every class, or of many the worst, and the most frequent confusions."""
  k, seen = len(confusion.names), confusion.seen()
  title, listed = "accuracy by class", range(k)
  if k > MATRIX_CLASSES:
    listed = seen[:LISTED].tolist()
    title = f"the {len(listed)} worst of {len(seen)} classes"
  lines, total, accuracy = [title], confusion.count, confusion.accuracy
  for i in listed:
    share = f"{accuracy[i]:.4f}" if total[i] else "     –"
    lines.append(f"  {_shorten(confusion.names[i]):<{_NAME_WIDTH}}  {share}  of {total[i]:>6}")
  wrong = confusion.confusions()
  lines.append("most frequent confusions" if wrong else "no confusions")
  for true, predicted, n in wrong:
    lines.append(f"  {true:<{_NAME_WIDTH}}  taken for  {predicted:<{_NAME_WIDTH}}  {n:>6}")
  return "\n".join(lines)


def _shorten(name: str) -> str:
  return name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 1] + "…"


def save(directory: epath.Path, confusion: Confusion) -> list[epath.Path]:
  """Writes classes.csv, confusions.csv and confusions.png to the directory, which exists; returns their paths.

  classes.csv has a line for each class, confusions.csv one for each pair of true and predicted class
  that occurs.
  """
  names = confusion.names
  columns = (confusion.count, confusion.correct, confusion.accuracy)
  classes = zip(range(len(names)), names, *columns, strict=True)
  pairs = ((a, names[a], b, names[b], n) for a, b, n in confusion.pairs())
  files = {
    "classes.csv": [("class", "name", "count", "correct", "accuracy"), *classes],
    "confusions.csv": [("label", "label_name", "prediction", "prediction_name", "times"), *pairs],
  }
  for name, lines in files.items():
    (directory / name).write_text(tables.as_csv(lines))
  with (directory / "confusions.png").open("wb") as f:
    figure(confusion).savefig(f, format="png", dpi=120)
  return [directory / name for name in (*files, "confusions.png")]


def figure(confusion: Confusion) -> Any:
  """Returns a picture: the matrix of up to 40 classes; of more, the worst classes and confusions."""
  k = len(confusion.names)
  side = 2.5 + 0.36 * k
  picture = figures.empty(*(14, 6) if k > MATRIX_CLASSES else (side + 0.8, side))
  if k > MATRIX_CLASSES:
    _draw_worst(picture.subplots(1, 3), confusion)
  else:
    _draw_matrix(picture.subplots(), confusion)
  return picture


def _draw_matrix(axes: Any, confusion: Confusion) -> None:
  """Colours are shares of the true class, numbers are images."""
  matrix, total = confusion.matrix.toarray(), confusion.count
  share = matrix / np.maximum(total, 1)[:, None]
  axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
  names = [figures.label(_shorten(n)) for n in confusion.names]
  axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
  axes.set_yticks(range(len(names)), names, fontsize=8)
  axes.set(xlabel="predicted", ylabel="true")
  axes.set_title(f"{confusion.correct.sum()} of {total.sum()} right", fontsize=10)
  for i, j in zip(*np.nonzero(matrix), strict=True):
    colour = "white" if share[i, j] > 0.5 else "black"
    axes.text(j, i, matrix[i, j], ha="center", va="center", fontsize=7, color=colour)


def _draw_worst(axes: Sequence[Any], confusion: Confusion) -> None:
  histogram, classes, pairs = axes
  seen, accuracy = confusion.seen(), confusion.accuracy
  histogram.hist(accuracy[seen], bins=20, range=(0, 1))
  histogram.set(xlabel="accuracy of a class", ylabel="classes")
  worst = [(_shorten(confusion.names[i]), accuracy[i]) for i in map(int, seen[:LISTED])]
  _bars(classes, worst, f"worst of {len(seen)} classes")
  wrong = [(f"{a} → {b}", n) for a, b, n in confusion.confusions()]
  _bars(pairs, wrong, "confusions: true → predicted")


def _bars(axes: Any, bars: Sequence[tuple[str, Any]], title: str) -> None:
  axes.barh(range(len(bars)), [value for _, value in bars])
  axes.set_yticks(range(len(bars)), [figures.label(name) for name, _ in bars], fontsize=7)
  axes.invert_yaxis()
  axes.set_title(title, fontsize=10)
