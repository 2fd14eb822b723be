"""Strict reading of ml_collections configurations: every key known, read, and of its declared type.

A configuration section is handed to a function as keyword arguments, and the function's signature is
its schema: a key that the function does not take, a key that is missing and a value of another type
than annotated are errors. So no key can be misspelled, and none can be set that nobody reads.
"""

import difflib
import inspect
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar, Union

from etils import epath

from mixer_jax import files
from mixer_jax.errors import InputError

T = TypeVar("T")


def nearest(word: str, known: Iterable[str]) -> str:
  """Returns ' Did you mean …?' with the closest of the known words, else the whole list."""
  known = [str(k) for k in known]
  close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
  return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."


def _matches(value: Any, hint: Any) -> bool:
  """True if `value` is of the annotated type; annotations that are not plain data are not checked."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin in (Union, types.UnionType):
    return any(_matches(value, a) for a in args)
  if origin is Literal:
    return any(value == a and type(value) is type(a) for a in args)
  if hint is None or hint is type(None):
    return value is None
  if hint in (int, float):
    number = int if hint is int else (int, float)
    return isinstance(value, number) and not isinstance(value, bool)
  if hint is Mapping:
    return hasattr(value, "items")  # a ConfigDict is a mapping without being registered as one
  if origin is tuple:
    return isinstance(value, tuple | list) and all(_matches(v, args[0]) for v in value)
  return isinstance(value, hint) if isinstance(hint, type) else True


def _describe(hint: Any) -> str:
  if typing.get_origin(hint) is Literal:
    return "one of " + ", ".join(repr(a) for a in typing.get_args(hint))
  return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def call(fn: Callable[..., T], section: Mapping[str, Any], where: str, **extra: Any) -> T:
  """Returns `fn(**section, **extra)`; raises InputError for unknown, missing or mistyped keys.

  Args:
    fn: its keyword parameters are the section's schema.
    section: the configuration section.
    where: the section's dotted name, for messages: "config.data".
    extra: arguments that do not come from the section (derived numbers, other objects).
  """
  parameters = {
    name: p
    for name, p in inspect.signature(fn).parameters.items()
    if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and name not in extra
  }
  hints = typing.get_type_hints(fn)
  values = dict(section.items())
  for key, value in values.items():
    if key not in parameters:
      raise InputError(f"{where}.{key} is not read by anything.{nearest(key, parameters)}")
    if key in hints and not _matches(value, hints[key]):
      raise InputError(
        f"{where}.{key} is {value!r} of type {type(value).__name__}; expected {_describe(hints[key])}."
      )
    if hints.get(key) is float:
      values[key] = float(value)  # an int is welcome where a float is wanted
    if typing.get_origin(hints.get(key)) is tuple:
      values[key] = tuple(value)  # JSON has lists
  for key, p in parameters.items():
    if key not in values and p.default is p.empty:
      raise InputError(
        f"{where}.{key} is missing; configs/common.py has every key and its default."
      )
  return fn(**values, **extra)


def flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns {dotted name: value}; tuples become lists, as JSON has them."""
  flat: dict[str, Any] = {}
  for key, value in section.items():
    if hasattr(value, "items"):
      flat.update(flatten(value, f"{prefix}{key}."))
    else:
      flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
  return flat


def differences(
  old: Mapping[str, Any], new: Mapping[str, Any], may_change: Iterable[str]
) -> list[str]:
  """Returns a line for each key whose value differs, those apart whose name, or section, may change."""
  a, b = flatten(old), flatten(new)
  allowed = tuple(may_change)
  lines = []
  for key in sorted({**a, **b}):
    if any(key == name or key.startswith(f"{name}.") for name in allowed):
      continue
    if a.get(key, "(absent)") != b.get(key, "(absent)"):
      lines.append(f"{key}: {a.get(key, '(absent)')!r} -> {b.get(key, '(absent)')!r}")
  return lines


def save(path: epath.Path, config: Mapping[str, Any]) -> None:
  """Writes the configuration as JSON, whole or not at all. Raises SaveError."""
  text = json.dumps(_plain(config), indent=2, sort_keys=True) + "\n"
  with files.replacing(path) as partial:
    partial.write_text(text)


def _plain(value: Any) -> Any:
  return {k: _plain(v) for k, v in value.items()} if hasattr(value, "items") else value


def load(path: epath.Path) -> dict[str, Any]:
  """Reads a saved configuration; raises InputError if the file is absent or not JSON."""
  if not path.exists():
    raise InputError(f"{path} does not exist: {path.parent} is not the workdir of a run.")
  try:
    return json.loads(path.read_text())
  except ValueError as e:
    raise InputError(f"{path} is not valid JSON ({e}); restore it or start a new workdir.") from e
