"""Classification losses, image by image: b images, k classes. Labels are rows of weights, not indices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def sigmoid_xent(logits: Float[Array, "b k"], labels: Float[Array, "b k"]) -> Float[Array, " b"]:
  """Sigmoid cross-entropy summed over the classes (big_vision, utils.py: sigmoid_xent)."""
  logits = logits.astype(jnp.float32)
  return -jnp.sum(
    labels * jax.nn.log_sigmoid(logits) + (1.0 - labels) * jax.nn.log_sigmoid(-logits), axis=-1
  )


def softmax_xent(logits: Float[Array, "b k"], labels: Float[Array, "b k"]) -> Float[Array, " b"]:
  """Softmax cross-entropy; several labels weigh as they are, they are not normalised."""
  return -jnp.sum(labels * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


Loss = Callable[[Float[Array, "b k"], Float[Array, "b k"]], Float[Array, " b"]]
LOSSES: dict[str, Loss] = {"sigmoid_xent": sigmoid_xent, "softmax_xent": softmax_xent}
PROBABILITIES: dict[str, Callable[[Array], Array]] = {
  "sigmoid_xent": jax.nn.sigmoid,
  "softmax_xent": jax.nn.softmax,
}
"""What turns the logits that a loss trains into probabilities."""
