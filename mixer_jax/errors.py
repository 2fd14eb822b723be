"""Errors that commands print in full, without a traceback."""

import importlib.metadata
import shlex


class InputError(ValueError):
  """Bad input: the message names the culprit and the way out."""


class SaveError(RuntimeError):
  """A checkpoint, or another file of the run, could not be written."""


class DivergedError(RuntimeError):
  """A loss, gradient or parameter became infinite or NaN."""


class OutOfMemoryError(RuntimeError):
  """A device or the host has too little memory."""


class RetryError(RuntimeError):
  """Something outside of the run failed; the same command may succeed later."""


class RendezvousError(RetryError):
  """The processes of a run have not found each other."""


class BadRecordError(ValueError):
  """A record that cannot be used: unreadable, no whole image, or an impossible label."""


def installing(extra: str) -> str:
  """Returns the command that installs what an extra of this package names, from wherever the package itself came."""
  try:
    declared = importlib.metadata.requires("mixer-jax") or []
  except importlib.metadata.PackageNotFoundError:  # its files are used as they lie
    declared = []
  named = [need.partition(";")[0].strip() for need in declared if f'extra == "{extra}"' in need]
  return f"pip install {shlex.join(named) if named else shlex.quote(f'.[{extra}]')}"
