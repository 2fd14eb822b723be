"""Rules "REGEX=VALUE" on names: the first whose expression matches a whole name decides for it."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from mixer_jax.errors import InputError

T = TypeVar("T")
_LONGEST, _MOST_REPEATS, _MOST_CHOICES = 1000, 4, 16  # of an expression


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
      _check_effort(pattern)
      parsed.append(Rule(text, re.compile(pattern), read(value)))
    except (re.error, ValueError) as e:
      raise InputError(f"{argument}: {text!r} is not REGEX=VALUE with {form}: {e}.") from e
  return parsed


def _check_effort(pattern: str) -> None:
  """Raises ValueError for an expression whose search for a match may take minutes, since `re` tries one way after another."""
  if len(pattern) > _LONGEST:
    raise ValueError(f"it has more than {_LONGEST} characters")
  plain = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "x", pattern)  # escapes and classes
  if len(re.findall(r"[*+]|\{\d*,", plain)) > _MOST_REPEATS:
    raise ValueError(f"it has more than {_MOST_REPEATS} repeats (*, + or {{m,n}})")
  if len(re.findall(r"\||(?<!\()\?", plain)) > _MOST_CHOICES:
    raise ValueError(f"it has more than {_MOST_CHOICES} choices (? or |)")
  groups, whole = "", plain
  while groups != whole:  # from the inside out; a group in which there is a choice becomes x*
    groups, whole = (
      whole,
      re.sub(
        r"\((?:\?(?:[:=!]|<[=!]|P<\w+>))?([^()]*)\)",
        lambda group: "x*" if re.search(r"[*+{|?]", group[1]) else "x",
        whole,
      ),
    )
    if re.search(r"x\*[*+{]", whole):
      raise ValueError("it repeats a group that repeats or chooses")


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
