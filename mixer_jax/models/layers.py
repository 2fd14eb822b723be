"""What the model families share: stochastic depth and dropout whose draws belong to the image.

Both draw from a key per image, `fold_in(key, row)`, with `row` the image's position in the whole batch.
So an image meets the same masks whether the batch is taken at once, split over devices or accumulated
in parts.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def per_image_keys(key: Array, rows: Int[Array, " b"]) -> Array:
  """Returns a key for each image."""
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)


def draw_branches(
  key: Array, rows: Int[Array, " b"], rates: Float[Array, " l"]
) -> Bool[Array, "b l 2"]:
  """Stochastic depth: True where an image keeps the first and the second branch of each of l blocks.

  An image drops a branch of block i with probability `rates[i]`, both independently (Huang et al.,
  arXiv:1603.09382; its survivors are not rescaled here, in training or evaluation, as in big_vision's
  models/mlp_mixer.py). All draws of a step are made at once, which compiles to one loop.
  """
  keys = per_image_keys(key, rows)
  uniform = jax.vmap(lambda k: jax.random.uniform(k, (rates.shape[0], 2)))(keys)
  return uniform >= rates[:, None]


def drop_branch(
  branch: Float[Array, "b s c"], keep: Bool[Array, " b"] | None
) -> Float[Array, "b s c"]:
  """Zeroes the branch of the images that do not keep it; None: all keep it."""
  return branch if keep is None else jnp.where(keep[:, None, None], branch, jnp.zeros_like(branch))


def dropout(
  x: Float[Array, "b ..."], key: Array, rows: Int[Array, " b"], rate: float
) -> Float[Array, "b ..."]:
  """Inverted dropout: zeroes values with probability `rate`, divides the others by 1 − rate."""
  draw = jax.vmap(lambda k: jax.random.bernoulli(k, 1.0 - rate, x.shape[1:]))
  keep = draw(per_image_keys(key, rows))
  return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))
