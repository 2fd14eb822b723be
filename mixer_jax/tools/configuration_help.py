"""The part of --help about the configuration: every key, its default and its comment, read from the source."""

import inspect
import re
from collections.abc import Iterator, Mapping

from mixer_jax import configuration, models, schema


def text() -> str:
  """Returns a line for every key. A section's comment stands above its keys."""
  lines = ["", "The configuration (--config.KEY=VALUE):", *_of_section(schema.Options, "config")]
  for kind, section in schema.EVALUATORS.items():
    lines.append(f"\nconfig.evaluators.NAME of type {kind}: {section.__doc__}")
    lines += _of_section(section, "config.evaluators.NAME")
  for family, module in models.FAMILIES.items():
    comments = _attributes(module.Model)
    lines += ["", f"config.model of the family {family}: one of its variants, or every size."]
    lines += [_line(f"config.model.{k}", f, comments) for k, f in models.schema(family).items()]
  return "\n".join([*lines, ""])


def _of_section(declared: type, where: str) -> Iterator[str]:
  """Yields a line for each key, those of nested sections last."""
  comments = _comments(declared)
  known = configuration.fields(declared)
  for key, field in known.items():
    if not configuration.is_section(field.hint) and field.default is not configuration.MISSING:
      yield _line(f"{where}.{key}", field, comments)
  for key, field in known.items():
    if configuration.is_section(field.hint):
      yield f"\nconfig.{key}: {comments[key]}"
      yield from _of_section(field.hint, f"{where}.{key}")


def _line(key: str, field: configuration.Field, comments: Mapping[str, str]) -> str:
  comment = comments.get(key.rpartition(".")[2], "")
  return f"  {key}={field.default!r}  ({configuration.describe(field)})  {comment}".rstrip()


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
  """Returns the attributes' descriptions in a docstring."""
  listed = (inspect.getdoc(declared) or "").partition("Attributes:\n")[2]
  return {
    name: " ".join(text.split())
    for name, text in re.findall(r"^  (\w+): (.*(?:\n    .*)*)", listed, re.MULTILINE)
  }
