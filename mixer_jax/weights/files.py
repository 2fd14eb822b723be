"""What kind a weights file is, and how much it may unpack to."""

import re
from typing import Literal

from mixer_jax.errors import InputError

Kind = Literal["npz", "safetensors", "pth"]
MAX_BYTES = 16 << 30  # of a file, and unpacked; three times H/14 at three times its resolution
# Trained weights hardly compress; those of a model made K times larger are zeros but for 1/K². Tensors of a .pth file
# may share storage: one with weights that blocks share is smaller than its tensors.
_MAX_EXPANSION, _ALWAYS_BYTES = 50, 64 << 20
HEAD_BYTES = 512  # enough for `kind_of`
# Of a zip file that torch wrote, the first entry is one of these in a folder.
_TORCH_ENTRIES = (b"/data.pkl", b"/version", b"/byteorder", b"/.format_version")
_FOREIGN = (
  (re.compile(rb"\x89HDF\r\n"), "an HDF5 file, as Keras writes it: save its arrays as .npz with the names here"),
  (
    re.compile(rb"[\x81-\x8f][\xa1-\xbf]\w"),
    "a msgpack file, as flax.serialization writes it: read it with msgpack_restore, and write it with weights.save_npz",
  ),
  (re.compile(rb".{4}TFL3", re.DOTALL), "a TensorFlow Lite model, which cannot be trained or converted"),
  (re.compile(rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd"), "a compressed file: unpack it first"),
)  # fmt: skip
"""Beginning -> what the file is, and what to do."""


def kind_of(head: bytes, where: str) -> Kind:
  """Returns the kind of a weights file by its first bytes, whatever its name.

  Args:
    head: the first `HEAD_BYTES`, or fewer if the file has fewer.
    where: the file, for the message.

  Raises:
    InputError: none of them; says what it is if that is known.
  """
  if head.startswith(b"PK\x03\x04"):
    entry = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return "pth" if entry.endswith(_TORCH_ENTRIES) else "npz"
  if head[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
    return "safetensors"
  if head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):  # a pickle
    return "pth"
  if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
    raise InputError(f"{where} is a web page (HTML or XML), not weights: is the address right?")
  for beginning, what in _FOREIGN:
    if beginning.match(head):
      raise InputError(f"{where} is {what}.")
  raise InputError(
    f"{where} is neither .npz nor .safetensors nor .pth: it begins with {head[:8]!r}."
  )


def check_unpacked(num_bytes: int, size: int, where: str) -> None:
  """Raises InputError if a file of `size` bytes would unpack to more than weights do; `where` names it."""
  if num_bytes > min(MAX_BYTES, _ALWAYS_BYTES + _MAX_EXPANSION * size):
    raise InputError(
      f"{where} of {size:,} bytes would unpack to {num_bytes:,}: that is no weights file. Refused."
    )
