"""Pickles of torch's files followed without an unpickler: what they build, tensors as descriptions of them.

A pickle is a program: to load one is to run it. Here `pickletools` splits it into opcodes, and a small stack machine
follows those that build numbers, texts, lists, dictionaries and tensors. It imports and calls nothing. What any other
class or function would make (argparse.Namespace, a yacs CfgNode, an optimizer, os.system) becomes an `Opaque`
with its name. An opcode that torch does not write is an error.

The number of opcodes, and numbers and names of tensors, are bounded. No step recurses, hashes or prints what a pickle
has built, so neither depth nor sharing costs anything.

Facts: torch/serialization.py and torch/_utils.py (storages by persistent ids, _rebuild_tensor_v2).
"""

import dataclasses
import io
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

_MAX_OPCODES = 2_000_000
_MAX_NUMBER, _MAX_AXES, _MAX_KEY = 1 << 60, 64, 100  # products of larger ones may take ages
_STORAGES = {
  "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
  "BFloat16Storage": jnp.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
  "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip


class _Global(NamedTuple):
  """A class or function that a pickle names; it is never looked up."""

  module: str
  name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Opaque:
  """A value that only unpickling would make; what is put into it is dropped."""

  made_by: str


class Storage(NamedTuple):
  """`length` numbers of one type, which the file has by its key."""

  key: str
  dtype: Any
  length: int

  @property
  def nbytes(self) -> int:
    return self.length * np.dtype(self.dtype).itemsize


class Tensor(NamedTuple):
  """A view of a storage; offset and strides are in elements."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class _Machine:
  """The stack, the marks and the memo of a pickle that is followed, and the storages that it names."""

  def __init__(self, used: dict[str, Storage]):
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
    elif not isinstance(self.stack[-1], Opaque):
      raise ValueError("it puts values into what is no list")

  def update(self, items: list[Any]) -> None:
    """Puts alternating keys and values into the dictionary on the stack; only keys that are texts are of use."""
    target = self.stack[-1]
    if type(target) is dict:
      target.update((k, v) for k, v in zip(items[::2], items[1::2], strict=True) if type(k) is str)
    elif not isinstance(target, Opaque):
      raise ValueError("it puts values into what is no dictionary")

  def make(self, count: int) -> None:
    """Replaces a class or function and its arguments (the last `count` values) by what they make."""
    made_by, args, *_ = self.cut(count)
    if isinstance(made_by, _Global) and type(args) is tuple:
      known = _CALLS.get((made_by.module, made_by.name))
      title = f"{made_by.module}.{made_by.name}"
      self.push(known(*args) if known else Opaque(title))
    elif isinstance(made_by, Opaque):
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
        self.used[key] = Storage(key, _STORAGES[name], length)
        self.push(self.used[key])
      case _:
        self.push(Opaque("a persistent id"))


def _global(module: Any, name: Any) -> _Global:
  if type(module) is not str or type(name) is not str:
    raise ValueError("it names a class by what is no text")
  return _Global(module, name)


def _is_number(value: Any) -> bool:
  return type(value) is int and 0 <= value < _MAX_NUMBER


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor | Opaque:
  if not isinstance(storage, Storage):
    return Opaque("a tensor of an unknown type")
  if len(shape) != len(strides) or len(shape) > _MAX_AXES:
    raise ValueError(f"a tensor has {len(shape)} axes and {len(strides)} strides")
  if not all(map(_is_number, (offset, *shape, *strides))):
    raise ValueError("a tensor's offset, shape and strides are not whole numbers from 0")
  last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
  if 0 not in shape and last >= storage.length:
    raise ValueError(f"a tensor of shape {shape!r} reaches beyond its storage {storage.key!r}")
  return Tensor(storage, offset, tuple(shape), tuple(strides))


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
  "EMPTY_SET": lambda m, _: m.push(Opaque("set")),
  "ADDITEMS": lambda m, _: m.cut(),
  "FROZENSET": lambda m, _: m.push(Opaque(f"frozenset of {len(m.cut())}")),
  "GLOBAL": lambda m, arg: m.push(_Global(*arg.split(" ", 1))),
  "STACK_GLOBAL": lambda m, _: m.push(_global(*m.cut(2))),
  "REDUCE": lambda m, _: m.make(2),
  "NEWOBJ": lambda m, _: m.make(2),
  "NEWOBJ_EX": lambda m, _: m.make(3),
  "BUILD": lambda m, _: m.pop(),  # attributes, of which weights have none
  "BINPERSID": lambda m, _: m.load_persistent(),
}


def follow(stream: io.BytesIO, used: dict[str, Storage] | None = None) -> Any:
  """Returns what the pickle at the stream's position builds, tensors as `Tensor`; moves behind its end.

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
