"""Strict reading of configurations: every key known and read, of its declared type, in its range.

A dataclass or a function's signature declares each key once: its name, annotation and default. The annotation also has
the range: `num_workers: Annotated[int, Range(0)] = 0`. So a misspelled key is an error, and so is a key that nobody
reads.
"""

import contextlib
import dataclasses
import difflib
import fnmatch
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeGuard, TypeVar, Union

from etils import epath

from mixer_jax import files
from mixer_jax.errors import InputError

T = TypeVar("T")
MISSING = inspect.Parameter.empty


class Range(NamedTuple):
  """The smallest and the largest value of a number; NaN is outside of every range."""

  low: float = -math.inf
  high: float = math.inf


_SMALLEST, _LARGEST = 1e-30, 1e38  # positive and finite, in float32 too

PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
PositiveFloat = Annotated[float, Range(_SMALLEST, _LARGEST)]
NonNegativeFloat = Annotated[float, Range(0, _LARGEST)]
Fraction = Annotated[float, Range(0, 1)]  # both ends included
Rate = Annotated[float, Range(0, 1 - 1e-7)]  # below 1, in float32 too


class Field(NamedTuple):
  """What is declared of a key.

  Attributes:
    hint: its type, without the range.
    limits: the range of a number. None for other types.
    default: MISSING if it has none.
  """

  hint: Any
  limits: Range | None
  default: Any


Tree = Mapping[str, "Field | Tree"]
"""Fields by key, those of a section below its name."""


def fields(declared: Callable[..., Any]) -> dict[str, Field]:
  """Returns the fields that a dataclass, a Flax module or a function declares."""
  plain, full = (typing.get_type_hints(declared, include_extras=extras) for extras in (False, True))
  return {
    name: Field(plain.get(name, Any), _limits(full.get(name)), p.default)
    for name, p in inspect.signature(declared).parameters.items()
    if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
  }


def is_section(hint: Any) -> TypeGuard[type]:
  """True for a dataclass, the type of a section."""
  return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def tree(declared: type) -> dict[str, Any]:
  """Returns the fields of a dataclass; one whose type is a dataclass is a section."""
  return {
    name: tree(field.hint) if is_section(field.hint) else field
    for name, field in fields(declared).items()
  }


def _limits(hint: Any) -> Range | None:
  """Returns the range in an annotation such as `Annotated[int, Range(1)] | None`."""
  parts = [*getattr(hint, "__metadata__", ()), *map(_limits, typing.get_args(hint))]
  return next((p for p in parts if isinstance(p, Range)), None)


def nearest(word: str, known: Iterable[str], alike: float = 0.5) -> str:
  """Returns ' Did you mean …?' with the closest known word. If none is close, it lists all of them.

  `alike` is how alike the two are at least, from 0 to 1 (difflib); of thousands, one is a little like anything.
  """
  known = [str(k) for k in known]
  close = difflib.get_close_matches(word, known, n=1, cutoff=alike)
  if not known:
    return ""
  return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."


