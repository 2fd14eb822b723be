"""Model families by name. `build("mixer", variant="B/16", num_classes=1000)` returns a Flax module.

A family is one file, entered in `FAMILIES`. It has:
- `Model`, a `base.BlockModel`, or without drop path a `base.ImageModel`: (image, train, index, mask) -> logits. An image
  is (h, w, c), a family of clips takes (t, h, w, c) in its place. It has its sizes as fields, and `check`, `logits`,
  `narrow` and `block_fields`; the rest is the base's. It sows `pre_logits`, every block's output (`block_<i>`) and
  every stage's map (`stage_<i>`, from 1);
- `TITLE`, what messages call it; `VARIANTS`, published size -> fields;
- `PREFIX`, an expression that only its parameters' names begin with; `STEM`, one for the kernel (…, channels, out)
  that the image meets first; and `HEAD`, the modules that a new head replaces -> the field that each follows from;
- `fields_of(shapes)`, the fields that parameter shapes tell, the inverse of `init`; `UNTOLD`, the others but gelu, each
  with a value that goes with all shapes; and `input_shape(shapes)`, an
  image (height, width, channels), or a clip with its frames before that, that they are for; shapes are {"block/kernel": (…)};
- `LAYERS`, expressions that the parameters' names below the head begin with, from the image on; numbers in their groups
  order what one of them matches (`layer_numbers`);
- `TORCH_NAMES`, layout -> pairs of names, torch's and ours (weights/torch_layout.py), or a function of a state's names and
  arrays that returns them; `TORCH_FORM`, only if torch cuts its parameters otherwise; and `RELEASED_RENAMES`, expressions
  for the authors' older .npz layouts; empty if there are none. A family may have `released_form`, a function of name -> array;
- `RESIZE_METHODS`, and if there are any `resize` and `resize_fields`: parameters and fields for another grid of
  tokens by one of them. A family without any is not tied to a number of tokens. If only some of its models do, it is a function of
  the fields.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
  resnet,
  s2_mlp,
  smlp_net,
  spach,
  vit,
)

FAMILIES: dict[str, Any] = {
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


def _family(name: str, where: str = "config.model.name") -> Any:
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


def _check_effect(family: Any, variant: str, fields: Mapping[str, Any]) -> None:
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
