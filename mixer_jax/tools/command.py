"""What all commands share: errors of the user's making are printed in full, without a traceback."""

import sys
from collections.abc import Callable
from typing import Any

from absl import flags, logging

from mixer_jax.errors import InputError


def no_arguments(argv: list[str]) -> None:
  """Raises InputError if anything but flags was given."""
  if len(argv) > 1:
    raise InputError(f"unexpected argument {argv[1]!r}: every argument is a --flag=value.")


def run(app_run: Callable[..., Any], main: Callable[[list[str]], Any]) -> None:
  """Runs `main` under absl; exits 2 on bad input, 1 where a run diverged or could not save."""

  def guarded(argv: list[str]) -> None:
    try:
      main(argv)
    except InputError as e:
      _fail(2, e)
    except RuntimeError as e:
      if type(e).__name__ not in ("DivergedError", "SaveError"):
        raise
      _fail(1, e)

  def parse(argv: list[str]) -> list[str]:
    try:
      return flags.FLAGS(argv)
    except flags.Error as e:
      _fail(2, e)
    except (AttributeError, KeyError, TypeError, InputError) as e:
      # ml_collections raises these for configuration keys that do not exist or have another type.
      _fail(2, e)
    raise AssertionError("unreachable")

  logging.set_verbosity(logging.WARNING)  # JAX and Orbax say a lot at INFO; --verbosity=0 shows it
  app_run(guarded, flags_parser=parse)


def _fail(status: int, error: Exception) -> None:
  text = str(error.args[0]) if error.args else repr(error)
  print(f"error: {text.strip()}", file=sys.stderr, flush=True)
  sys.exit(status)
