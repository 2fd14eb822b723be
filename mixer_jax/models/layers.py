"""What the model families share: stochastic depth and dropout whose draws belong to the image.

Both draw from a key per image, `fold_in(key, row)`, with `row` the image's position in the whole batch.
So an image meets the same masks whether the batch is taken at once, split over devices or accumulated
in parts.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def per_image_keep(
  key: Key[Array, ""], rows: Int[Array, " b"], rate: float, shape: tuple[int, ...]
) -> Array:
  """Returns a boolean array (b, *shape): True with probability 1 − rate, drawn image by image."""
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)
  return jax.vmap(lambda k: jax.random.bernoulli(k, 1.0 - rate, shape))(keys)


def drop_branch(
  branch: Float[Array, "b s c"], key: Key[Array, ""], rows: Int[Array, " b"], rate: float
) -> Float[Array, "b s c"]:
  """Zeroes the branch of an image with probability `rate`; survivors are not rescaled.

  Departs from Huang et al. (arXiv:1603.09382), who rescale in evaluation, as big_vision's
  models/mlp_mixer.py does.
  """
  keep = per_image_keep(key, rows, rate, (1, 1))
  return jnp.where(keep, branch, jnp.zeros_like(branch))


def dropout(
  x: Float[Array, "b ..."], key: Key[Array, ""], rows: Int[Array, " b"], rate: float
) -> Float[Array, "b ..."]:
  """Inverted dropout: zeroes values with probability `rate`, divides the others by 1 − rate."""
  keep = per_image_keep(key, rows, rate, x.shape[1:])
  return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))
