"""Variables as trees: the model they belong to, and whether they fit a model.

Variables are {"params": …} and, for a model with BatchNorm, "batch_stats": nested dictionaries of arrays or of
jax.ShapeDtypeStruct.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import dtypes

from mixer_jax import models
from mixer_jax.errors import InputError

Variables = dict[str, Any]
MAX_LISTED = 10


class ModelSpec(NamedTuple):
  """The model that variables belong to.

  Attributes:
    family: key of models.FAMILIES.
    fields: of the family's module, with num_classes (None if there is no head).
    input_shape: an image (height, width, channels), or a clip (frames, height, width, channels), that the model takes.
      If only the number of tokens is known and it is not a square, this is one column of patches.
  """

  family: str
  fields: dict[str, Any]
  input_shape: tuple[int, ...]

  def abstract_variables(self) -> Variables:
    """Returns the shapes of the model's variables (jax.ShapeDtypeStruct)."""
    fields = {**models.FAMILIES[self.family].UNTOLD, **self.fields}
    return models.abstract_variables(models.build(self.family, **fields), self.input_shape)

  @property
  def halvings(self) -> int:
    """How often the stages halve the grid of tokens."""
    stages = self.fields.get("stages", self.fields.get("num_blocks"))
    return len(stages) - 1 if isinstance(stages, tuple) else 0

  @property
  def knows_sides(self) -> bool:
    """False for a column of patches, the `input_shape` of a number of tokens that is no square."""
    *_, height, width, _ = self.input_shape
    halvings = len(self.fields.get("stages", (None,))) - 1
    return not height > width == self.fields.get("patch_size", 0) * 2**halvings

  @property
  def resize_methods(self) -> tuple[str, ...]:
    """The family's `RESIZE_METHODS` for this model; empty if it takes every image size."""
    methods = models.FAMILIES[self.family].RESIZE_METHODS
    return methods if isinstance(methods, tuple) else methods(self.fields)

  @property
  def variant(self) -> str | None:
    """The published size whose parameters have these shapes, but for the head's; None if there is none."""
    family = models.FAMILIES[self.family]
    told = {k: v for k, v in self.fields.items() if k not in family.HEAD.values()}
    for variant, fields in family.VARIANTS.items():
      model = family.Model(**fields)
      if all(getattr(model, key) == value for key, value in told.items()):
        return variant
    return None

  def sides(self) -> tuple[int, int]:
    """Returns the images' (height, width); raises InputError if only their number of tokens is known."""
    *_, height, width, _ = self.input_shape
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

  So `models.build(family, **fields)` is their model, but for fields that no shape depends on: gelu and the family's
  `UNTOLD`. Those are a published size's if the shapes are.

  Args:
    variables: of any family.
    where: what messages call them: a file, an address.

  Raises:
    InputError: they are not a whole model's; what is missing, superfluous or misshapen is listed.
  """
  name = family_of(variables, where)
  family = models.FAMILIES[name]
  have = _shapes(variables)
  try:
    spec = ModelSpec(name, family.fields_of(have), family.input_shape(have))
    wanted = _shapes(spec.abstract_variables())
  except (KeyError, ValueError, IndexError, TypeError, ArithmeticError) as e:
    begin = ", ".join(sorted(have)[:5])
    raise InputError(
      f"{where} holds no whole {family.TITLE}'s parameters; it begins with {begin}."
    ) from e
  sizes = " ".join(f"{k}={v}" for k, v in spec.fields.items())
  _report(_differences(have, wanted), where, f"the {family.TITLE} with {sizes}")
  if variant := spec.variant:
    published = family.VARIANTS[variant]
    spec.fields.update({k: v for k, v in published.items() if k in family.UNTOLD})
  return spec


def check_match(variables: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> Variables:
  """Returns the variables in the types of a model's, NumPy arrays.

  Args:
    variables: from a file.
    wanted: the model's (arrays or jax.ShapeDtypeStruct).
    where: the file, for the message.

  Raises:
    InputError: they are another family's, or another size's; names both. Or some are missing, superfluous, of another
      shape, not finite numbers in the model's type, or negative variances; lists them.
  """
  check_family(variables, family_of(wanted, "the model"), where)
  want = flatten(wanted)
  problems = _differences(_shapes(variables), _shapes(wanted))
  if problems:
    _report(problems, where, f"the model{_other_size(variables, wanted)}")
  types = {name: leaf.dtype for name, leaf in want.items()}
  used, problems = _in_types(flatten(variables), types)
  _report(problems, where, "the model")
  return unflatten(used)


def check_values(variables: Mapping[str, Any], where: str) -> None:
  """Raises InputError that lists variables with values that no model has, in the type that JAX makes of theirs."""
  _report(_in_types(flatten(variables), {})[1], where, "any model")


def _in_types(
  flat: Mapping[str, Any], types: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Returns the arrays in other types, default: JAX's, and what is wrong with them then."""
  used, problems = {}, []
  for name in sorted(flat):
    value = np.asarray(flat[name])
    if not jnp.issubdtype(value.dtype, np.floating):
      problems.append(f"values: {name} has {value.dtype} values, no floating-point numbers")
      continue
    dtype = types.get(name, dtypes.canonicalize_dtype(value.dtype))
    with np.errstate(over="ignore"):
      used[name] = value.astype(dtype, copy=False)
    if not np.isfinite(used[name]).all():
      beyond = f" as {dtype}" if np.isfinite(value).all() else ""
      problems.append(f"values: {name} has {value.dtype} values that are not finite{beyond}")
    elif name.startswith("batch_stats/") and name.endswith("/var") and (used[name] < 0).any():
      problems.append(f"values: {name}, a variance, has negative values")
  return used, problems


