"""What all commands share. The user's errors are printed in full, without a traceback."""

import contextlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from mixer_jax import printing, schema
from mixer_jax.errors import (
  DivergedError,
  InputError,
  OutOfMemoryError,
  RetryError,
  SaveError,
  installing,
)
from mixer_jax.tools import command_help, config_files, host_memory, supervisor

_INSECURE = flags.DEFINE_bool(
  "allow_insecure", False, "Download weights over http:// without a checksum."
)
_KNOWN = InputError | DivergedError | OutOfMemoryError | RetryError | SaveError
_SAVER = f"{os.sep}orbax{os.sep}"
_IMPORT = "<frozen importlib._bootstrap>"  # where Python's frames of an import are


def no_arguments(argv: list[str]) -> None:
  """Raises InputError if anything but flags was given."""
  if len(argv) > 1:
    raise InputError(f"unexpected argument {argv[1]!r}: every argument is a --flag=value.")


def end_with_reader() -> None:
  """Ends the process silently where nobody reads its output further, as `head` does: for commands that only print."""
  signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def _refuse_blank(arguments: list[str]) -> None:
  """Raises InputError for a text that was given and is blank, as from a variable that is not set."""
  given = {f"argument {i}": text for i, text in enumerate(arguments, 1)}
  for own in flags.FLAGS.flags_by_module_dict().values():
    given |= {f"--{f.name}": f.value for f in own if f.present and "." not in f.name}
  for name, value in given.items():
    if isinstance(value, str) and not value.strip():
      raise InputError(f"{name} is {value!r}, which names nothing; was a variable not set?")


def run(main: Callable[[list[str]], Any]) -> None:
  """Runs `main` under absl.

  Exits with 2 on bad input, 1 if a run diverged or could not save, 75 if its processes did not meet.
  """

  def guarded(argv: list[str]) -> None:
    try:
      _refuse_blank(argv[1:])
      if _INSECURE.value:
        os.environ["MIXER_JAX_ALLOW_INSECURE"] = "1"  # see weights/download.py
      main(argv)
    except KeyboardInterrupt:
      interrupted = InputError("interrupted")
      _report(interrupted)
      _exit(128 + signal.SIGINT, interrupted, at_once=False)
    except Exception as e:
      e = _explained(e)
      if _others() and not isinstance(e, InputError | DivergedError | RetryError):
        _others().wait_for_loss()
      if not isinstance(e, _KNOWN):
        if not _others():
          raise
        traceback.print_exc()
      _report(e)
      # Threads of Orbax may still hold what they could not write, and would say so at their end.
      _exit(_status(e), e, at_once=not isinstance(e, InputError | RetryError))
    finally:
      if _others():
        _others().leave()

  def parse(argv: list[str]) -> list[str]:
    try:
      if command_help.asked(argv):
        end_with_reader()
        print(command_help.as_called(command_help.text(argv)))
        sys.exit(0)
      return flags.FLAGS(argv)
    except Exception as e:
      # A file that fails, a key that does not exist, a value of another type: ml_collections has a
      # different exception for each. absl wraps ours.
      _report(e.__context__ if isinstance(e.__context__, InputError) else e)
      sys.exit(2)

  try:
    _handle_interrupts()
    _set_up_output()
    host_memory.keep_on_cpu()
    app.run(guarded, flags_parser=parse)
  except KeyboardInterrupt:
    _leave_interrupted()


def _set_up_output() -> None:
  for stream in (sys.stdout, sys.stderr):  # what cannot show a character shows its number
    with contextlib.suppress(AttributeError):  # a notebook's shows all
      stream.reconfigure(errors="backslashreplace")
  logging.set_verbosity(logging.WARNING)  # JAX and Orbax log a lot at INFO; --verbosity=0 shows it
  # Orbax logs tracebacks of failed writes in all its threads, and urllib3 each retry; the run reports them in one line.
  logging.get_absl_handler().addFilter(
    lambda record: (
      record.name not in ("asyncio", "urllib3.connectionpool")
      and not (record.exc_info and _SAVER in record.pathname)
    )
  )


def _handle_interrupts() -> None:
  # Else a shell has it ignored, say.
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _interrupt)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # from a supervisor


