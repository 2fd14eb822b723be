"""Every key with its default, which other configurations change: mixer_jax/schema.py as a ConfigDict."""

import types
import typing
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from mixer_jax import configuration, schema
from mixer_jax.errors import InputError


def get_config(model: str = "mixer") -> Any:
  """Returns the configuration with its defaults, locked: no key can be added, but evaluators can.

  Args:
    model: the model family, whose fields are those of config.model.

  Raises:
    InputError: unknown family.
  """
  named = {
    "model": {"name": model},
    "evaluators": {"val": {"type": "classification"}, "pictures": {"type": "pictures"}},
  }
  config: Any = _section(schema.tree(named)).lock()
  config.evaluators.unlock()
  return config


def _section(fields: configuration.Tree) -> ConfigDict:
  section = ConfigDict()
  for key, field in fields.items():
    section[key] = _default(field) if isinstance(field, configuration.Field) else _section(field)
  return section


def _default(field: configuration.Field) -> Any:
  union = typing.get_origin(field.hint) in (typing.Union, types.UnionType)
  kinds = [t for t in typing.get_args(field.hint) if t is not types.NoneType] if union else []
  # ml_collections fixes the type of other keys at their default's, and of these reads any literal, None too.
  if len(kinds) > 1 or (union and typing.get_origin(kinds[0]) is None and kinds[0] in (int, float)):
    return FieldReference(field.default, field_type=object)
  if field.default is not None:
    return field.default
  origin = typing.get_origin(kinds[0])
  return placeholder(str if origin is typing.Literal else origin or kinds[0])


def parse_arg(arg: str | None, **defaults: str) -> dict[str, str]:
  """Parses the text after the colon of --config=FILE:ARG, "B/16" or "L/16,epochs=14".

  Args:
    arg: comma-separated name=value; a first part without a name is the variant.
    defaults: the names that may be given, with their defaults.

  Raises:
    InputError: unknown name.
  """
  values = dict(defaults)
  for i, part in enumerate(p for p in (arg or "").split(",") if p):
    name, equals, value = part.partition("=")
    if not equals and i == 0:
      name, value = "variant", part
    if name not in defaults or not value:
      raise InputError(
        f"{part!r} in the configuration's argument is unknown; known: "
        + ", ".join("VARIANT" if name == "variant" else f"{name}=…" for name in defaults)
      )
    values[name] = value
  return values


def number(name: str, text: str | float) -> float:
  """Returns the number that an argument of a configuration is; raises InputError if it is none."""
  try:
    return float(text)
  except ValueError as e:
    raise InputError(f"{name}={text} in the configuration's argument is not a number.") from e


def size_letter(variant: str, rows: dict[str, Any]) -> str:
  """Returns the letter of "B/16" that names a row of table 4; raises InputError if it has none."""
  letter = variant.partition("/")[0]
  if letter not in rows:
    raise InputError(f"table 4 has no row for {variant!r}; it has the sizes {', '.join(rows)}.")
  return letter
