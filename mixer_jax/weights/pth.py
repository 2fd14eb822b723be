"""State dictionaries in torch's `.pth` files, zip and older ones, read without an unpickler (torch_pickle.py).

A file may come from anywhere. Sizes are checked before anything is read: zip members are stored uncompressed and
together are no more than the file, a storage has the bytes that its tensors say, a tensor lies inside its storage.
Other objects may lie beside the weights, but not among them.
"""

import io
import math
import os
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np
from etils import epath

from mixer_jax.errors import InputError
from mixer_jax.weights import files
from mixer_jax.weights.torch_pickle import Opaque, Storage, Tensor, follow

DEFAULT_ENTRIES = ("model", "state_dict")
_MAX_MEMBERS, _MAX_PICKLE_BYTES = 100_000, 64 << 20
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_NAME = re.compile(r"[\w.-]{1,300}", re.ASCII)
# What zipfile, pickletools, NumPy and the machine make of files that are damaged or something else. The warning,
# of texts that pickletools decodes, is raised only where warnings are errors.
_DAMAGE = (
  ValueError, OSError, EOFError, LookupError, TypeError, AttributeError, NotImplementedError, RuntimeError,
  OverflowError, struct.error, zipfile.BadZipFile, DeprecationWarning,
)  # fmt: skip


def load_pth(
  path: str | os.PathLike[str], entry: str | None = None, where: str | None = None
) -> tuple[str | None, dict[str, np.ndarray]]:
  """Returns the name of the entry that was taken, and its arrays by name.

  The name is None if the file is a state dictionary itself.

  Args:
    path: the file.
    entry: which of the file's state dictionaries. Default: `model`, else `state_dict`, else the file itself.
    where: what to call it in messages, if not by its path.

  Raises:
    InputError: no such file or entry, not a whole file of torch, or values among the weights that are no
      tensors.
  """
  where = where or str(path)
  try:
    with epath.Path(path).open("rb") as f:
      size = f.seek(0, os.SEEK_END)
      f.seek(0)
      is_zip = f.read(2) == b"PK"
      f.seek(0)
      content, storages = (_read_zip if is_zip else _read_legacy)(f, size)
      taken, state = _choose(content, entry, where)
      return taken, _arrays(state, storages, size, where)
  except InputError:
    raise
  except _DAMAGE as e:
    raise InputError(f"{where} is not a whole .pth file of plain tensors: {e}") from e


class _Storages:
  """The storages of an open file, read when a tensor needs them.

  Args:
    read: returns the bytes of a storage. Raises KeyError if the file has none of that key, ValueError if that
      one has another number of bytes.
    big_endian: the byte order of all numbers.
  """

  def __init__(self, read: Callable[[Storage], bytes | memoryview], big_endian: bool = False):
    self._read, self._order = read, ">" if big_endian else "<"
    self._arrays: dict[str, np.ndarray] = {}

  def array(self, storage: Storage) -> np.ndarray:
    """Returns the whole storage (length,)."""
    if storage.key not in self._arrays:
      size = np.dtype(storage.dtype).itemsize
      try:
        raw = np.frombuffer(self._read(storage), f"{self._order}u{size}")
      except KeyError as e:
        raise ValueError(f"it has no storage {storage.key!r}") from e
      self._arrays[storage.key] = raw.astype(f"u{size}", copy=False).view(storage.dtype)
    found = self._arrays[storage.key]
    if found.dtype != storage.dtype or found.size != storage.length:
      raise ValueError(f"storage {storage.key!r} is of two types or lengths")
    return found


def _read_zip(f: IO[bytes], size: int) -> tuple[Any, _Storages]:
  """Returns the content of a file as torch 1.6 and later write it, and its storages."""
  archive = zipfile.ZipFile(f)
  members = _members(archive, size)
  roots = [name for name in members if re.fullmatch(r"([^/]+/)?data\.pkl", name)]
  if len(roots) != 1:
    raise ValueError(f"it has {len(roots)} data.pkl instead of one")
  root = roots[0].removesuffix("data.pkl")
  if members[roots[0]].file_size > _MAX_PICKLE_BYTES:
    raise ValueError(f"its data.pkl has {members[roots[0]].file_size:,} bytes")

  def read(storage: Storage) -> bytes:
    info = members[f"{root}data/{storage.key}"]
    if info.file_size != storage.nbytes:
      raise ValueError(
        f"storage {storage.key!r} has {info.file_size:,} bytes, not {storage.nbytes:,}"
      )
    return archive.read(info)  # to the end, where zipfile compares the CRC

  order = archive.read(f"{root}byteorder") if f"{root}byteorder" in members else b"little"
  if order not in (b"little", b"big"):
    raise ValueError(f"its byte order is {order[:10]!r}")
  content = follow(io.BytesIO(archive.read(members[roots[0]])))
  return content, _Storages(read, big_endian=order == b"big")


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
  """Returns {name: entry}; refuses what torch does not write and what would unpack to more than the file."""
  infos = archive.infolist()
  if len(infos) > _MAX_MEMBERS:
    raise ValueError(f"it has {len(infos)} entries")
  members = {info.filename: info for info in infos}
  if len(members) != len(infos):
    raise ValueError("it has an entry twice")
  for name, info in members.items():
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
      raise ValueError(f"its entry {name!r} is compressed, which torch does not do")
  if (unpacked := sum(info.file_size for info in infos)) > size:
    raise ValueError(f"its entries have {unpacked:,} bytes, the file {size:,}")
  return members


