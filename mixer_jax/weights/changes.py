"""Variables made to fit another model: a new head, another number of channels, another image size."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mixer_jax import models
from mixer_jax.errors import InputError
from mixer_jax.models import resizing
from mixer_jax.weights.variables import (
  ModelSpec,
  Variables,
  describe,
  family_of,
  flatten,
  unflatten,
)

_HOW = {"paper": "as in appendix C", "interpolate": "by interpolation"}


def replace_head(
  variables: Mapping[str, Any], wanted: Mapping[str, Any], bias: float = 0.0
) -> Variables:
  """Returns the variables with a new head, of zeros as the paper starts fine-tuning (section 3).

  This also removes a Vision Transformer's tanh layer, as in vision_transformer's fine-tuning.

  Args:
    variables: of any family, with a head or without.
    wanted: those of the model with the new head (arrays or jax.ShapeDtypeStruct); only its head counts.
    bias: start of the new head's bias.

  Raises:
    InputError: they are of no known family, or the wanted model has a hidden layer before its head.
  """
  modules = models.FAMILIES[family_of(variables)].HEAD
  head = tuple(f"{module}/" for module in modules)
  for module, field in modules.items():
    if field != "num_classes" and module in wanted["params"]:
      raise InputError(f"a new head of zeros cannot train behind {module}: set {field} to 0.")
  body = {k: v for k, v in flatten(variables).items() if not k.startswith(head)}
  dtype = next(iter(body.values())).dtype
  new = {
    name: np.full(leaf.shape, bias if name.endswith("/bias") else 0.0, dtype)
    for name, leaf in flatten(wanted).items()
    if name.startswith(head)
  }
  return unflatten(body | new)


def replace_channels(variables: Mapping[str, Any], channels: int) -> Variables:
  """Returns the variables of a model of RGB images for images of another number of channels.

  For one channel, the stem's kernel is summed over the three: equal channels give what the one gives. For more, it is
  repeated, cut to as many and multiplied by 3/channels (timm, models/_manipulate.py: adapt_input_conv). A ResNet
  standardises the result anew, so that each of its stem's channels is scaled besides.

  Args:
    variables: of any family.
    channels: of the images to come.

  Raises:
    InputError: they are of no known family, or not for 3 channels.
  """
  flat = flatten(variables)
  stem = models.FAMILIES[family_of(variables)].STEM
  name = next(name for name in flat if re.fullmatch(stem, name))
  kernel = np.asarray(flat[name])
  if kernel.shape[-2] != 3:
    raise InputError(
      f"the parameters are for images of {kernel.shape[-2]} channels, not {channels}; only those for 3 can be changed. "
      f"Set image_channels to {kernel.shape[-2]}."
    )
  wide = kernel.astype(np.float32)
  if channels == 1:
    new = wide.sum(axis=-2, keepdims=True)
  else:
    new = wide[..., np.arange(channels) % 3, :] * np.float32(3 / channels)
  with np.errstate(over="ignore"):  # `check_match` and `check_values` refuse what comes of it
    return unflatten({**flat, name: new.astype(kernel.dtype)})


def channels_line(channels: int) -> str:
  """Returns what `replace_channels` does, for a message."""
  how = "summed over" if channels == 1 else f"repeated and multiplied by 3/{channels} from"
  return f"with the stem of {channels} channel{'s' * (channels > 1)} {how} its 3"


def grid_of(spec: ModelSpec, image_size: tuple[int, int] | None = None) -> resizing.Grid:
  """Returns the grid of tokens (rows, columns) that variables are for.

  Args:
    spec: their model, with `resize_methods`.
    image_size: (height, width) that they were made for. Default: as in `spec`.

  Raises:
    InputError: they are for a number of tokens that is no square, and no size is given.
  """
  return resizing.token_grid(image_size or spec.sides(), spec.fields["patch_size"])


def resize(
  variables: Mapping[str, Any],
  old_grid: resizing.Grid,
  new_grid: resizing.Grid,
  method: str = "auto",
) -> Variables:
  """Returns the variables for another grid of tokens. Their family resizes them, and their types stay.

  Args:
    variables: a whole model's.
    old_grid: (rows, columns) that they are made for.
    new_grid: what they shall be for.
    method: one of the family's `RESIZE_METHODS`, or "auto", see resizing.choose_method.

  Raises:
    InputError: the family takes every image size, they are not for `old_grid`, the method does not fit, or they stay at their grid.
  """
  spec = describe(variables)
  family = models.FAMILIES[spec.family]
  if not spec.resize_methods:
    raise InputError(
      f"a {family.TITLE} of these fields is not resized: its parameters are those for every image size that it takes."
    )
  *_, height, width, _ = spec.input_shape
  rows, columns = resizing.token_grid((height, width), spec.fields["patch_size"])
  if rows * columns != old_grid[0] * old_grid[1]:
    raise InputError(
      f"the parameters are for {rows * columns} tokens, not for a grid of {old_grid[0]}x{old_grid[1]}."
    )
  method = resizing.choose_method(old_grid, new_grid, method, spec.resize_methods)
  if new_grid == old_grid:
    return dict(variables)
  family.resize_fields(spec.fields, old_grid, new_grid, method)  # raises what fields tell
  return {**variables, "params": family.resize(variables["params"], old_grid, new_grid, method)}


def resize_line(old_grid: resizing.Grid, new_grid: resizing.Grid, method: str) -> str:
  """Returns what `resize` does, for a message: "from 4x4 to 8x8 tokens as in appendix C"."""
  (rows, columns), (new_rows, new_columns) = old_grid, new_grid
  return f"from {rows}x{columns} to {new_rows}x{new_columns} tokens {_HOW[method]}"
