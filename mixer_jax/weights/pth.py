"""State dictionaries in torch's `.pth` files, zip and older ones, read without an unpickler.

A pickle is a program: to load one is to run it. Here `pickletools` splits it into opcodes, and a small stack machine
follows those that build numbers, texts, lists, dictionaries and tensors. It imports and calls nothing. What any other
class or function would make (argparse.Namespace, a yacs CfgNode, an optimizer, os.system) becomes an `_Opaque`
with its name, which may lie beside the weights but not among them. An opcode that torch does not write is an error.

A file may come from anywhere. Sizes are checked before anything is read: zip members are stored uncompressed and are
not more than the file; a storage has the bytes that its tensors say; a tensor lies inside its storage. The number
of opcodes is bounded, and no step recurses, so depth costs nothing.

Facts: torch/serialization.py and torch/_utils.py (storages by persistent ids, _rebuild_tensor_v2).
"""

import dataclasses
import io
import math
import os
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath

from mixer_jax.errors import InputError

DEFAULT_ENTRIES = ("model", "state_dict")
_MAX_BYTES = 16 << 30
# Tensors may share storage: a file with weights that blocks share is smaller than its tensors.
_MAX_EXPANSION, _ALWAYS_BYTES = 50, 64 << 20
_MAX_MEMBERS, _MAX_OPCODES, _MAX_PICKLE_BYTES = 100_000, 2_000_000, 64 << 20
_MAX_NUMBER, _MAX_AXES, _MAX_KEY = 1 << 60, 64, 100  # products of larger ones may take ages
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_NAME = re.compile(r"[\w.-]{1,300}", re.ASCII)
_STORAGES = {
  "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
  "BFloat16Storage": jnp.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
  "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip
# What zipfile, pickletools, NumPy and the machine make of files that are damaged or something else. The warning,
# of texts that pickletools decodes, is raised only where warnings are errors.
_DAMAGE = (
  ValueError, OSError, EOFError, LookupError, TypeError, AttributeError, NotImplementedError, RuntimeError,
  OverflowError, struct.error, zipfile.BadZipFile, DeprecationWarning,
)  # fmt: skip


def load_pth(
  path: str | os.PathLike[str], entry: str | None = None, where: str | None = None
) -> tuple[str | None, dict[str, np.ndarray]]:
  """Returns the name of the entry that was taken, and its arrays by name, without the prefix `module.`.

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
  except FileNotFoundError as e:
    raise InputError(f"weights file {where} does not exist.") from e
  except _DAMAGE as e:
    raise InputError(f"{where} is not a whole .pth file of plain tensors: {e}") from e


class _Global(NamedTuple):
  """A class or function that a pickle names; it is never looked up."""

  module: str
  name: str


@dataclasses.dataclass(frozen=True, eq=False)
class _Opaque:
  """A value that only unpickling would make; what is put into it is dropped."""

  made_by: str


class _Storage(NamedTuple):
  key: str
  dtype: Any
  length: int


class _Tensor(NamedTuple):
  """A view of a storage; offset and strides are in elements."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class _Storages:
  """The storages of an open file, read when a tensor needs them.

  Args:
    read: returns the bytes of a storage. Raises KeyError if the file has none of that key, ValueError if that
      one has another number of bytes.
    big_endian: the byte order of all numbers.
  """

  def __init__(self, read: Callable[[_Storage], bytes | memoryview], big_endian: bool = False):
    self._read, self._order = read, ">" if big_endian else "<"
    self._arrays: dict[str, np.ndarray] = {}

  def array(self, storage: _Storage) -> np.ndarray:
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


def _nbytes(storage: _Storage) -> int:
  return storage.length * np.dtype(storage.dtype).itemsize


def _read_zip(f: IO[bytes], size: int) -> tuple[Any, _Storages]:
  """Returns the content of a file as torch 1.6 and later write it, and its storages."""
  archive = zipfile.ZipFile(f)
  members = _members(archive, size)
  roots = [name for name in members if re.fullmatch(r"([^/]+/)?data\.pkl", name)]
  if len(roots) != 1:
    raise ValueError("it has no data.pkl")
  root = roots[0].removesuffix("data.pkl")
  if members[roots[0]].file_size > _MAX_PICKLE_BYTES:
    raise ValueError(f"its data.pkl has {members[roots[0]].file_size:,} bytes")

  def read(storage: _Storage) -> bytes:
    info = members[f"{root}data/{storage.key}"]
    if info.file_size != _nbytes(storage):
      raise ValueError(
        f"storage {storage.key!r} has {info.file_size:,} bytes, not {_nbytes(storage):,}"
      )
    return archive.read(info)  # to the end, where zipfile compares the CRC

  order = archive.read(f"{root}byteorder") if f"{root}byteorder" in members else b"little"
  if order not in (b"little", b"big"):
    raise ValueError(f"its byte order is {order[:10]!r}")
  content = _run(io.BytesIO(archive.read(members[roots[0]])))
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
  if size > _MAX_BYTES:
    raise ValueError(f"it has {size:,} bytes")
  data = f.read()
  stream = io.BytesIO(data)
  if _run(stream) != _MAGIC:
    raise ValueError("it is a pickle, but not one of torch's")
  if _run(stream) != _PROTOCOL:
    raise ValueError("its version is another than torch's 1001")
  big_endian = _run(stream)["little_endian"] is not True
  used: dict[str, _Storage] = {}
  content = _run(stream, used)
  keys, at = _run(stream), stream.tell()
  places: dict[str, slice] = {}
  for key in keys:
    # What a file made to deceive has here instead may take ages to hash or print.
    if type(key) is not str or key not in used:
      raise ValueError("it has a storage that it does not describe")
    nbytes = _nbytes(used[key])
    length = int.from_bytes(data[at : at + 8], "big" if big_endian else "little")
    places[key] = slice(at + 8, at + 8 + nbytes)
    at += 8 + nbytes
    if length != used[key].length or at > size:
      raise ValueError(f"storage {key!r} has not the {nbytes:,} bytes that it should have")
  return content, _Storages(lambda storage: memoryview(data)[places[storage.key]], big_endian)


class _Machine:
  """The stack, the marks and the memo of a pickle that is followed, and the storages that it names."""

  def __init__(self, used: dict[str, _Storage]):
    self.stack: list[Any] = []
    self.marks: list[int] = []
    self.memo: dict[int, Any] = {}
    self.used = used

  def push(self, value: Any) -> None:
    self.stack.append(value)

  def pop(self) -> Any:
    return self.stack.pop()

  def cut(self, count: int | None = None) -> list[Any]:
    """Returns the last `count` values, or those since the last mark, and removes them."""
    at = self.marks.pop() if count is None else len(self.stack) - count
    if at < 0:
      raise ValueError("it takes more values than there are")
    values = self.stack[at:]
    del self.stack[at:]
    return values

  def extend(self, values: list[Any]) -> None:
    """Puts values into the list on the stack."""
    if type(self.stack[-1]) is list:
      self.stack[-1].extend(values)
    elif not isinstance(self.stack[-1], _Opaque):
      raise ValueError("it puts values into what is no list")

  def update(self, items: list[Any]) -> None:
    """Puts alternating keys and values into the dictionary on the stack; only keys that are texts are of use."""
    target = self.stack[-1]
    if type(target) is dict:
      target.update((k, v) for k, v in zip(items[::2], items[1::2], strict=True) if type(k) is str)
    elif not isinstance(target, _Opaque):
      raise ValueError("it puts values into what is no dictionary")

  def make(self, count: int) -> None:
    """Replaces a class or function and its arguments (the last `count` values) by what they make."""
    made_by, args, *_ = self.cut(count)
    if isinstance(made_by, _Global) and type(args) is tuple:
      known = _CALLS.get((made_by.module, made_by.name))
      title = f"{made_by.module}.{made_by.name}"
      self.push(known(*args) if known else _Opaque(title))
    elif isinstance(made_by, _Opaque):
      self.push(made_by)
    else:
      raise ValueError("it calls what is no function")

  def load_persistent(self) -> None:
    """Replaces ("storage", type, key, location, length, view) by a storage, whatever its location."""
    value = self.pop()
    match value:
      case ("storage", _Global("torch", name), str(key), _, int(length), *view) if (
        name in _STORAGES
      ):
        if len(key) > _MAX_KEY or not _is_number(length) or any(v is not None for v in view):
          raise ValueError("a storage has an absurd name or length, or is a view of another")
        self.used[key] = _Storage(key, _STORAGES[name], length)
        self.push(self.used[key])
      case _:
        self.push(_Opaque("a persistent id"))


def _global(module: Any, name: Any) -> _Global:
  if type(module) is not str or type(name) is not str:
    raise ValueError("it names a class by what is no text")
  return _Global(module, name)


def _is_number(value: Any) -> bool:
  return type(value) is int and 0 <= value < _MAX_NUMBER


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor | _Opaque:
  if not isinstance(storage, _Storage):
    return _Opaque("a tensor of an unknown type")
  if len(shape) != len(strides) or len(shape) > _MAX_AXES:
    raise ValueError(f"a tensor has {len(shape)} axes and {len(strides)} strides")
  if not all(map(_is_number, (offset, *shape, *strides))):
    raise ValueError("a tensor's offset, shape and strides are not whole numbers from 0")
  last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
  if 0 not in shape and last >= storage.length:
    raise ValueError(f"a tensor of shape {shape!r} reaches beyond its storage {storage.key!r}")
  return _Tensor(storage, offset, tuple(shape), tuple(strides))


_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
  ("collections", "OrderedDict"): lambda: {},
  ("torch._utils", "_rebuild_tensor_v2"): _tensor,
  ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
}
_PUSHED = (
  "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
  "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
)  # fmt: skip
_OPCODES: dict[str, Callable[[_Machine, Any], Any]] = {
  **dict.fromkeys(_PUSHED, _Machine.push),
  **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda *_: None),
  **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda m, arg: m.memo.update({arg: m.stack[-1]})),
  "MEMOIZE": lambda m, _: m.memo.update({len(m.memo): m.stack[-1]}),
  **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda m, arg: m.push(m.memo[arg])),
  "NONE": lambda m, _: m.push(None),
  "NEWTRUE": lambda m, _: m.push(True),
  "NEWFALSE": lambda m, _: m.push(False),
  "MARK": lambda m, _: m.marks.append(len(m.stack)),
  "POP": lambda m, _: m.pop(),
  "POP_MARK": lambda m, _: m.cut(),
  "EMPTY_TUPLE": lambda m, _: m.push(()),
  "TUPLE1": lambda m, _: m.push(tuple(m.cut(1))),
  "TUPLE2": lambda m, _: m.push(tuple(m.cut(2))),
  "TUPLE3": lambda m, _: m.push(tuple(m.cut(3))),
  "TUPLE": lambda m, _: m.push(tuple(m.cut())),
  "EMPTY_LIST": lambda m, _: m.push([]),
  "APPEND": lambda m, _: m.extend(m.cut(1)),
  "APPENDS": lambda m, _: m.extend(m.cut()),
  "EMPTY_DICT": lambda m, _: m.push({}),
  "SETITEM": lambda m, _: m.update(m.cut(2)),
  "SETITEMS": lambda m, _: m.update(m.cut()),
  "EMPTY_SET": lambda m, _: m.push(_Opaque("set")),
  "ADDITEMS": lambda m, _: m.cut(),
  "FROZENSET": lambda m, _: m.push(_Opaque(f"frozenset of {len(m.cut())}")),
  "GLOBAL": lambda m, arg: m.push(_Global(*arg.split(" ", 1))),
  "STACK_GLOBAL": lambda m, _: m.push(_global(*m.cut(2))),
  "REDUCE": lambda m, _: m.make(2),
  "NEWOBJ": lambda m, _: m.make(2),
  "NEWOBJ_EX": lambda m, _: m.make(3),
  "BUILD": lambda m, _: m.pop(),  # attributes, of which weights have none
  "BINPERSID": lambda m, _: m.load_persistent(),
}


