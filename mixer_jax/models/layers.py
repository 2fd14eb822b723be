"""What the model families share: the MLP, and stochastic depth and dropout whose draws belong to the image.

Both draw from a key per image, `fold_in(key, row)`, with `row` the image's position in the whole batch.
So an image meets the same masks whether the batch is taken at once, split over devices or accumulated
in parts.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from mixer_jax.errors import InputError


def check_divisible(height_px: int, width_px: int, patch_size: int) -> None:
  """Raises InputError unless the patch divides both sides of the image."""
  if height_px % patch_size or width_px % patch_size:
    raise InputError(
      f"patch_size {patch_size} does not divide the image of {height_px}x{width_px} pixels; choose "
      f"an image_size of multiples of {patch_size}."
    )


def per_image_keys(key: Array, rows: Int[Array, " b"]) -> Array:
  """Returns a key for each image."""
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)


def drop_rates(stoch_depth: float, num_blocks: int) -> Float[Array, " l"]:
  """Returns the rate at which each block drops a branch: s·i/(L−1) for block i of L."""
  return stoch_depth * jnp.arange(num_blocks) / max(num_blocks - 1, 1)


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


def train_dropout(
  module: nn.Module, x: Float[Array, "b ..."], rows: Int[Array, " b"], rate: float, train: bool
) -> Float[Array, "b ..."]:
  """Returns `dropout` with the module's next key while training; otherwise the values as they are."""
  return dropout(x, module.make_rng("dropout"), rows, rate) if train and rate else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def dense_dot(
  x: Float[Array, "*n d"], kernel: Float[Array, "d o"], dimensions: Any, precision: Any = None
) -> Float[Array, "*n o"]:
  """nn.Dense's `dot_general`, whose gradient of the kernel is laid out for XLA's CPU library.

  That library (YNNPACK) multiplies only where the left factor is contracted along its last axis; other
  products go to Eigen, at half the speed (docs/speed.md). Other devices compile what they would without this.
  """
  return jax.lax.dot_general(x, kernel, dimensions, precision)


def _dense_dot_forward(x: Array, kernel: Array, dimensions: Any, precision: Any) -> Any:
  return dense_dot(x, kernel, dimensions, precision), (x, kernel)


def _dense_dot_backward(dimensions: Any, precision: Any, residuals: Any, g: Array) -> Any:
  def plain(x: Array, kernel: Array, g: Array) -> Any:
    dot = functools.partial(jax.lax.dot_general, dimension_numbers=dimensions, precision=precision)
    (x_grad,) = jax.linear_transpose(lambda x: dot(x, kernel), x)(g)
    (kernel_grad,) = jax.linear_transpose(lambda kernel: dot(x, kernel), kernel)(g)
    return x_grad, kernel_grad

  def on_cpu(x: Array, kernel: Array, g: Array) -> Any:
    dot = functools.partial(jnp.dot, precision=precision)
    barrier = jax.lax.optimization_barrier
    rows, grads = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    # Of both factors the narrower one is transposed; the barriers keep XLA from undoing it, and the last
    # from doing it anew for each use.
    if kernel.shape[0] <= kernel.shape[1]:
      kernel_grad = dot(barrier(rows.T), grads)
    else:
      kernel_grad = barrier(barrier(dot(barrier(grads.T), rows)).T)
    return dot(g, kernel.T), kernel_grad

  return jax.lax.platform_dependent(*residuals, g, cpu=on_cpu, default=plain)


dense_dot.defvjp(_dense_dot_forward, _dense_dot_backward)


class MlpBlock(nn.Module):
  """Dense -> GELU (tanh approximation, Flax's default) -> Dense, on the last axis.

  Dropout, when training, follows the GELU and the second Dense, as in the Vision Transformer's MLP.
  """

  mlp_dim: int
  out_dim: int | None = None  # None: as wide as the input
  dropout_rate: float = 0.0
  kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
  bias_init: Callable[..., Array] = nn.initializers.zeros
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b n d"], rows: Int[Array, " b"], *, train: bool = False
  ) -> Float[Array, "b n o"]:
    dense: dict[str, Any] = dict(
      kernel_init=self.kernel_init,
      bias_init=self.bias_init,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      # Only where it pays: with a custom gradient, forward-mode differentiation is an error.
      dot_general=dense_dot if train else None,
    )
    y = nn.gelu(nn.Dense(self.mlp_dim, **dense)(x))
    y = train_dropout(self, y, rows, self.dropout_rate, train)
    y = nn.Dense(self.out_dim or x.shape[-1], **dense)(y)
    return train_dropout(self, y, rows, self.dropout_rate, train)
