"""Model families by name. `build("mixer", variant="B/16", num_classes=1000)` returns a Flax module."""

from typing import Any

from flax import linen as nn

from mixer_jax import configuration
from mixer_jax.errors import InputError
from mixer_jax.models import mixer, resnet, vit

FAMILIES = {
  "mixer": mixer.MlpMixer,
  "vit": vit.VisionTransformer,
  "resnet": resnet.ResNetV2,
}
VARIANTS = {"mixer": mixer.VARIANTS, "vit": vit.VARIANTS, "resnet": resnet.VARIANTS}


def schema(name: str) -> dict[str, configuration.Field]:
  """Returns the fields of config.model for a family: `name`, `variant` and those of its module.

  Sizes that the module demands may be None here, where a variant says them.

  Raises:
    InputError: unknown family.
  """
  if name not in FAMILIES:
    raise InputError(f"model.name {name!r} is unknown.{configuration.nearest(str(name), FAMILIES)}")
  fields = {
    "name": configuration.Field(str, None, name),
    "variant": configuration.Field(str | None, None, None),
  }
  for key, field in configuration.fields(FAMILIES[name]).items():
    if key not in ("parent", "name", "num_classes"):
      size = field.default is configuration.MISSING
      fields[key] = field._replace(hint=field.hint | None, default=None) if size else field
  return fields


def build(name: str, *, variant: str | None = None, **fields: Any) -> nn.Module:
  """Returns the Flax module of a family.

  Args:
    name: the family, a key of `FAMILIES`.
    variant: a published size ("B/16"); its fields may be overridden one by one. None: every size is
      spelled out in `fields`.
    fields: the module's fields; those that are None are left to the variant.

  Raises:
    InputError: unknown family, variant or field, a value of another type, or a size left open.
  """
  if name not in FAMILIES:
    raise InputError(f"model.name {name!r} is unknown.{configuration.nearest(name, FAMILIES)}")
  sizes: dict[str, Any] = {}
  if variant is not None:
    if not isinstance(variant, str) or variant not in VARIANTS[name]:
      hint = configuration.nearest(str(variant), VARIANTS[name])
      raise InputError(f"model.variant {variant!r} is not one of {name}'s.{hint}")
    sizes = dict(VARIANTS[name][variant])
  sizes.update({k: v for k, v in fields.items() if v is not None or k == "num_classes"})
  return configuration.call(FAMILIES[name], sizes, "config.model")
