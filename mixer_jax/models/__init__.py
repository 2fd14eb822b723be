"""Model families by name. `build("mixer", variant="B/16", num_classes=1000)` returns a Flax module.

A family is one file, entered in `FAMILIES`; `Family` says what it has.
"""

import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mixer_jax import configuration
from mixer_jax.errors import InputError
from mixer_jax.models import (
  conv_mlp,
  cycle_mlp,
  hire_mlp,
  mixer,
  mlp_3d,
  ms_mlp,
  res_mlp,
  resizing,
  resnet,
  s2_mlp,
  smlp_net,
  spach,
  vit,
)

Shapes = Mapping[str, tuple[int, ...]]


class Family(NamedTuple):
  """What a family's file has, under the same names. It leaves out what the default here is right for.

  Names are parameters', "S2Block_0/Dense_0/kernel", and shapes are by name.

  Attributes:
    TITLE: what messages call it.
    Model: a `base.BlockModel`, or without drop path a `base.ImageModel`, with the sizes as its fields. An image is
      (h, w, c); a family of clips takes (t, h, w, c) in its place.
    VARIANTS: published size -> fields of Model.
    PREFIX: an expression; only this family has parameters whose names begin with it.
    STEM: an expression for the whole name of the kernel (…, channels, out) that the image meets first.
    LAYERS: expressions for the beginnings of the names below the head, from the image on. Each is one layer, or if it
      has groups, which match numbers, one for every different number: block, or stage and block. See `layer_numbers`.
    fields_of: shapes -> the fields that they tell, `num_classes` among them: the inverse of `init`.
    input_shape: shapes -> an image (height, width, channels), or a clip with its frames before that, that they are for.
    HEAD: modules that a new head replaces -> the field that each follows from. Default: that of `ImageModel.classify`.
    UNTOLD: the fields that shapes do not tell, but for gelu -> a value that goes with all shapes.
    TORCH_NAMES: layout -> pairs of names, torch's and ours, or a function of a state's names and arrays that returns them
      (weights/torch_layout.py).
    TORCH_FORM: two functions, if torch cuts the parameters otherwise (weights/torch_layout.py).
    RELEASED_RENAMES: pairs (expression, replacement) for names in the authors' older .npz files.
    released_form: {name: array} of the authors' .npz file -> ours, where renaming is not enough.
    RESIZE_METHODS: of "paper" and "interpolate", what `resize` can do; or a function of the fields that returns it, if
      only some models are tied to their number of tokens. Those have a field `patch_size`, and if their stages halve the
      grid, a tuple `stages` or `num_blocks`. Default: no model is tied.
    resize: (params, old_grid, new_grid, method) -> the parameters for another grid of tokens, (rows, columns).
    resize_fields: (fields, old_grid, new_grid, method) -> the fields that go with them. Default: the same.
  """

  TITLE: str
  Model: Any
  VARIANTS: Mapping[str, dict[str, Any]]
  PREFIX: str
  STEM: str
  LAYERS: tuple[str, ...]
  fields_of: Callable[[Shapes], dict[str, Any]]
  input_shape: Callable[[Shapes], tuple[int, ...]]
  HEAD: Mapping[str, str] = types.MappingProxyType({"head": "num_classes"})
  UNTOLD: Mapping[str, Any] = types.MappingProxyType({})
  TORCH_NAMES: Mapping[str, Any] = types.MappingProxyType({})
  TORCH_FORM: tuple[Callable[..., Any], Callable[..., Any]] | None = None
  RELEASED_RENAMES: tuple[tuple[str, str], ...] = ()
  released_form: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
  RESIZE_METHODS: tuple[str, ...] | Callable[[Mapping[str, Any]], tuple[str, ...]] = ()
  resize: Any = None
  resize_fields: Callable[..., dict[str, Any]] = resizing.same_fields

  @classmethod
  def of(cls, file: Any) -> "Family":
    """Returns the family of a module; raises TypeError that lists what it lacks."""
    has = {name: getattr(file, name) for name in cls._fields if hasattr(file, name)}
    needed = {*cls._fields} - {*cls._field_defaults}
    needed |= {"resize"} if "RESIZE_METHODS" in has else set()
    if lacking := [name for name in cls._fields if name in needed - {*has}]:
      raise TypeError(f"{file.__name__} lacks {', '.join(lacking)}: see mixer_jax.models.Family.")
    return cls(**has)


FAMILIES = {
  name: Family.of(file)
  for name, file in {
    "mixer": mixer,
    "res_mlp": res_mlp,
    "conv_mlp": conv_mlp,
    "cycle_mlp": cycle_mlp,
    "s2_mlp": s2_mlp,
    "hire_mlp": hire_mlp,
    "ms_mlp": ms_mlp,
    "vit": vit,
    "resnet": resnet,
    "smlp_net": smlp_net,
    "spach": spach,
    "mlp3d": mlp_3d,
  }.items()
}
HOW_TRAINED = frozenset(
  {
    "dropout_rate",
    "layer_scale_init",
    "stoch_depth",
    "stoch_depth_rescale",
    "head_bias_init",
    "kernels",
    "dtype",
    "param_dtype",
    "remat",
  }
)
"""Fields that say how a model is trained or computed; all others say which function its parameters are."""