def _interrupt(number: int, frame: FrameType | None) -> None:
  """Raises KeyboardInterrupt, but within an import ends at once: C++ modules abort of the exception, or others swallow it."""
  del number
  while frame is not None:
    if frame.f_code.co_filename == _IMPORT:
      _leave_interrupted()
    frame = frame.f_back
  raise KeyboardInterrupt


def _leave_interrupted() -> None:
  os.write(2, b"interrupted\n")
  os._exit(128 + signal.SIGINT)


def _explained(error: Exception) -> Exception:
  """Returns what the runtime means by an error of its own, in the words of the configuration."""
  if isinstance(error, _KNOWN):
    return error
  first = str(error).partition("\n")[0]
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in first:
    return OutOfMemoryError(
      f"out of memory: {first or 'of the host'}. Lower config.batch_size or raise config.grad_accum_steps, set "
      "config.model.remat=block, or spread the parameters (config.mesh.fsdp); python -m mixer_jax.tools.plan "
      "--fit=memory finds what fits. Host memory: lower data.num_workers."
    )
  if (
    "Unable to initialize backend" in first or "Unknown backend" in first or _without_device(error)
  ):
    platforms, reason = os.environ.get("JAX_PLATFORMS", ""), first or "its plugin is not installed."
    return InputError(
      f"JAX finds no device for JAX_PLATFORMS={platforms!r}: {reason} JAX_PLATFORMS=cpu works everywhere. "
      f"NVIDIA GPUs need {installing('cuda')}, TPUs {installing('tpu')}."
    )
  return error


def _without_device(error: Exception) -> bool:
  """Returns whether JAX stumbled over having no backend, which it only asserts, at whatever comes first."""
  jax = sys.modules.get("jax")
  if jax is None or not isinstance(error, AssertionError):
    return False
  try:
    return not jax.devices()
  except Exception:
    return True


def _status(error: Exception) -> int:
  if isinstance(error, RetryError):
    return supervisor.EXIT_RETRY
  return 2 if isinstance(error, InputError) else 1


def _others() -> Any:
  """Returns mixer_jax.parallel.distributed in one of several processes. None in a single process, which does not need it."""
  jax = sys.modules.get("jax")
  if jax is None or not jax.distributed.is_initialized():
    return None
  from mixer_jax.parallel import distributed

  return distributed


def _exit(status: int, error: Exception, at_once: bool) -> None:
  """Exits. Other processes of the run, which wait for this one, learn the reason."""
  if _others():
    _others().stop_all(status, _text(error))
  if at_once:
    os._exit(status)
  sys.exit(status)


def loaded(flag: Any) -> Any:
  """Returns the configuration of a flag, None if it was not given."""
  if (config := flag.value) is not None:
    given = config_flags.get_override_values(flags.FLAGS[flag.name])
    # Of a key that has text, ml_collections takes "None" for text, too.
    config.update_from_flattened_dict({k: None for k, v in given.items() if v == "None"})
    _leave_out(config, given)
  return config


def _leave_out(config: Any, given: Mapping[str, Any]) -> None:
  """Sets to None what a key of the command line is instead of (schema.EITHER)."""
  for pair in schema.EITHER:
    for key, other in (pair, pair[::-1]):
      if given.get(key) is not None and other not in given:
        config.update_from_flattened_dict({other: None})


def _report(error: Exception) -> None:
  text = command_help.as_called(printing.printable(_text(error)))
  print(f"error: {text}", file=sys.stderr, flush=True)


def _text(error: Exception) -> str:
  if isinstance(error, flags.UnrecognizedFlagError):
    return command_help.unknown_flag(error.flagname, error.flagvalue)
  text = str(error.args[0]) if error.args else repr(error)
  if missing := re.match(r"flag --(\w+)=None: Flag --\w+ must have a value", text):
    return f"--{missing[1]} is missing. {flags.FLAGS[missing[1]].help}"
  if wrong := re.match(
    r"flag (--[\w.]+=.*): (invalid literal for int|could not convert string)", text
  ):
    return f"{wrong[1]}: expected a {'whole ' * wrong[2].endswith('int')}number."
  if section := re.match(r"flag (--[\w.]+)=.* as a ConfigDict", text):
    return f"{section[1]} is a section: set its keys, {section[1]}.KEY=VALUE; --config=NAME --help lists them."
  if isinstance(error, KeyError | AttributeError):
    text = config_files.unknown_key(text)
  return text.strip()
