"""Errors that commands print in full, without a traceback."""


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
