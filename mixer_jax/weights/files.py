"""What kind a weights file is."""

from typing import Literal

from mixer_jax.errors import InputError

Kind = Literal["npz", "safetensors"]
HEAD_BYTES = 512  # enough for `kind_of`


def kind_of(head: bytes, where: str) -> Kind:
  """Returns the kind of a weights file by its first bytes, whatever its name.

  Args:
    head: the first `HEAD_BYTES`, or fewer if the file has fewer.
    where: the file, for the message.

  Raises:
    InputError: neither; says so if it is a web page.
  """
  if head.startswith(b"PK\x03\x04"):
    return "npz"
  if head[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
    return "safetensors"
  if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
    raise InputError(f"{where} is a web page (HTML or XML), not weights: is the address right?")
  raise InputError(f"{where} is neither .npz nor .safetensors: it begins with {head[:8]!r}.")
