"""Accuracy by class and confusions against scikit-learn."""

import csv

import cv2
import numpy as np
import pytest
from etils import epath
from sklearn import metrics

from mixer_jax.errors import InputError
from mixer_jax.evaluators import confusion


def _rows(num_classes, n=4000):
  """Predictions that are right two times in three; class 3 has no image and is predicted all the same."""
  rng = np.random.default_rng(num_classes)
  label = rng.integers(0, num_classes, n)
  label[label == 3] = 2
  wrong = rng.integers(0, num_classes, n)
  prediction = np.where(rng.random(n) < 2 / 3, label, wrong)
  return {"label": label.astype(np.int32), "prediction": prediction.astype(np.int32)}


@pytest.mark.parametrize("num_classes", [10, 300])
def test_counts_are_those_of_scikit_learn(num_classes):
  rows = _rows(num_classes)
  counted = confusion.count(rows, num_classes)
  wanted = metrics.confusion_matrix(
    rows["label"], rows["prediction"], labels=np.arange(num_classes)
  )
  np.testing.assert_array_equal(counted.matrix.toarray(), wanted)
  np.testing.assert_array_equal(counted.count, wanted.sum(1))
  np.testing.assert_array_equal(counted.correct, np.diag(wanted))
  off_diagonal = np.sort((wanted * (1 - np.eye(num_classes, dtype=int))).ravel())[::-1]
  listed = counted.confusions()
  assert [n for _, _, n in listed] == off_diagonal[:20].tolist()
  assert all(wanted[int(a), int(b)] == n for a, b, n in listed)


def test_files_hold_the_counts(tmp_path):
  rows = _rows(10)
  counted = confusion.count(rows, 10, ["a, b", *"bcdefghi"])
  paths = confusion.save(epath.Path(tmp_path), counted)
  assert [p.name for p in paths] == ["classes.csv", "confusions.csv", "confusions.png"]
  with paths[0].open() as f:
    classes = list(csv.DictReader(f))
  assert [c["name"] for c in classes] == ["a, b", *"bcdefghi", "9"]
  assert [int(c["correct"]) for c in classes] == counted.correct.tolist()
  assert classes[3]["accuracy"] == "nan"
  right = rows["label"] == rows["prediction"]
  assert float(classes[2]["accuracy"]) == right[rows["label"] == 2].mean()
  matrix = np.zeros((10, 10), int)
  with paths[1].open() as f:
    for pair in csv.DictReader(f):
      matrix[int(pair["label"]), int(pair["prediction"])] = int(pair["times"])
  np.testing.assert_array_equal(matrix, counted.matrix.toarray())


def test_the_table_lists_the_worst_of_many_classes():
  rows = _rows(300)
  rows["prediction"][rows["label"] == 17] = 5
  text = confusion.table(confusion.count(rows, 300, [f"name{i}" for i in range(300)]))
  lines = text.splitlines()
  assert lines[0] == "the 20 worst of 299 classes"
  assert lines[1].split()[:2] == ["name17", "0.0000"]
  times = (rows["label"] == 17).sum()
  assert lines[22].split() == ["name17", "taken", "for", "name5", str(times)]


def test_the_picture_shows_the_matrix():
  """Cells are as dark as the share of their class."""
  label = np.repeat(np.arange(4), 10).astype(np.int32)
  rows = {"label": label, "prediction": np.where(label == 2, 0, label).astype(np.int32)}
  axes = confusion.figure(confusion.count(rows, 4)).axes[0]
  shown = np.asarray(axes.images[0].get_array())
  np.testing.assert_array_equal(shown, [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
  numbers = {t.get_position(): t.get_text() for t in axes.texts}
  assert numbers == {(0, 0): "10", (1, 1): "10", (0, 2): "10", (3, 3): "10"}


def test_the_picture_of_many_classes_shows_the_worst(tmp_path):
  rows = _rows(300)
  rows["prediction"][rows["label"] == 17] = 5
  counted = confusion.count(rows, 300)
  _, classes, pairs = confusion.figure(counted).axes
  assert classes.get_yticklabels()[0].get_text() == "17"
  assert pairs.get_yticklabels()[0].get_text() == "17 → 5"
  paths = confusion.save(epath.Path(tmp_path), counted)
  assert cv2.imread(str(paths[2])).shape[1] > 1000


def test_several_labels_are_refused():
  rows = {"label": np.zeros((4, 2), np.int32), "prediction": np.zeros(4, np.int32)}
  with pytest.raises(InputError, match="one label an image"):
    confusion.count(rows, 10)