def _read_legacy(f: IO[bytes], size: int) -> tuple[Any, _Storages]:
  """Returns the content of a file as torch wrote it before 1.6, and its storages.

  It has five pickles: a magic number, a version, the byte order, the content, the storages' keys. Each storage
  follows as its length (8 bytes) and its values.
  """
  if size > files.MAX_BYTES:
    raise ValueError(f"it has {size:,} bytes")
  data = f.read()
  stream = io.BytesIO(data)
  if follow(stream) != _MAGIC:
    raise ValueError("it is a pickle, but not one of torch's")
  if follow(stream) != _PROTOCOL:
    raise ValueError("its version is another than torch's 1001")
  big_endian = follow(stream)["little_endian"] is not True
  used: dict[str, Storage] = {}
  content = follow(stream, used)
  keys, at = follow(stream), stream.tell()
  places: dict[str, slice] = {}
  for key in keys:
    # What a file made to deceive has here instead may take ages to hash or print.
    if type(key) is not str or key not in used:
      raise ValueError("it has a storage that it does not describe")
    nbytes = used[key].nbytes
    length = int.from_bytes(data[at : at + 8], "big" if big_endian else "little")
    places[key] = slice(at + 8, at + 8 + nbytes)
    at += 8 + nbytes
    if length != used[key].length or at > size:
      raise ValueError(f"storage {key!r} has not the {nbytes:,} bytes that it should have")
  return content, _Storages(lambda storage: memoryview(data)[places[storage.key]], big_endian)


def _choose(content: Any, entry: str | None, where: str) -> tuple[str | None, dict[str, Any]]:
  """Returns the name of the state dictionary that is meant, None if it is all the content, and itself."""
  if type(content) is not dict:
    kind = content.made_by if isinstance(content, Opaque) else type(content).__name__
    raise InputError(f"{where} holds a {kind[:100]!r}, no dictionary of tensors.")
  entries = {name: value for name, value in content.items() if _has_tensors(value)}
  for name in DEFAULT_ENTRIES if entry is None else (entry,):
    if name in entries:
      return name, entries[name]
  known = ", ".join(repr(name[:100]) for name in sorted(entries)[:20]) or "none"
  if entry is not None:
    raise InputError(f"{where} has no entry {entry!r} of tensors; it has {known}.")
  if _has_tensors(content):
    return None, content
  raise InputError(
    f"{where} has no model or state_dict of tensors; name one of its entries after #: {known}."
  )


def _has_tensors(value: Any) -> bool:
  return type(value) is dict and any(isinstance(v, Tensor) for v in value.values())


def _arrays(
  state: Mapping[str, Any], storages: _Storages, size: int, where: str
) -> dict[str, np.ndarray]:
  for name, value in state.items():
    if not _NAME.fullmatch(name):
      raise InputError(f"{where} has an entry {name[:100]!r}, which is no parameter's name.")
    if not isinstance(value, Tensor):
      kind = value.made_by if isinstance(value, Opaque) else type(value).__name__
      raise InputError(f"{where}: {name} is no tensor, but made by {kind[:100]!r}.")
  unpacked = sum(math.prod(t.shape) * np.dtype(t.storage.dtype).itemsize for t in state.values())
  files.check_unpacked(unpacked, size, where)
  return {name: _array(t, storages) for name, t in state.items()}


def _array(tensor: Tensor, storages: _Storages) -> np.ndarray:
  base = storages.array(tensor.storage)
  strides = [stride * base.itemsize for stride in tensor.strides]
  view = np.lib.stride_tricks.as_strided(
    base[tensor.offset :], tensor.shape, strides, writeable=False
  )
  # In an older file the numbers lie at any byte.
  return view if view.flags.c_contiguous and view.flags.aligned else view.copy()