def _matches(value: Any, hint: Any) -> bool:
  """True if `value` is of the annotated type; annotations that are not plain data are not checked."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin in (Union, types.UnionType):
    return any(_matches(value, a) for a in args)
  if origin is Literal:
    return any(value == a and type(value) is type(a) for a in args)
  if hint in (int, float):
    number = int if hint is int else (int, float)
    small = not isinstance(value, int) or abs(value) < 2**63
    return isinstance(value, number) and not isinstance(value, bool) and small
  if origin is tuple:
    return isinstance(value, tuple | list) and all(_matches(v, args[0]) for v in value)
  return isinstance(value, hint) if isinstance(hint, type) else True


def describe(field: Field) -> str:
  """Returns what a field takes: "int, from 1"."""
  low, high = field.limits or Range()
  bounds = f"{f' from {low:.10g}' * (low > -math.inf)}{f' to {high:.10g}' * (high < math.inf)}"
  return _name(field.hint) + ("," + bounds if bounds else "")


def _name(hint: Any) -> str:
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin in (Union, types.UnionType):
    return " | ".join(map(_name, args))
  if origin is Literal:
    return "one of " + ", ".join(map(repr, args))
  if hint is types.NoneType:
    return "None"
  return hint.__name__ if isinstance(hint, type) else str(hint)


def _fits(value: Any, field: Field) -> bool:
  if field.limits is None or not isinstance(value, int | float):
    return _matches(value, field.hint)
  return _matches(value, field.hint) and field.limits.low <= value <= field.limits.high


def faults(
  known: Tree, section: Mapping[str, Any], where: str, moved: Mapping[str, str]
) -> Iterator[str]:
  """Yields a line for each key that is unknown, missing, of another type or out of its range.

  Args:
    known: what is declared.
    section: the configuration, or a section of it.
    where: its dotted name: "config.data".
    moved: dotted names of keys that there are no more -> what to set instead.
  """
  for key in section:
    if key not in known:
      new = moved.get(f"{where}.{key}")
      hint = nearest(key, known) if new is None else f" Set {new}."
      yield f"{where}.{key} is not read by anything.{hint}"
  for key, field in known.items():
    if key not in section:
      yield f"{where}.{key} is missing; configs/common.py has every key and its default."
    elif isinstance(field, Field):
      if not _fits(value := section[key], field):
        kind = type(value).__name__
        yield f"{where}.{key} is {value!r} of type {kind}; expected {describe(field)}."
    elif not hasattr(section[key], "items"):  # a ConfigDict is no registered Mapping
      yield f"{where}.{key} is {section[key]!r}; it is a section with {', '.join(field)}."
    else:
      yield from faults(field, section[key], f"{where}.{key}", moved)


def check(
  known: Tree, section: Mapping[str, Any], where: str, moved: Mapping[str, str] | None = None
) -> None:
  """Raises InputError with all `faults`."""
  if found := list(faults(known, section, where, moved or {})):
    raise InputError("\n".join(found))


def _converted(value: Any, hint: Any) -> Any:
  if is_section(hint):
    return make(hint, value)
  if isinstance(value, list):  # JSON has no tuples
    return tuple(value)
  return float(value) if hint is float else value  # an int is welcome where a float is wanted


def make(declared: Callable[..., T], section: Mapping[str, Any], **extra: Any) -> T:
  """Returns `declared(**section, **extra)`, sections as their dataclasses; they must be without fault."""
  hints = typing.get_type_hints(declared)
  return declared(**{k: _converted(v, hints.get(k)) for k, v in section.items()}, **extra)


def call(declared: Callable[..., T], section: Mapping[str, Any], where: str, **extra: Any) -> T:
  """Returns `declared(**section, **extra)`; raises InputError for all `faults` of the section.

  Args:
    declared: its keyword parameters are what the section may have; those with a default may be absent.
    section: the configuration's section, or other arguments of a user's.
    where: the section's dotted name, for messages: "config.mesh".
    extra: arguments that do not come from the section (derived numbers, other objects).
  """
  known = {k: f for k, f in fields(declared).items() if k not in extra}
  defaults = {k: f.default for k, f in known.items() if f.default is not MISSING}
  values = {**defaults, **section}
  check(known, values, where)
  return make(declared, values, **extra)


@contextlib.contextmanager
def placed(config: Mapping[str, Any], *sections: str) -> Iterator[None]:
  """Adds the section to the error messages of leaves, which begin with an argument's name.

  With the section "schedule", "warmup_steps is 9 …" becomes "config.schedule.warmup_steps is 9 …". Keys of the top
  level are tried last.
  """
  try:
    yield
  except InputError as e:
    word = re.split(r"\W", str(e), maxsplit=1)[0]
    for section in sections:
      if word in config[section]:
        raise InputError(f"config.{section}.{e}") from e
    if word in config:
      raise InputError(f"config.{e}") from e
    raise


def flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns {dotted name: value}; tuples become lists, as JSON has them."""
  flat: dict[str, Any] = {}
  for key, value in section.items():
    if hasattr(value, "items"):
      flat.update(flatten(value, f"{prefix}{key}."))
    else:
      flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
  return flat


def changed(
  old: Mapping[str, Any], new: Mapping[str, Any], may_change: Iterable[str]
) -> dict[str, str]:
  """Returns each key whose value differs, with a line that says so, except the keys and sections that may change.

  Names may have the wildcards of fnmatch: "evaluators.*.batch_size".
  """
  a, b = flatten(old), flatten(new)
  allowed = [pattern for name in may_change for pattern in (name, f"{name}.*")]
  pairs = {key: (a.get(key, "(absent)"), b.get(key, "(absent)")) for key in sorted({**a, **b})}
  return {
    key: f"{key}: {before!r} -> {now!r}"
    for key, (before, now) in pairs.items()
    if before != now and not any(fnmatch.fnmatchcase(key, pattern) for pattern in allowed)
  }


def differences(
  old: Mapping[str, Any], new: Mapping[str, Any], may_change: Iterable[str]
) -> list[str]:
  """Returns the lines of `changed`."""
  return [*changed(old, new, may_change).values()]


def save(path: epath.Path, config: Mapping[str, Any]) -> None:
  """Writes the configuration as JSON, whole or not at all; raises SaveError."""
  text = json.dumps(plain(config), indent=2, sort_keys=True) + "\n"
  with files.replacing(path) as partial:
    partial.write_text(text)


def plain(value: Any) -> Any:
  """Returns nested sections as dictionaries, for JSON."""
  return {k: plain(v) for k, v in value.items()} if hasattr(value, "items") else value


def load(path: epath.Path) -> dict[str, Any]:
  """Reads a saved configuration; raises InputError if the file is absent, not JSON, or has a key twice."""
  try:
    return json.loads(files.read_listed(path), object_pairs_hook=_without_duplicates)
  except (FileNotFoundError, NotADirectoryError):
    raise InputError(f"{path} does not exist: {path.parent} is not the workdir of a run.") from None
  except (ValueError, RecursionError) as e:
    raise InputError(f"{path} is damaged: {e}. Restore it or start a new workdir.") from e


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  section = dict(pairs)
  if len(section) < len(pairs):
    repeated = sorted({k for k, _ in pairs if [n for n, _ in pairs].count(k) > 1})
    raise ValueError(f"{repeated[0]} is there twice")
  return section
