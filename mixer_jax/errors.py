"""The one exception that means: the user gave something that cannot work."""


class InputError(ValueError):
  """Bad input: the message names the culprit and the way out; commands print it without a traceback."""
