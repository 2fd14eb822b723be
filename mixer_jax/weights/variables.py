"""Variables as trees: the model they belong to, whether they fit a model, a new head, another image size.

Variables are {"params": …} and, for a model with BatchNorm, "batch_stats": nested dictionaries of arrays or of
jax.ShapeDtypeStruct.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mixer_jax import models
from mixer_jax.errors import InputError
from mixer_jax.models import resizing

Variables = dict[str, Any]
_HOW = {"paper": "as in appendix C", "interpolate": "by interpolation"}


class ModelSpec(NamedTuple):
  """The model that variables belong to.

  Attributes:
    family: key of models.FAMILIES.
    fields: of the family's module, with num_classes (None if there is no head).
    input_shape: an image (height, width, channels) that the model takes. If only the number of tokens is known
      and it is not a square, this is one column of patches.
  """

  family: str
  fields: dict[str, Any]
  input_shape: tuple[int, int, int]

  def abstract_variables(self) -> Variables:
    """Returns the shapes of the model's variables (jax.ShapeDtypeStruct)."""
    fields = {**models.FAMILIES[self.family].UNTOLD, **self.fields}
    return models.abstract_variables(models.build(self.family, **fields), self.input_shape)

  @property
  def knows_sides(self) -> bool:
    """False for a column of patches, the `input_shape` of a number of tokens that is no square."""
    height, width, _ = self.input_shape
    halvings = len(self.fields.get("stages", (None,))) - 1
    return not height > width == self.fields.get("patch_size", 0) * 2**halvings

  @property
  def resize_methods(self) -> tuple[str, ...]:
    """The family's `RESIZE_METHODS` for this model; empty if it takes every image size."""
    methods: Any = models.FAMILIES[self.family].RESIZE_METHODS
    return methods if isinstance(methods, tuple) else methods(self.fields)

  def sides(self) -> tuple[int, int]:
    """Returns the images' (height, width); raises InputError if only their number of tokens is known."""
    height, width, _ = self.input_shape
    if not self.knows_sides:
      raise InputError(f"{height // width} tokens are no square: say for which height and width.")
    return height, width


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
  """Returns {name: leaf}: parameters by their slash names, batch statistics below "batch_stats/"."""
  flat = traverse_util.flatten_dict(dict(variables["params"]), sep="/")
  stats = traverse_util.flatten_dict(variables.get("batch_stats", {}), sep="/")
  return {**flat, **{f"batch_stats/{name}": leaf for name, leaf in stats.items()}}


def unflatten(flat: Mapping[str, Any]) -> Variables:
  """Undoes `flatten`."""
  params = {k: v for k, v in flat.items() if not k.startswith("batch_stats/")}
  stats = {k.removeprefix("batch_stats/"): v for k, v in flat.items() if k not in params}
  variables = {"params": traverse_util.unflatten_dict(params, sep="/")}
  return variables | (
    {"batch_stats": traverse_util.unflatten_dict(stats, sep="/")} if stats else {}
  )


def family_of(variables: Mapping[str, Any], where: str = "this tree") -> str:
  """Returns the family that variables belong to by their names, a key of models.FAMILIES.

  Raises:
    InputError: they are of no known family; `where` names them.
  """
  names = flatten(variables)
  if (family := models.family_of(names)) is None:
    known = ", ".join(f"{family.TITLE}'s" for family in models.FAMILIES.values())
    begin = ", ".join(sorted(names)[:5]) or "none"
    raise InputError(f"{where} holds none of {known} parameters; it begins with {begin}.")
  return family


def check_family(variables: Mapping[str, Any], wanted: str, where: str) -> None:
  """Raises InputError if the variables are not of the wanted family. It names both families."""
  if (found := family_of(variables, where)) != wanted:
    raise InputError(
      f"{where} holds a {models.FAMILIES[found].TITLE}'s parameters (model.name={found!r}), but a "
      f"{models.FAMILIES[wanted].TITLE}'s ({wanted!r}) are wanted."
    )


