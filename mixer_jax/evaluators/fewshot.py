"""Linear few-shot accuracy: ridge regression on the pre-logits of a few images a class.

big_vision, evaluators/fewshot_lsr.py: features whitened with the mean and (standard deviation + 1e-5)
of the chosen images, a constant feature of 100 whose weight is the bias, targets ±1, ℓ₂ = 2¹⁰ on all
weights. Axis letters: n images, c features, k classes.

The regression is solved in float64 with NumPy, where the reference takes a float32 eigen-decomposition:
the result is then the same on every backend and as good for features that hardly vary, which the
whitening blows up into noise in float32. On the others both predict the same.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import linalg

from mixer_jax.evaluators import rows as rows_lib
from mixer_jax.evaluators.rows import Rows

SHOTS = (1, 5, 10, 25)
SEEDS = (0, 1, 2)
L2_REG = 2.0**10
BIAS_CONSTANT = 100.0
STD_FLOOR = 1e-5

_CHUNK_VALUES = 1 << 24  # float64 values held at once (128 MiB) beside the features themselves


@dataclasses.dataclass(frozen=True)
class Draw:
  """Which images of the training split are used: only their features are needed.

  Attributes:
    rows: their indices in the split, ascending.
    chosen: (seed, shots) -> the indices in the split that train that classifier.
    num_classes: of the data set.
  """

  rows: Int[np.ndarray, " n"]
  chosen: dict[tuple[int, int], Int[np.ndarray, " m"]]
  num_classes: int


def draw(
  labels: Int[np.ndarray, " n"],
  *,
  num_classes: int,
  shots: Sequence[int] = SHOTS,
  seeds: Sequence[int] = SEEDS,
) -> Draw:
  """Draws the training images as the reference: the first `shots` of each class's permutation.

  One generator a seed permutes the images of each class, class after class.

  Args:
    labels: of all images of the training split; those outside 0 … k−1 are never drawn.
    num_classes: k.
    shots: images a class; a class with fewer gives all it has.
    seeds: of the draws.
  """
  order = np.argsort(labels, kind="stable")
  bounds = np.searchsorted(labels[order], np.arange(num_classes + 1))
  chosen = {}
  for seed in seeds:
    rng = np.random.default_rng(seed)
    permuted = [rng.permutation(order[a:b]) for a, b in itertools.pairwise(bounds)]
    for count in shots:
      chosen[seed, count] = np.concatenate([p[:count] for p in permuted])
  return Draw(np.unique(np.concatenate(list(chosen.values()))), chosen, num_classes)


@dataclasses.dataclass(frozen=True)
class Classifier:
  """A linear classifier of whitened features."""

  mean: Float[np.ndarray, " c"]
  std: Float[np.ndarray, " c"]
  weights: Float[np.ndarray, "c+1 k"]

  def predict(self, features: Float[np.ndarray, "n c"]) -> Int[np.ndarray, " n"]:
    """Returns the best class of each image; of equal ones the lowest."""
    return np.concatenate(
      [
        np.argmax(_whiten(features[part], self.mean, self.std) @ self.weights, axis=1)
        for part in _parts(features, sum(self.weights.shape))
      ]
    )


def _whiten(features: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
  """Returns the whitened features in float64 with the constant one behind them."""
  whitened = np.full((len(features), len(mean) + 1), BIAS_CONSTANT)
  whitened[:, :-1] = (features - mean) / std
  return whitened


def _parts(array: np.ndarray, width: int) -> Iterator[slice]:
  """Yields slices of rows that take little memory as float64 rows of this width."""
  rows = max(1, _CHUNK_VALUES // width)
  yield from (slice(start, start + rows) for start in range(0, len(array), rows))


def fit(
  features: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"], *, num_classes: int
) -> Classifier:
  """Returns the ridge regression to ±1 targets: (XᵀX + ℓ₂I)⁻¹ XᵀY.

  With 21 843 classes the ±1 targets of their images would not fit into memory. XᵀY needs none of them:
  its column of a class is twice the sum of that class's rows, less the sum of all.
  """
  width = features.shape[1] + 1
  mean = np.asarray(np.mean(features, axis=0, dtype=np.float64))
  squares = (np.sum((features[p] - mean) ** 2, axis=0) for p in _parts(features, width))
  std = np.sqrt(sum(squares) / len(features)) + STD_FLOOR
  gram, class_sums = np.zeros((width, width)), np.zeros((num_classes, width))
  for part in _parts(features, width):
    whitened = _whiten(features[part], mean, std)
    gram += whitened.T @ whitened
    np.add.at(class_sums, labels[part], whitened)
  targets = 2.0 * class_sums - class_sums.sum(axis=0)
  gram[np.diag_indices_from(gram)] += L2_REG
  weights = linalg.solve(gram, targets.T, assume_a="pos", overwrite_a=True)
  return Classifier(mean, std, weights)


def evaluate(
  predict_fn: Callable[[Any], Rows],
  train_batches: Iterable[Any],
  test_batches: Iterable[Any],
  drawn: Draw,
  *,
  batch_size: int,
) -> Iterator[tuple[str, float]]:
  """Yields (name, value): "<shots>shot_seed<seed>" for each draw, then "<shots>shot", their mean.

  Args:
    predict_fn: batch -> rows of pre_logits (b, c), label (b,) and mask (b,).
    train_batches: batches on the devices of the images `drawn.rows`, in that order.
    test_batches: batches on the devices of the test split.
    drawn: see `draw`.
    batch_size: examples of a batch.
  """
  train = rows_lib.collect(predict_fn, train_batches, batch_size=batch_size)
  test = rows_lib.collect(predict_fn, test_batches, batch_size=batch_size)
  train_index = drawn.rows[train["index"]]
  values: dict[int, list[float]] = {}
  for (seed, shots), chosen in drawn.chosen.items():
    used = np.isin(train_index, chosen)
    classifier = fit(train["pre_logits"][used], train["label"][used], num_classes=drawn.num_classes)
    accuracy = float(np.mean(classifier.predict(test["pre_logits"]) == test["label"]))
    values.setdefault(shots, []).append(accuracy)
    yield f"{shots}shot_seed{seed}", accuracy
  for shots, accuracies in values.items():
    yield f"{shots}shot", float(np.mean(accuracies))
