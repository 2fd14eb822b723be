"""The MLP's parts in the form that XLA for GPUs compiles to less memory traffic."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

Gelu = Literal["tanh", "erf"]
GELU: dict[str, Callable[[Array], Array]] = {
  "tanh": nn.gelu,
  "erf": functools.partial(nn.gelu, approximate=False),
}


def gelu(name: Gelu, x: Array, bias: Array, train: bool) -> Array:
  """Returns gelu(x + bias), while training on a GPU in the form of which less is kept."""

  def plain(x: Array, bias: Array) -> Array:
    return GELU[name](x + bias)

  if not train:
    return plain(x, bias)
  lean = functools.partial(lean_gelu, name)
  return jax.lax.platform_dependent(x, bias, cuda=lean, default=plain)


def biased_gelu(name: Gelu, x: Array, bias: Array) -> Array:
  """Returns gelu(x + bias), computed in float32 at least, in x's type."""
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  return nn.gelu(x.astype(dtype) + bias.astype(dtype), approximate=name == "tanh").astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def lean_gelu(name: Gelu, x: Array, bias: Array) -> Array:
  """`biased_gelu` whose backward pass keeps x alone and computes the rest again.

  Left to itself, XLA for GPUs writes the tanh to memory too, and reads it again.
  """
  return biased_gelu(name, x, bias)


def _gelu_backward(name: Gelu, residuals: tuple[Array, Array], g: Array) -> Any:
  # Behind the barrier it is another computation than the forward pass's, of which nothing so is kept.
  x, bias = jax.lax.optimization_barrier(residuals)
  (x_grad,) = jax.vjp(lambda x: biased_gelu(name, x, bias), x)[1](g)
  summed = [axis for axis, size in enumerate(bias.shape) if size == 1]
  # In the gradient's own type: with float32, XLA writes the gradient in it, too, and adds up in a pass of its own.
  return x_grad, jnp.sum(x_grad, summed, bias.dtype, keepdims=True)


lean_gelu.defvjp(
  lambda name, x, bias: (biased_gelu(name, x, bias), (x, bias)),
  _gelu_backward,
)


def mix_in_place(
  params: Mapping[str, Any], x: Float[Array, "b s c"], name: Gelu, train: bool
) -> Float[Array, "b t c"]:
  """Returns the token-mixing MLP's output without a copy of columns.

  Tokens come first, in rows of all images' channels: a permutation of rows, which costs no pass of its own. All products,
  the gradients' too, take such rows as they lie.

  Args:
    params: kernel and bias of "Dense_0" and "Dense_1".
    x: tokens; the type that is computed in.
    name: of the GELU.
    train: it has no forward-mode derivatives.
  """
  activate: Any = lean_gelu if train else biased_gelu
  first, second = (jax.tree.map(lambda p: p.astype(x.dtype), params[f"Dense_{i}"]) for i in (0, 1))
  rows = jnp.swapaxes(x, 0, 1).reshape(x.shape[1], -1)
  hidden = activate(name, rows_product(first["kernel"], rows), first["bias"][:, None])
  mixed = rows_product(second["kernel"], hidden) + second["bias"][:, None]
  return jnp.swapaxes(mixed.reshape(-1, x.shape[0], x.shape[2]), 0, 1)


def rows_product(kernel: Float[Array, "s d"], rows: Float[Array, "s n"]) -> Float[Array, "d n"]:
  return kernel.T @ rows
