"""Another image size: what token mixing and position embeddings become on another grid of tokens.

Appendix C of MLP-Mixer, for an image K times as high and as wide, tiles a token MLP: block-diagonal kernels, K²
times as wide, which fine-tuning then fills. Interpolation, for any grid, up or down, square or not, keeps a
token mixing T and frames it by resampling, P·T·R: R takes the new tokens to the old grid, P takes what T adds to
them to the new one. Both are linear interpolation between the centres of the tokens, with the triangle widened
where the grid shrinks. A kernel on the tokens' side becomes Rᵀ·kernel: it is interpolated as a function over
the grid and scaled by the number of old tokens per new one. A kernel that puts tokens out, and its bias, go
through P: interpolated, without scale. Rows of R and P sum to 1, so constant tokens are treated as before.

Grids are (rows, columns); tokens are in raster order. Axis letters: s tokens, d hidden units.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from mixer_jax.errors import InputError

Grid = tuple[int, int]


def token_grid(image_size: tuple[int, ...], patch_size: int, halvings: int = 0) -> Grid:
  """Returns the grid of an image, (rows, columns).

  Args:
    image_size: (height, width) in pixels.
    patch_size: side of a patch in pixels.
    halvings: how often later stages halve the grid.

  Raises:
    InputError: the patch of the last stage does not divide the image.
  """
  height, width = image_size
  multiple = patch_size * 2**halvings
  sides = (("height", height), ("width", width))
  if wrong := [f"the {name} {side}" for name, side in sides if side % multiple]:
    stages = f", doubled {halvings} times to {multiple}," if halvings else ""
    raise InputError(
      f"patch_size {patch_size}{stages} does not divide the image of {height}x{width} pixels: not "
      f"{', not '.join(wrong)}. Choose an image_size of multiples of {multiple}."
    )
  return height // patch_size, width // patch_size


def halved(grid: Grid, halvings: int, times: int) -> Grid:
  """Returns a grid that is halved `times` times.

  Raises:
    InputError: it cannot be halved as often as `halvings`, which a model's stages do.
  """
  multiple = 2**halvings
  if any(side % multiple for side in grid):
    raise InputError(
      f"a grid of {grid[0]}x{grid[1]} tokens cannot be halved {halvings} times. Choose an image_size of "
      f"multiples of {multiple} patches."
    )
  return grid[0] >> times, grid[1] >> times


def image_shape(num_tokens: int, patch_size: int, channels: int) -> tuple[int, int, int]:
  """Returns the image (height, width, channels) of as many patches: a square, or else one column of them."""
  side = math.isqrt(num_tokens)
  rows, columns = (side, side) if side * side == num_tokens else (num_tokens, 1)
  return rows * patch_size, columns * patch_size, channels


def choose_method(old_grid: Grid, new_grid: Grid, method: str, known: tuple[str, ...]) -> str:
  """Returns the method to use; "auto": "paper" where the new grid is K times the old one and `known` has it.

  Raises:
    InputError: the method is not one of `known`, the family's, or "paper" is asked for where there is no K.
  """
  if method not in ("auto", *known):
    raise InputError(f"method {method!r} is not one of this family's: auto, {', '.join(known)}.")
  factor = new_grid[0] // old_grid[0]
  fits = factor >= 1 and new_grid == (factor * old_grid[0], factor * old_grid[1])
  if method == "auto":
    return "paper" if fits and "paper" in known else "interpolate"
  if method == "paper" and not fits:
    raise InputError(
      f"method 'paper' (appendix C) needs a grid K times the old one: {new_grid[0]}x{new_grid[1]} tokens "
      f"are no whole multiple of {old_grid[0]}x{old_grid[1]}. Use 'interpolate' or 'auto'."
    )
  return method


def same_fields(
  fields: Mapping[str, Any], old_grid: Grid, new_grid: Grid, method: str
) -> dict[str, Any]:
  """`resize_fields` of a family whose fields do not depend on the grid."""
  del old_grid, new_grid, method
  return dict(fields)


def check_no_ring(fields: Mapping[str, Any], old_grid: Grid, new_grid: Grid) -> None:
  """Raises InputError if the fields are of circulant token mixing and the grid changes.

  A vector has a weight for each distance along the tokens in raster order. The same distance is another step on
  another grid, and a frame of resampling would not leave the map circulant.
  """
  if new_grid != old_grid and fields.get("token_mixing") == "circulant":
    raise InputError(
      f"token_mixing 'circulant' cannot be resized: its vectors are for a ring of {old_grid[0]}x{old_grid[1]} tokens, "
      f"not {new_grid[0]}x{new_grid[1]}. Set the image size that it was trained at."
    )


def resize_mlp(
  mlp: Mapping[str, Any],
  change: Callable[..., tuple[np.ndarray, ...]],
  old_grid: Grid,
  new_grid: Grid,
) -> dict[str, Any]:
  """Returns the parameters of a token MLP for another grid by `tile_mlp` or `interpolate_mlp`; types stay."""
  denses = mlp["Dense_0"], mlp["Dense_1"]
  old = [np.asarray(dense[name]) for dense in denses for name in ("kernel", "bias")]
  new = [x.astype(old[0].dtype) for x in change(*old, old_grid, new_grid)]
  return {"Dense_0": dict(kernel=new[0], bias=new[1]), "Dense_1": dict(kernel=new[2], bias=new[3])}


def resize_dense(dense: Mapping[str, Any], old_grid: Grid, new_grid: Grid) -> dict[str, Any]:
  """Returns the parameters of a Dense from the tokens to the tokens for another grid, P·T·R; types stay."""
  kernel, bias = (np.asarray(dense[name]) for name in ("kernel", "bias"))
  new = interpolate_out(interpolate_in(kernel, old_grid, new_grid), old_grid, new_grid)
  return dict(
    kernel=new.astype(kernel.dtype),
    bias=interpolate_out(bias, old_grid, new_grid).astype(bias.dtype),
  )


def tile_mlp(
  kernel0: np.ndarray,
  bias0: np.ndarray,
  kernel1: np.ndarray,
  bias1: np.ndarray,
  old_grid: Grid,
  new_grid: Grid,
) -> tuple[np.ndarray, ...]:
  """Returns the arrays of a token MLP by appendix C: token (i, j) of tile (a, b) is token (a·rows + i, b·columns + j)."""
  (rows, columns), k, d = old_grid, new_grid[0] // old_grid[0], bias0.size
  new0 = np.zeros((k, rows, k, columns, k, k, d), kernel0.dtype)
  new1 = np.zeros((k, k, d, k, rows, k, columns), kernel1.dtype)
  for a in range(k):
    for b in range(k):
      new0[a, :, b, :, a, b, :] = kernel0.reshape(rows, columns, d)
      new1[a, b, :, a, :, b, :] = kernel1.reshape(d, rows, columns)
  tokens, hidden = new_grid[0] * new_grid[1], k * k * d
  return (
    new0.reshape(tokens, hidden),
    np.tile(bias0, k * k),
    new1.reshape(hidden, tokens),
    np.tile(bias1.reshape(old_grid), (k, k)).reshape(tokens),
  )


def interpolate_mlp(
  kernel0: Float[np.ndarray, "s d"],
  bias0: Float[np.ndarray, " d"],
  kernel1: Float[np.ndarray, "d s"],
  bias1: Float[np.ndarray, " s"],
  old_grid: Grid,
  new_grid: Grid,
) -> tuple[np.ndarray, ...]:
  """Returns the arrays of a token MLP for the new grid."""
  return (
    interpolate_in(kernel0, old_grid, new_grid),
    bias0,
    interpolate_out(kernel1, old_grid, new_grid),
    interpolate_out(bias1, old_grid, new_grid),
  )


def interpolate_in(
  kernel: Float[np.ndarray, "s d"], old_grid: Grid, new_grid: Grid
) -> Float[np.ndarray, "t d"]:
  """Returns Rᵀ·kernel in float64."""
  resample = [_resampling(new, old) for old, new in zip(old_grid, new_grid, strict=True)]
  kernel = kernel.astype(np.float64).reshape(*old_grid, -1)
  return np.einsum("hH,wW,hwd->HWd", *resample, kernel, optimize=True).reshape(
    math.prod(new_grid), -1
  )


def interpolate_out(
  x: Float[np.ndarray, "*d s"], old_grid: Grid, new_grid: Grid
) -> Float[np.ndarray, "*d t"]:
  """Returns x with its last axis, the tokens that come out, resampled by P, in float64."""
  resample = [_resampling(old, new) for old, new in zip(old_grid, new_grid, strict=True)]
  maps = x.astype(np.float64).reshape(-1, *old_grid)
  new = np.einsum("Hh,Ww,dhw->dHW", *resample, maps, optimize=True)
  return new.reshape(*x.shape[:-1], math.prod(new_grid))


def _resampling(size: int, new_size: int) -> np.ndarray:
  """Returns the linear resampling of a line of `size` cells to `new_size`, (new_size, size).

  Triangle kernel between cell centres, `size / new_size` cells wide where that is more than one; rows
  sum to 1, at the edges too.
  """
  scale = size / new_size
  centres = (np.arange(new_size) + 0.5) * scale - 0.5
  distance = np.abs(centres[:, None] - np.arange(size)) / max(scale, 1.0)
  weights = np.maximum(1.0 - distance, 0.0)
  return weights / weights.sum(1, keepdims=True)


def between_corners(x: np.ndarray, new_size: int, axis: int) -> np.ndarray:
  """Interpolates an axis linearly at `new_size` places, the first and the last of which stay where they are."""
  places = np.linspace(0, x.shape[axis] - 1, new_size)
  low = np.floor(places).astype(int)
  high = np.minimum(low + 1, x.shape[axis] - 1)
  share = (places - low).astype(x.dtype)
  share = share.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
  return x.take(low, axis) * (1 - share) + x.take(high, axis) * share
