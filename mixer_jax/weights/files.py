"""Weights files on disk: what kind a file is, and writing one whole or not at all."""

import contextlib
from collections.abc import Iterator
from typing import IO, Literal

from etils import epath

from mixer_jax.errors import InputError, SaveError

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


@contextlib.contextmanager
def replacing(path: epath.Path) -> Iterator[IO[bytes]]:
  """Opens a file that takes the path's place once it is whole; after an error nothing is left of it.

  Raises:
    SaveError: it could not be written.
  """
  partial = path.parent / f"{path.name}.partial"
  try:
    with partial.open("wb") as f:
      yield f
    partial.replace(path)
  except BaseException as e:
    with contextlib.suppress(OSError):
      partial.unlink(missing_ok=True)
    if isinstance(e, OSError):
      raise SaveError(f"could not write {path}: {e}") from e
    raise
