"""What all commands share: errors of the user's making are printed in full, without a traceback."""

import os
import sys
from collections.abc import Callable
from typing import Any

from absl import flags, logging

from mixer_jax.errors import InputError

_SAVER = f"{os.sep}orbax{os.sep}"


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
      _report(e)
      sys.exit(2)
    except RuntimeError as e:
      if type(e).__name__ not in ("DivergedError", "SaveError"):
        raise
      _report(e)
      # Threads of Orbax may still hold what they could not write, and would say so at their end.
      os._exit(1)

  def parse(argv: list[str]) -> list[str]:
    try:
      return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as e:
      # ml_collections raises all of these: for a file that is not there or fails, for keys that do not
      # exist, for values of another type.
      _report(e)
      sys.exit(2)

  logging.set_verbosity(logging.WARNING)  # JAX and Orbax say a lot at INFO; --verbosity=0 shows it
  # Orbax logs tracebacks of failed writes in all its threads; the run reports them in one line.
  logging.get_absl_handler().addFilter(
    lambda record: record.name != "asyncio" and _SAVER not in record.pathname
  )
  app_run(guarded, flags_parser=parse)


def loaded(flag: Any) -> Any:
  """Returns the configuration of a flag, None if it was not given; raises InputError if it failed."""
  config = flag.value
  try:
    return config if config is None or config.items() is not None else None
  except OSError as e:  # ml_collections keeps a failed load until the first use
    raise InputError(str(e)) from e


def _report(error: Exception) -> None:
  text = str(error.args[0]) if error.args else repr(error)
  # ml_collections turns what a configuration file raises into the text of a traceback.
  text = text.rpartition(f"{InputError.__module__}.InputError: ")[2]
  print(f"error: {text.strip()}", file=sys.stderr, flush=True)
