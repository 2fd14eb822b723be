"""The part of --help about the configuration: every key, its value and its comment, read from the source."""

import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mixer_jax import configuration, models, schema


def text(config: Mapping[str, Any]) -> str:
  """Returns a line for every key of a configuration, with its value there. A section's comment stands above its keys."""
  values = configuration.flatten(config)
  lines = ["", "The configuration (--config.KEY=VALUE):"]
  lines += _of_section(schema.Options, "config", values)
  there = {name: section["type"] for name, section in config["evaluators"].items()}
  others = {kind.upper(): kind for kind in schema.EVALUATORS if kind not in there.values()}
  for name, kind in {**there, **others}.items():
    where, section = f"config.evaluators.{name}", schema.EVALUATORS[kind]
    lines += [f"\n{where}, of type {kind}: {section.__doc__}"]
    lines += _of_section(section, where, values)
  family = config["model"]["name"]
  comments = _attributes(models.FAMILIES[family].Model)
  lines += ["", f"config.model of the family {family}: one of its variants, or every size."]
  for key, field in models.schema(family).items():
    lines.append(_line(f"config.model.{key}", field, comments, values))
  return "\n".join(lines)


def _of_section(declared: type, where: str, values: Mapping[str, Any]) -> Iterator[str]:
  """Yields a line for each key, those of nested sections last."""
  comments = _comments(declared)
  known = configuration.fields(declared)
  for key, field in known.items():
    if not configuration.is_section(field.hint) and field.default is not configuration.MISSING:
      yield _line(f"{where}.{key}", field, comments, values)
  for key, field in known.items():
    if configuration.is_section(field.hint):
      yield f"\n{where}.{key}: {comments[key]}"
      yield from _of_section(field.hint, f"{where}.{key}", values)


def _line(
  key: str, field: configuration.Field, comments: Mapping[str, str], values: Mapping[str, Any]
) -> str:
  comment = comments.get(key.rpartition(".")[2], "")
  value = values.get(key.removeprefix("config."), field.default)
  value = tuple(value) if isinstance(value, list) else value
  return f"  {key}={value!r}  ({configuration.describe(field)})  {comment}".rstrip()


@functools.cache
def _comments(declared: type) -> dict[str, str]:
  """Returns the comments of a dataclass's fields, which stand above or behind them."""
  found, above = {}, []
  for line in inspect.getsource(declared).splitlines():
    code, _, comment = line.partition("# ")
    if field := re.match(r"  (\w+): ", code):
      found[field[1]] = " ".join([*above, comment]).strip()
    above = [] if code.strip() else [*above, comment]
  return found


def _attributes(declared: type) -> dict[str, str]:
  """Returns the attributes' descriptions in the docstrings of a class and of what it is derived from."""
  found: dict[str, str] = {}
  for kind in reversed(declared.__mro__):
    listed = inspect.cleandoc(vars(kind).get("__doc__") or "").partition("Attributes:\n")[2]
    for name, text in re.findall(r"^  (\w+): (.*(?:\n    .*)*)", listed, re.MULTILINE):
      found[name] = " ".join(text.split())
  return found