def schema(name: str) -> dict[str, configuration.Field]:
  """Returns the fields of config.model for a family: `name`, `variant` and those of its module.

  Sizes that the module demands, and other fields that a variant says, are None here: the variant's, else the
  module's default.

  Raises:
    InputError: unknown family.
  """
  fields = {
    "name": configuration.Field(str, None, name),
    "variant": configuration.Field(str | None, None, None),
  }
  said = {key for variant in _family(name).VARIANTS.values() for key in variant}
  for key, field in configuration.fields(_family(name).Model).items():
    if key not in ("parent", "name", "num_classes", "kernels"):  # the last two are config's own
      left = key in said or field.default is configuration.MISSING
      fields[key] = field._replace(hint=field.hint | None, default=None) if left else field
  return fields


def function_fields(model: nn.Module) -> dict[str, Any]:
  """Returns the fields that say which function a model's parameters are."""
  names = set(model.__dataclass_fields__) - HOW_TRAINED - {"parent", "name"}
  return {name: getattr(model, name) for name in sorted(names)}


def _family(name: str, where: str = "config.model.name") -> Family:
  if name not in [*FAMILIES]:  # which asks for no hash of what a file may hold
    hint = configuration.nearest(str(name), FAMILIES)
    raise InputError(f"{where} {name!r} is unknown.{hint}")
  return FAMILIES[name]


def build(name: str, *, variant: str | None = None, **fields: Any) -> nn.Module:
  """Returns the Flax module of a family.

  Args:
    name: the family, a key of `FAMILIES`.
    variant: a published size ("B/16"); its fields may be overridden one by one. None: every size is
      spelled out in `fields`.
    fields: the module's fields; those that are None are left to the variant.

  Raises:
    InputError: unknown family, variant or field, a value of another type, a size left open, or a variant beside
      all sizes.
  """
  family = _family(name, "model family")
  sizes: dict[str, Any] = {}
  if variant is not None:
    if not isinstance(variant, str) or variant not in family.VARIANTS:
      hint = configuration.nearest(str(variant), family.VARIANTS)
      raise InputError(f"model.variant {variant!r} is not one of {name}'s.{hint}")
    sizes = dict(family.VARIANTS[variant])
    _check_effect(family, variant, fields)
  sizes.update({k: v for k, v in fields.items() if v is not None or k == "num_classes"})
  declared = configuration.fields(family.Model)
  left = [
    k for k, field in declared.items() if field.default is configuration.MISSING and k not in sizes
  ]
  if left:
    wrong = next(
      (
        f" It has no {k!r}.{configuration.nearest(k, declared)}" for k in sizes if k not in declared
      ),
      "",
    )
    raise InputError(
      f"model {name} lacks {', '.join(left)}: give every size, or one of its variants {', '.join(family.VARIANTS)}.{wrong}"
    )
  return configuration.call(family.Model, sizes, "model")


def _check_effect(family: Family, variant: str, fields: Mapping[str, Any]) -> None:
  """Raises InputError if the fields leave no size to the variant, and are not its own."""
  own, given = configuration.flatten(family.VARIANTS[variant]), configuration.flatten(fields)
  known = configuration.fields(family.Model)
  sizes = [key for key in own if known[key].default is configuration.MISSING]
  others = [f"{k} {given.get(k)} ({variant}: {own[k]})" for k in sizes if given.get(k) != own[k]]
  if others and all(given.get(key) is not None for key in sizes):
    raise InputError(
      f"model.variant {variant!r} has no effect, because every size is given besides: {', '.join(others)}. "
      "Change the sizes and leave variant None, or set them to None."
    )


def family_of(names: Iterable[str]) -> str | None:
  """Returns the family that parameters belong to by their names, or None if they belong to no known one."""
  names = list(names)
  for name, family in FAMILIES.items():
    if any(re.match(family.PREFIX, parameter) for parameter in names):
      return name
  return None


def abstract_variables(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, Any]:
  """Returns the shapes and types of a model's variables, computing nothing.

  Args:
    model: of any family.
    input_shape: of one image, (h, w, c), or clip, (t, h, w, c).

  Returns:
    {"params": …} and, for a model with batch statistics, "batch_stats", of jax.ShapeDtypeStruct.
  """
  image = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
  variables = dict(jax.eval_shape(model.init, jax.random.key(0), image))
  variables.pop("intermediates", None)
  return variables


def features(
  model: nn.Module, variables: Mapping[str, Any], image: jax.Array
) -> dict[str, jax.Array]:
  """Returns what a model sows by name: `pre_logits` (b, c), `stage_<i>` (b, [t,] h, w, c), `block_<i>`."""
  _, sown = model.apply(variables, image, mutable=["intermediates"])
  return sown_by_name(sown["intermediates"])


def sown_by_name(intermediates: Mapping[str, Any]) -> dict[str, jax.Array]:
  """Returns what a model itself sows, of the collection "intermediates"."""
  return {name: values[0] for name, values in intermediates.items() if isinstance(values, tuple)}


def layer_numbers(name: str, parameters: Sequence[str]) -> dict[str, int]:
  """Returns the layer of each parameter of a family, for learning rates by layer: as timm numbers them.

  The stem's is 0, block i's i + 1, and the head's the last. What lies between, the final norm, is the last block's
  (timm, models/_manipulate.py: group_with_matcher).
  """
  family = _family(name)
  heads = tuple(f"{module}/" for module in family.HEAD)
  places: dict[str, tuple[int, ...]] = {}
  for parameter in parameters:
    for i, expression in enumerate(family.LAYERS):
      if not parameter.startswith(heads) and (m := re.match(expression, parameter)):
        places[parameter] = (i, *(int(number or 0) for number in m.groups()))
  numbers = {place: i for i, place in enumerate(sorted(set(places.values())))}
  last = len(numbers)
  return {
    p: last if p.startswith(heads) else numbers[places[p]] if p in places else last - 1
    for p in parameters
  }
