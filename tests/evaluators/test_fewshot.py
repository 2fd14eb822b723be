"""Few-shot accuracy against what the authors' evaluator gave on the digits."""

import numpy as np
import pytest

from mixer_jax.evaluators import fewshot
from tests.conftest import GOLDEN

BATCH = 300


@pytest.fixture(scope="module")
def golden():
  return dict(np.load(GOLDEN / "fewshot.npz"))


def _draws(golden):
  return [(int(seed), int(shots)) for seed in golden["seeds"] for shots in golden["shots"]]


@pytest.fixture(scope="module")
def drawn(golden):
  return fewshot.draw(
    golden["labels_train"],
    num_classes=10,
    shots=golden["shots"].tolist(),
    seeds=golden["seeds"].tolist(),
  )


def test_the_same_images_are_drawn(golden, drawn):
  for seed, shots in _draws(golden):
    np.testing.assert_array_equal(
      drawn.chosen[seed, shots], golden[f"seed{seed}/shot{shots}/indices"]
    )


def test_predictions_are_the_authors(golden):
  for seed, shots in _draws(golden):
    wanted = {
      key: golden[f"seed{seed}/shot{shots}/{key}"]
      for key in ("indices", "stable", "predictions", "accuracy", "accuracy_float64")
    }
    classifier = fewshot.fit(
      golden["features_train"][wanted["indices"]],
      golden["labels_train"][wanted["indices"]],
      num_classes=10,
    )
    predictions = classifier.predict(golden["features_test"])
    stable = wanted["stable"]
    np.testing.assert_array_equal(predictions[stable], wanted["predictions"][stable])
    accuracy = np.mean(predictions == golden["labels_test"])
    assert abs(accuracy - wanted["accuracy"]) <= 0.01
    assert abs(accuracy - wanted["accuracy_float64"]) <= 1e-6


def _batches(features, labels, masked=()):
  """Batches of rows that are their own predictions, the last one padded, some rows masked."""
  for start in range(0, len(features), BATCH):
    part = np.arange(start, min(start + BATCH, len(features)))
    padding = BATCH - len(part)
    mask = np.float32([i not in masked for i in part] + [0] * padding)
    yield {
      "pre_logits": np.pad(features[part], ((0, padding), (0, 0)), constant_values=1e9),
      "label": np.pad(labels[part], (0, padding)),
      "mask": mask,
    }


def _evaluated(golden, drawn, masked=()):
  used = drawn.rows
  train = _batches(golden["features_train"][used], golden["labels_train"][used], masked)
  test = _batches(golden["features_test"], golden["labels_test"])
  return dict(fewshot.evaluate(lambda batch: batch, train, test, drawn, batch_size=BATCH))


def test_the_evaluator_yields_the_authors_accuracies(golden, drawn):
  """In batches with padding, from the features of the drawn images alone."""
  values = _evaluated(golden, drawn)
  for seed, shots in _draws(golden):
    wanted = golden[f"seed{seed}/shot{shots}/accuracy_float64"]
    assert abs(values[f"{shots}shot_seed{seed}"] - wanted) <= 1e-6
  for shots in golden["shots"]:
    mean = np.mean([values[f"{shots}shot_seed{s}"] for s in golden["seeds"]])
    assert values[f"{shots}shot"] == pytest.approx(mean)


def test_a_skipped_image_only_leaves_its_draw(golden, drawn):
  """Row 7 of the used images is bad: the classifier is that of the other images."""
  values = _evaluated(golden, drawn, masked={7})
  for seed, shots in _draws(golden):
    others = np.setdiff1d(drawn.chosen[seed, shots], drawn.rows[7])
    classifier = fewshot.fit(
      golden["features_train"][others], golden["labels_train"][others], num_classes=10
    )
    right = classifier.predict(golden["features_test"]) == golden["labels_test"]
    assert values[f"{shots}shot_seed{seed}"] == np.mean(right)


def test_fit_and_predict_in_parts_equal_the_whole(golden, monkeypatch):
  x, y = golden["features_train"], golden["labels_train"]
  whole = fewshot.fit(x, y, num_classes=12)
  predictions = whole.predict(x)
  targets = 2.0 * np.eye(12)[y] - 1.0
  whitened = np.c_[(x - x.mean(0, np.float64)) / (x.std(0, np.float64) + 1e-5), np.full(1000, 100)]
  direct = np.linalg.solve(whitened.T @ whitened + 1024 * np.eye(65), whitened.T @ targets)
  np.testing.assert_allclose(whole.weights, direct, rtol=0, atol=1e-12)
  monkeypatch.setattr(fewshot, "_CHUNK_VALUES", 64 * 130)
  parts = fewshot.fit(x, y, num_classes=12)
  np.testing.assert_allclose(parts.weights, whole.weights, rtol=0, atol=1e-12)
  np.testing.assert_array_equal(parts.predict(x), predictions)


def test_images_without_a_class_are_never_drawn():
  labels = np.array([0, -1, 2, 2, 0, -1, 5])
  drawn = fewshot.draw(labels, num_classes=3, shots=(1, 2), seeds=(0,))
  assert sorted(drawn.chosen[0, 2]) == [0, 2, 3, 4]  # class 1 has none
  assert len(drawn.chosen[0, 1]) == 2
