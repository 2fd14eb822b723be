"""Labels as class ids, one or several an image, and what is counted right: b images, m ids, k classes.

An image's list of ids is padded with −1; it may be empty or repeat an id. An image counts if it has at
least one label, and its prediction is right if it is among them (ReaL, arXiv:2006.07159; big_vision,
evaluators/classification.py).
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from mixer_jax.losses import Loss


def multi_hot(label: Int[Array, "b m"], num_classes: int) -> Float[Array, "b k"]:
  """Returns 1 at each class of the image's list, once however often it is repeated, and 0 elsewhere."""
  classes = jnp.arange(num_classes)
  return jnp.any(label[:, :, None] == classes, axis=1).astype(jnp.float32)


def targets(
  label: Int[Array, "b *m"], num_classes: int, smoothing: float = 0.0
) -> Float[Array, "b k"]:
  """Returns rows of weights for class ids (b,), or for lists of them (b, m) padded with −1.

  With label smoothing s, a class of the image weighs 1 − s + s/k and another one s/k (timm, data/mixup.py).
  """
  weights = multi_hot(label if label.ndim == 2 else label[:, None], num_classes)
  if not smoothing:
    return weights
  others = smoothing / num_classes
  return jnp.where(weights > 0, 1.0 - smoothing + others, others)


def best_rank(logits: Float[Array, "b k"], label: Int[Array, "b m"]) -> Int[Array, " b"]:
  """Returns the place, from 0, of the image's best-placed label; k if it has none.

  Of equal logits the lower class comes first; NaN comes last.
  """
  num_classes = logits.shape[1]
  own = jnp.take_along_axis(logits, jnp.maximum(label, 0), axis=1)[:, :, None]
  not_lower = jnp.arange(num_classes) >= label[:, :, None]
  others = logits[:, None]
  # Counted as "not worse", so that NaN logits rank last and not first.
  worse = (others < own) | ((others == own) & not_lower)
  rank = jnp.sum(~worse, axis=2)
  return jnp.min(jnp.where(label >= 0, rank, num_classes), axis=1)


def score(
  logits: Float[Array, "b k"],
  label: Int[Array, "b *m"],
  mask: Shaped[Array, " b"],
  loss: Loss,
) -> dict[str, Any]:
  """Returns the evaluation's row of each image.

  Args:
    logits: of the classes.
    label: class ids (b,), or lists of them (b, m) padded with −1.
    mask: 0 for rows that are padding.
    loss: of losses.LOSSES; several labels are several ones, not normalised.

  Returns:
    loss, top1 and top5 (1 if a label is among the best), prediction, label, and mask (0 also for images
    without a label), of shape (b,) each, label as given.
  """
  ids = label if label.ndim == 2 else label[:, None]
  rank = best_rank(logits, ids)
  return {
    "loss": loss(logits, targets(label, logits.shape[1])),
    "top1": (rank < 1).astype(jnp.int32),
    "top5": (rank < 5).astype(jnp.int32),
    "prediction": jnp.argmax(logits, axis=1).astype(jnp.int32),
    "label": label,
    "mask": jnp.where(jnp.any(ids >= 0, axis=1), mask, jnp.zeros_like(mask)),
  }