def _shapes(variables: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  return {name: tuple(leaf.shape) for name, leaf in flatten(variables).items()}


def _other_size(variables: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
  """Returns the sizes of variables and of a model of the same family, where they differ; "" if they cannot be told."""
  name = family_of(variables)
  family = models.FAMILIES[name]
  try:
    specs = [
      ModelSpec(name, family.fields_of(shapes), family.input_shape(shapes))
      for shapes in (_shapes(variables), _shapes(wanted))
    ]
  except (KeyError, ValueError, IndexError, TypeError, ArithmeticError):
    return ""
  have, want = specs
  if have.variant and want.variant and have.variant != want.variant:
    return f": they are a {family.TITLE} {have.variant}'s, the model is a {want.variant}"
  keys = [k for k in want.fields | have.fields if have.fields.get(k) != want.fields.get(k)]
  theirs, ours = (" ".join(f"{k}={spec.fields.get(k)}" for k in keys) for spec in specs)
  if keys:
    return f": they are a {family.TITLE}'s with {theirs}, the model has {ours}"
  return f": they are for images {have.input_shape}, the model for {want.input_shape}; mixer_jax.weights.resize makes them fit"


def _differences(
  have: Mapping[str, tuple[int, ...]], want: Mapping[str, tuple[int, ...]]
) -> list[str]:
  problems = [
    f"shape: {n} is {have[n]}, the model's is {want[n]}"
    for n in sorted(set(have) & set(want))
    if have[n] != want[n]
  ]
  problems += [f"missing: {n} {want[n]}" for n in sorted(set(want) - set(have))]
  return problems + [f"not in the model: {n} {have[n]}" for n in sorted(set(have) - set(want))]


def _report(problems: list[str], where: str, model: str) -> None:
  if problems:
    raise InputError(f"the parameters of {where} do not fit {model}:\n  {shortened(problems)}")


def shortened(lines: list[str]) -> str:
  """Returns the first ten lines, indented, and how many there are besides."""
  more = len(lines) - MAX_LISTED
  return "\n  ".join(lines[:MAX_LISTED] + ([f"… and {more} more"] if more > 0 else []))
