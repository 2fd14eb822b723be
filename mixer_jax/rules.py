"""Rules "REGEX=VALUE" on names: the first whose expression matches a whole name decides for it."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from mixer_jax.errors import InputError

T = TypeVar("T")


class Rule(NamedTuple, Generic[T]):
  """A rule as it was written, and what it says."""

  text: str
  pattern: re.Pattern[str]
  value: T


def parse(
  argument: str, texts: Iterable[str], form: str, read: Callable[[str], T]
) -> list[Rule[T]]:
  """Parses rules.

  Args:
    argument: what the rules are called, for messages.
    texts: "REGEX=VALUE" each.
    form: what VALUE may be, for messages.
    read: the text of VALUE -> value; raises ValueError.

  Raises:
    InputError: a rule that is not of that form.
  """
  parsed = []
  for text in texts:
    pattern, _, value = text.rpartition("=")
    try:
      if not pattern:
        raise ValueError("it has no expression")
      parsed.append(Rule(text, re.compile(pattern), read(value)))
    except (re.error, ValueError) as e:
      raise InputError(f"{argument}: {text!r} is not REGEX=VALUE with {form}: {e}.") from e
  return parsed


def decide(
  argument: str, rules: Sequence[Rule[T]], names: Sequence[str]
) -> dict[str, Rule[T] | None]:
  """Returns the rule that decides for each name. None if no rule matches the name.

  Raises:
    InputError: a rule that decides for no name.
  """
  found = {n: next((r for r in rules if r.pattern.fullmatch(n)), None) for n in names}
  if unused := [repr(r.text) for r in rules if r not in found.values()]:
    raise InputError(
      f"{argument}: {', '.join(unused)} decides for no parameter: no name matches, or an earlier rule "
      f"does. Names are such as {', '.join(names[:3])}."
    )
  return found