def describe(variables: Mapping[str, Any], where: str = "this tree") -> ModelSpec:
  """Returns the model that variables belong to, from their names and shapes.

  So `models.build(family, **fields)` is their model, but for fields that no shape depends on (gelu, a ResNet's
  num_groups).

  Args:
    variables: of any family.
    where: what messages call them: a file, an address.

  Raises:
    InputError: they are not a whole model's; what is missing, superfluous or misshapen is listed.
  """
  name = family_of(variables, where)
  family = models.FAMILIES[name]
  have = {k: tuple(v.shape) for k, v in flatten(variables).items()}
  try:
    spec = ModelSpec(name, family.fields_of(have), family.input_shape(have))
    wanted = {k: v.shape for k, v in flatten(spec.abstract_variables()).items()}
  except (KeyError, ValueError, IndexError, TypeError, ArithmeticError) as e:
    begin = ", ".join(sorted(have)[:5])
    raise InputError(
      f"{where} holds no whole {family.TITLE}'s parameters; it begins with {begin}."
    ) from e
  sizes = " ".join(f"{k}={v}" for k, v in spec.fields.items())
  _report(_differences(have, wanted), where, f"the {family.TITLE} with {sizes}")
  return spec


def check_match(variables: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
  """Raises InputError that names another family, or lists what does not fit.

  That is: variables missing, superfluous, of another shape, not finite numbers, or negative variances.

  Args:
    variables: from a file.
    wanted: the model's (arrays or jax.ShapeDtypeStruct).
    where: the file, for the message.
  """
  check_family(variables, family_of(wanted, "the model"), where)
  have, want = flatten(variables), flatten(wanted)
  problems = _differences(
    {k: tuple(v.shape) for k, v in have.items()}, {k: v.shape for k, v in want.items()}
  )
  problems += _bad_values({n: have[n] for n in set(have) & set(want)})
  _report(problems, where, "the model")


def check_values(variables: Mapping[str, Any], where: str) -> None:
  """Raises InputError that lists variables with values that no model has."""
  _report(_bad_values(flatten(variables)), where, "any model")


def _bad_values(flat: Mapping[str, Any]) -> list[str]:
  problems = []
  for name in sorted(flat):
    value = flat[name]
    if not (jnp.issubdtype(value.dtype, np.floating) and np.isfinite(value).all()):
      problems.append(f"values: {name} has {value.dtype} values that are not finite numbers")
    elif name.startswith("batch_stats/") and name.endswith("/var") and (value < 0).any():
      problems.append(f"values: {name}, a variance, has negative values")
  return problems


def _differences(
  have: Mapping[str, tuple[int, ...]], want: Mapping[str, tuple[int, ...]]
) -> list[str]:
  problems = [f"missing: {n} {want[n]}" for n in sorted(set(want) - set(have))]
  problems += [f"not in the model: {n} {have[n]}" for n in sorted(set(have) - set(want))]
  return problems + [
    f"shape: {n} is {have[n]}, the model's is {want[n]}"
    for n in sorted(set(have) & set(want))
    if have[n] != want[n]
  ]


def _report(problems: list[str], where: str, model: str) -> None:
  if problems:
    listed = "\n  ".join(problems)
    raise InputError(f"the parameters of {where} do not fit {model}:\n  {listed}")


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
    InputError: they are of no known family.
  """
  head = tuple(f"{module}/" for module in models.FAMILIES[family_of(variables)].HEAD)
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
  if kernel.shape[2] != 3:
    raise InputError(
      f"the parameters are for images of {kernel.shape[2]} channels, not {channels}; only those for 3 can be changed. "
      f"Set image_channels to {kernel.shape[2]}."
    )
  wide = kernel.astype(np.float32)
  if channels == 1:
    new = wide.sum(axis=2, keepdims=True)
  else:
    new = wide[:, :, np.arange(channels) % 3] * np.float32(3 / channels)
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
      f"a {family.TITLE}'s parameters are those for every image size; there is nothing to do."
    )
  rows, columns = resizing.token_grid(spec.input_shape[:2], spec.fields["patch_size"])
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
