"""Classification losses, image by image: b images, k classes. Labels are rows of weights, not indices."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mixer_jax.errors import InputError

Loss = Callable[[Float[Array, "b k"], Float[Array, "b k"]], Float[Array, " b"]]
Weights = Float[np.ndarray, " k"] | float


def sigmoid_xent(
  logits: Float[Array, "b k"],
  labels: Float[Array, "b k"],
  class_weights: Weights = 1.0,
  positive_weights: Weights = 1.0,
) -> Float[Array, " b"]:
  """Sigmoid cross-entropy summed over the classes (big_vision, utils.py: sigmoid_xent).

  Class c adds −w_c · (p_c · t_c · log σ(x_c) + (1 − t_c) · log σ(−x_c)), with class weight w_c and positive
  weight p_c: torch's BCEWithLogitsLoss(weight=w, pos_weight=p), which by default takes the mean over classes.
  """
  logits = logits.astype(jnp.float32)
  positive = positive_weights * (labels * jax.nn.log_sigmoid(logits))
  negative = (1.0 - labels) * jax.nn.log_sigmoid(-logits)
  return -jnp.sum(class_weights * (positive + negative), axis=-1)


def softmax_xent(
  logits: Float[Array, "b k"], labels: Float[Array, "b k"], class_weights: Weights = 1.0
) -> Float[Array, " b"]:
  """Softmax cross-entropy; several labels weigh as they are, they are not normalised.

  Class c adds −w_c · t_c · log p_c with class weight w_c. A batch's loss is the mean over its images, as that of
  torch's CrossEntropyLoss(weight=w) with targets that are probabilities. With class ids, torch divides by the
  sum of their weights instead.
  """
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  return -jnp.sum(class_weights * (labels * log_p), axis=-1)


LOSSES: dict[str, Callable[..., Array]] = {
  "sigmoid_xent": sigmoid_xent,
  "softmax_xent": softmax_xent,
}
PROBABILITIES: dict[str, Callable[[Array], Array]] = {
  "sigmoid_xent": jax.nn.sigmoid,
  "softmax_xent": jax.nn.softmax,
}
"""What turns the logits that a loss trains into probabilities."""


_LARGEST = 1e38  # finite in float32


def make_loss(
  loss: str,
  num_classes: int,
  *,
  class_weights: Sequence[float | int] = (),
  positive_weights: Sequence[float | int] = (),
) -> Loss:
  """Returns a loss of LOSSES with its weights.

  Args:
    loss: its name.
    num_classes: k.
    class_weights: k numbers; none: all 1.
    positive_weights: k numbers, of sigmoid_xent alone; none: all 1.

  Raises:
    InputError: not k finite numbers from 0 on, or positive weights with a softmax.
  """
  if positive_weights and loss != "sigmoid_xent":
    raise InputError(
      f"positive_weights are for loss sigmoid_xent, and loss is {loss}: leave them out, or change the loss."
    )
  given = {"class_weights": class_weights, "positive_weights": positive_weights}
  weights = {k: _weights(k, v, num_classes) for k, v in given.items() if v}
  return functools.partial(LOSSES[loss], **weights)


def _weights(name: str, values: Sequence[float | int], num_classes: int) -> Weights:
  if len(values) != num_classes:
    raise InputError(
      f"{name} has {len(values)} numbers and num_classes is {num_classes}: give one number for each class."
    )
  wrong = [x for x in values if not 0 <= x <= _LARGEST]
  if wrong:
    raise InputError(f"{name} has {wrong[0]:g}: give numbers from 0 to {_LARGEST:g}.")
  return np.array(values, np.float32)
