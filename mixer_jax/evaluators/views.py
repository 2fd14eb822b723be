"""Several views of an example, scored as one: the mean of their probabilities."""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mixer_jax import labels, losses
from mixer_jax.evaluators.rows import Rows

_CHUNK = 1024  # examples that are scored at a time


def score(
  parts: Iterable[Mapping[str, np.ndarray]], *, num_examples: int, views: int, loss: str
) -> Rows:
  """Returns the rows of labels.score, and "index", of the examples all of whose views there are, in their order.

  Sums are of float64 and in the order of the views, so the result does not depend on the batches.

  Args:
    parts: rows of "probabilities" (b, k), "label" and "index", of batch after batch. Row n is view n % views of example
      n // views.
    num_examples: of the split.
    views: of an example.
    loss: of losses.LOSSES.
  """
  counts = np.zeros(num_examples, np.int64)
  sums = label = np.zeros(0)
  for part in parts:
    example, p = part["index"] // views, part["probabilities"]
    if not len(sums):
      sums = np.zeros((num_examples, p.shape[1]))
      label = np.zeros((num_examples, *part["label"].shape[1:]), np.int32)
    np.add.at(sums, example, p.astype(np.float64))
    np.add.at(counts, example, 1)
    label[example] = part["label"]
  whole = np.flatnonzero(counts == views)
  scored = [
    _score(sums[i] / views, label[i], loss) | {"index": i}
    for i in np.array_split(whole, max(-(-len(whole) // _CHUNK), 1))
  ]
  rows = {key: np.concatenate([s[key] for s in scored]) for key in scored[0]}
  return {key: value[rows["mask"] > 0] for key, value in rows.items()}


def _score(p: Float[np.ndarray, "n k"], label: np.ndarray, loss: str) -> Rows:
  logits, mask = jnp.asarray(_logits(p, loss), jnp.float32), jnp.ones(len(p))
  return jax.device_get(labels.score(logits, jnp.asarray(label), mask, losses.LOSSES[loss]))


def _logits(p: Float[np.ndarray, "n k"], loss: str) -> Float[np.ndarray, "n k"]:
  """Returns logits that have these probabilities, the inverse of losses.PROBABILITIES; finite ones."""
  p = np.clip(p, 1e-38, 1 - 1e-16)
  return np.log(p) if loss == "softmax_xent" else np.log(p) - np.log1p(-p)
