"""Another image size: a Mixer's token mixing, or a Vision Transformer's positions, for another grid of tokens.

For Mixer there are two ways. "paper": appendix C, for an image K times as high and as wide. The new token MLP mixes each of
the K×K tiles of the image by itself, as the old one mixed the whole image: block-diagonal kernels, K²
times as wide, which fine-tuning then fills. "interpolate": not the paper's; for any grid, up or down,
square or not. The old token mixing T is kept and framed by resampling, P·T·R: R takes the new tokens to
the old grid, P takes what T adds to them to the new one. Both are linear interpolation between the centres
of the tokens, with the triangle widened where the grid shrinks. The first kernel becomes Rᵀ·kernel: it is
interpolated as a function over the grid and scaled by the number of old tokens per new one. The second
kernel and its bias go through P: interpolated, without scale. The hidden units, their number and their
biases stay. Rows of R and P sum to 1, so constant tokens are treated as before.

A Vision Transformer's position embedding is interpolated as in its authors' code (vit_jax/checkpoint.py:
load_pretrained): linearly, the corners of the new grid on those of the old one; the class token's stays.

Grids are (rows, columns); tokens are in raster order. Axis letters: s tokens, d hidden units.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from mixer_jax.errors import InputError
from mixer_jax.weights.params import family, model_fields, num_tokens

Grid = tuple[int, int]
Method = Literal["auto", "paper", "interpolate"]
_TokenMixing = dict[str, dict[str, Any]]


def token_grid(image_size: int | tuple[int, int], patch_size: int) -> Grid:
  """Returns the grid of an image, (rows, columns).

  Args:
    image_size: side of a square in pixels, or (height, width).
    patch_size: side of a patch in pixels.

  Raises:
    InputError: the patch does not divide the image.
  """
  height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
  if min(height, width) < patch_size or height % patch_size or width % patch_size:
    raise InputError(
      f"patch_size {patch_size} does not divide the image of {height}x{width} pixels; choose sides "
      f"that are multiples of {patch_size}."
    )
  return height // patch_size, width // patch_size


def resize_method(
  old_grid: Grid, new_grid: Grid, method: Method = "auto", family: str = "mixer"
) -> Literal["paper", "interpolate"]:
  """Returns what "auto" means: a Mixer's "paper" where the new grid is K times the old one, else "interpolate".

  Raises:
    InputError: "paper" is asked for where there is no such K or for another family; unknown method.
  """
  if family != "mixer" and method in ("auto", "interpolate"):
    return "interpolate"
  if family != "mixer" and method == "paper":
    raise InputError("method 'paper' (appendix C) is for a Mixer; use 'interpolate' or 'auto'.")
  factor = new_grid[0] // old_grid[0]
  fits = factor >= 1 and new_grid == (factor * old_grid[0], factor * old_grid[1])
  if method == "auto":
    return "paper" if fits else "interpolate"
  if method == "paper" and not fits:
    raise InputError(
      f"method 'paper' (appendix C) needs a grid K times the old one: {new_grid[0]}x{new_grid[1]} tokens "
      f"are no whole multiple of {old_grid[0]}x{old_grid[1]}. Use 'interpolate' or 'auto'."
    )
  if method not in ("paper", "interpolate"):
    raise InputError(f"method {method!r} is unknown; known: auto, paper, interpolate.")
  return method


def resized_tokens_mlp_dim(
  tokens_mlp_dim: int, old_grid: Grid, new_grid: Grid, method: Method = "auto"
) -> int:
  """Returns the token MLP's width after `resize_tokens`: K² times the old one under "paper"."""
  if resize_method(old_grid, new_grid, method) == "interpolate":
    return tokens_mlp_dim
  return tokens_mlp_dim * (new_grid[0] // old_grid[0]) ** 2


def resize_tokens(
  params: dict[str, Any], old_grid: Grid, new_grid: Grid, method: Method = "auto"
) -> dict[str, Any]:
  """Returns a Mixer's or Vision Transformer's parameters for another grid of tokens; patch size and types stay.

  A new Mixer's `tokens_mlp_dim` is that of `resized_tokens_mlp_dim`; `model_fields` of the result
  tells it too.

  Args:
    params: nested parameters.
    old_grid: what they are made for.
    new_grid: what they shall be for.
    method: "paper" (appendix C), "interpolate" (for a Mixer not the paper's), or "auto", see `resize_method`.

  Raises:
    InputError: the parameters are of a model without tokens or not for `old_grid`, or the method does not fit
      the grids or the model.
  """
  model = family(params)
  if model == "resnet":
    raise InputError(
      "a ResNet's parameters are those for every image size; there is nothing to do."
    )
  method = resize_method(old_grid, new_grid, method, model)
  model_fields(params)
  if (tokens := num_tokens(params)) != old_grid[0] * old_grid[1]:
    raise InputError(
      f"the parameters are for {tokens} tokens, not for a grid of {old_grid[0]}x{old_grid[1]}."
    )
  if new_grid == old_grid:
    return params
  if model == "vit":
    return _with_positions(params, old_grid, new_grid)
  change = _tiled if method == "paper" else _interpolated
  return {
    name: {**block, "token_mixing": _changed(block["token_mixing"], change, old_grid, new_grid)}
    if name.startswith("MixerBlock_")
    else block
    for name, block in params.items()
  }


def _with_positions(params: dict[str, Any], old_grid: Grid, new_grid: Grid) -> dict[str, Any]:
  encoder = params["Transformer"]
  old = np.asarray(encoder["posembed_input"]["pos_embedding"])
  patches = old[0, 1:].reshape(*old_grid, -1).astype(np.float32)
  for axis, size in enumerate(new_grid):
    patches = _between_corners(patches, size, axis)
  new = patches.reshape(1, -1, old.shape[-1]).astype(old.dtype)
  positions = {"pos_embedding": np.concatenate([old[:, :1], new], axis=1)}
  return {**params, "Transformer": {**encoder, "posembed_input": positions}}


def _between_corners(x: np.ndarray, new_size: int, axis: int) -> np.ndarray:
  """Interpolates an axis linearly at `new_size` places, the first and the last of which stay where they are."""
  places = np.linspace(0, x.shape[axis] - 1, new_size)
  low = np.floor(places).astype(int)
  high = np.minimum(low + 1, x.shape[axis] - 1)
  share = (places - low).astype(x.dtype)
  share = share.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
  return x.take(low, axis) * (1 - share) + x.take(high, axis) * share


def _changed(
  mlp: _TokenMixing, change: Callable[..., tuple[np.ndarray, ...]], old_grid: Grid, new_grid: Grid
) -> _TokenMixing:
  first, second = mlp["Dense_0"], mlp["Dense_1"]
  arrays = [np.asarray(layer[leaf]) for layer in (first, second) for leaf in ("kernel", "bias")]
  new = [a.astype(arrays[0].dtype) for a in change(*arrays, old_grid, new_grid)]
  return {
    "Dense_0": {"kernel": new[0], "bias": new[1]},
    "Dense_1": {"kernel": new[2], "bias": new[3]},
  }


def _tiled(
  kernel0: np.ndarray,
  bias0: np.ndarray,
  kernel1: np.ndarray,
  bias1: np.ndarray,
  old_grid: Grid,
  new_grid: Grid,
) -> tuple[np.ndarray, ...]:
  """Appendix C in raster order: token (i, j) of tile (a, b) is token (a·rows + i, b·columns + j)."""
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


def _interpolated(
  kernel0: np.ndarray,
  bias0: np.ndarray,
  kernel1: np.ndarray,
  bias1: np.ndarray,
  old_grid: Grid,
  new_grid: Grid,
) -> tuple[np.ndarray, ...]:
  d = bias0.size
  to_old = [_resampling(new, old) for old, new in zip(old_grid, new_grid, strict=True)]
  to_new = [_resampling(old, new) for old, new in zip(old_grid, new_grid, strict=True)]
  kernel0, kernel1, bias1 = (x.astype(np.float64) for x in (kernel0, kernel1, bias1))
  new0 = np.einsum("hH,wW,hwd->HWd", *to_old, kernel0.reshape(*old_grid, d), optimize=True)
  new1 = np.einsum("Hh,Ww,dhw->dHW", *to_new, kernel1.reshape(d, *old_grid), optimize=True)
  new_bias = np.einsum("Hh,Ww,hw->HW", *to_new, bias1.reshape(old_grid), optimize=True)
  return new0.reshape(-1, d), bias0, new1.reshape(d, -1), new_bias.reshape(-1)


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