def _run(stream: io.BytesIO, used: dict[str, _Storage] | None = None) -> Any:
  """Returns what the pickle at the stream's position builds, tensors as `_Tensor`; moves behind its end.

  Args:
    stream: of bytes.
    used: gets the storages that the pickle names.
  """
  machine = _Machine({} if used is None else used)
  for count, (opcode, arg, at) in enumerate(pickletools.genops(stream)):
    if count == _MAX_OPCODES:
      raise ValueError(f"it has more than {_MAX_OPCODES:,} opcodes")
    if opcode.name not in _OPCODES:
      raise ValueError(f"byte {at} is the opcode {opcode.name}, which torch does not write")
    _OPCODES[opcode.name](machine, arg)
  return machine.pop()


def _choose(content: Any, entry: str | None, where: str) -> tuple[str | None, dict[str, Any]]:
  """Returns the name of the state dictionary that is meant, None if it is all the content, and itself."""
  if type(content) is not dict:
    kind = content.made_by if isinstance(content, _Opaque) else type(content).__name__
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
  return type(value) is dict and any(isinstance(v, _Tensor) for v in value.values())


def _arrays(
  state: Mapping[str, Any], storages: _Storages, size: int, where: str
) -> dict[str, np.ndarray]:
  for name, value in state.items():
    if not _NAME.fullmatch(name):
      raise InputError(f"{where} has an entry {name[:100]!r}, which is no parameter's name.")
    if not isinstance(value, _Tensor):
      kind = value.made_by if isinstance(value, _Opaque) else type(value).__name__
      raise InputError(f"{where}: {name} is no tensor, but made by {kind[:100]!r}.")
  unpacked = sum(math.prod(t.shape) * np.dtype(t.storage.dtype).itemsize for t in state.values())
  if unpacked > min(_MAX_BYTES, _ALWAYS_BYTES + _MAX_EXPANSION * size):
    raise InputError(
      f"{where} of {size:,} bytes would unpack to {unpacked:,}: that is no weights file. Refused."
    )
  prefix = "module." if all(name.startswith("module.") for name in state) else ""
  return {name.removeprefix(prefix): _array(t, storages) for name, t in state.items()}


def _array(tensor: _Tensor, storages: _Storages) -> np.ndarray:
  base = storages.array(tensor.storage)
  strides = [stride * base.itemsize for stride in tensor.strides]
  view = np.lib.stride_tricks.as_strided(
    base[tensor.offset :], tensor.shape, strides, writeable=False
  )
  return view if view.flags.c_contiguous else view.copy()
