"""Pooling by maximum as a choice among shifted maps, which XLA compiles to fast loops on a CPU."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

_SIZE, _STRIDE = 3, 2


def max_pool(x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b y x c"]:
  """Returns the maximum of each 3×3 window, two apart; a window that is not whole is left out.

  XLA's CPU backend runs windows and their gradient one value at a time. Of equal values the first one takes the
  gradient, as in XLA's own. Other devices compile the windows; so do all if not `train`, as ONNX has them.
  """
  if not train:
    return _windows(x)
  return jax.lax.platform_dependent(x, cpu=_first_of_shifted, default=_windows)


def _windows(x: Array) -> Array:
  return nn.max_pool(x, window_shape=(_SIZE, _SIZE), strides=(_STRIDE, _STRIDE))


def _first_of_shifted(x: Array) -> Array:
  ends = [length - _SIZE + 1 for length in x.shape[1:3]]
  best = None
  for i in range(_SIZE):
    for j in range(_SIZE):
      value = x[:, i : i + ends[0] : _STRIDE, j : j + ends[1] : _STRIDE]
      # A comparison alone would lose what is not a number.
      best = value if best is None else jnp.where((value > best) | jnp.isnan(value), value, best)
  assert best is not None
  return best
