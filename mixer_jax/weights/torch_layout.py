"""Foreign state dictionaries: torch's names and axes to and from ours, bit for bit, in safetensors files.

A family's `TORCH_NAMES` has a table for each layout. An entry is a torch name and ours, of a module or of one parameter,
with {} for each block's number: ("blocks.{}.norm1", "MixerBlock_{}/LayerNorm_0"). {1} is one more than {}, and {01} the
same in two digits. A third item names the axes of length 1 that torch has besides, such as (2, 3) of a 1×1 convolution
that is a Dense here. If it is None, the axes are ours. An entry with "" for our name is a constant that torch's module
makes itself: it is dropped in reading and not written. A table may be a function of the state, theirs or ours: name ->
array. One of our names may have several of theirs, which all hold the same values. Where torch cuts parameters otherwise,
the family has `TORCH_FORM`: a function that joins ours as torch has them, which the table then names, and one that splits
them.

torch keeps a Linear's weight as (out, in) and a convolution's as (out, in, h, w); ours are (in, out) and
(h, w, in, out). A module's weight is our kernel, or scale if it has one axis; running statistics are ours of
BatchNorm, `num_batches_tracked` is dropped in reading and written as 0.
"""

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath

from mixer_jax import files, models
from mixer_jax.errors import InputError
from mixer_jax.weights import foreign, named_classes, variables
from mixer_jax.weights.variables import Variables, shortened

_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
_COUNTER = "num_batches_tracked"
_FROM_LEAF = {"bias": "bias", "running_mean": "mean", "running_var": "var"}
_TO_LEAF = {
  "kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var",
}  # fmt: skip
_PLACE = re.compile(r"\{(\d*)\}")  # of a number in a table's names
_Name = tuple[str, tuple[int, ...] | None]  # ours, and the axes, see above


class _Layout(NamedTuple):
  """A layout, and the names that it has for those of a state dictionary."""

  title: str
  family: models.Family
  named: dict[str, _Name | None]  # torch's name -> see `_ours`

  @property
  def unknown(self) -> list[str]:
    return sorted(name for name, ours in self.named.items() if ours is None)


def from_torch(
  state: Mapping[str, Any],
  where: str = "this state dictionary",
  num_heads: int | None = None,
) -> Variables:
  """Returns our variables for a state dictionary, whose layout is recognised by its names.

  A prefix that all names have (`module.`) is taken off, and printed to stderr.

  Args:
    state: name -> array in torch's layout.
    where: what messages call it: a file, an address.
    num_heads: of a Vision Transformer, which the layout does not tell. Default: a published size's of the same width.

  Raises:
    InputError: it is not the state of a whole model in a known layout. The message lists what is wrong.
  """
  state = {k: np.asarray(v) for k, v in state.items() if not k.endswith(f".{_COUNTER}")}
  layout = _best_layout(state)
  if unknown := len(layout.unknown):
    state = foreign.without_prefix(state, lambda s: len(_best_layout(s).unknown) < unknown, where)
    layout = _best_layout(state)
  if layout.unknown:
    advice = foreign.whose(state) or f"It is not of {layout.title}, which has no"
    raise InputError(f"{where} is of no known layout. {advice}\n  {shortened(layout.unknown)}")
  named = {k: ours for k, ours in layout.named.items() if ours is not None and ours[0]}
  try:
    flat = _without_repeats(state, named)
    if form := layout.family.TORCH_FORM:
      flat = form[1](flat, num_heads)
    tree = variables.unflatten(flat)
  except InputError as e:
    raise InputError(f"{where}: {e}") from e
  except (ValueError, TypeError) as e:  # names below names, axes that are not of length 1
    raise InputError(
      f"{where} has the names of {layout.title}, but other shapes or axes: {e}."
    ) from e
  variables.describe(tree, where)
  return tree


def _best_layout(state: Mapping[str, np.ndarray]) -> _Layout:
  """Returns the layout that knows most of the names."""
  layouts = []
  for family in models.FAMILIES.values():
    for title, names in family.TORCH_NAMES.items():
      table = _table(names, state)
      named = {k: _ours(k, v.ndim, table) for k, v in state.items()}
      layouts.append(_Layout(f"{title}'s {family.TITLE}", family, named))
  return min(layouts, key=lambda layout: len(layout.unknown))


def _without_repeats(state: Mapping[str, Any], named: Mapping[str, _Name]) -> dict[str, np.ndarray]:
  """Returns our arrays by name; raises InputError if tensors that are one of ours differ."""
  found: dict[str, np.ndarray] = {}
  for theirs, (ours, axes) in named.items():
    value = _axes_from_torch(state[theirs], axes)
    if ours in found and not np.array_equal(found[ours], value):
      raise InputError(f"{theirs} differs from the tensors that it is shared with ({ours}).")
    found[ours] = value
  return found


def _table(names: Any, state: Mapping[str, Any]) -> Any:
  return names(state) if callable(names) else names


def _ours(name: str, ndim: int, table: Any) -> _Name | None:
  """Returns our name for a torch name ("": a constant), and the axes of length 1 to remove. None if unknown."""
  if entry := next(_matches(name, table, 0), None):
    return entry
  module, _, leaf = name.rpartition(".")
  entry = next(_matches(module, table, 0), None)
  if entry is None or (leaf != "weight" and leaf not in _FROM_LEAF):
    return None
  ours = f"{entry[0]}/{_FROM_LEAF.get(leaf) or ('scale' if ndim == 1 else 'kernel')}"
  return f"batch_stats/{ours}" if leaf.startswith("running_") else ours, entry[1]


def to_torch(tree: Mapping[str, Any], layout: str | None = None) -> dict[str, np.ndarray]:
  """Returns the state dictionary, as NumPy arrays in torch's layout.

  Args:
    tree: variables of a whole model.
    layout: one of the family's `TORCH_NAMES`. Default: timm's if the family has it, else its only one.

  Raises:
    InputError: they are not a whole model's, or the family has no such layout.
  """
  family = models.FAMILIES[variables.describe(tree).family]
  layouts = family.TORCH_NAMES
  layout = layout or ("timm" if "timm" in layouts else next(iter(layouts), None))
  if layout is None or layout not in layouts:
    known = ", ".join(layouts) or "none"
    raise InputError(f"a {family.TITLE} has no torch layout {layout!r}; known: {known}.")
  state: dict[str, np.ndarray] = {}
  flat = {name: np.asarray(leaf) for name, leaf in variables.flatten(tree).items()}
  if form := family.TORCH_FORM:
    flat = form[0](flat)
  table = _table(layouts[layout], flat)
  for name, value in flat.items():
    ours = name.removeprefix("batch_stats/")
    before = len(state)
    for theirs, axes in _matches(ours, table, 1):
      state[theirs] = _axes_to_torch(value, axes)
    module, _, last = ours.rpartition("/")
    for theirs, axes in _matches(module, table, 1):
      state[f"{theirs}.{_TO_LEAF[last]}"] = _axes_to_torch(value, axes)
      if last == "mean":
        state[f"{theirs}.{_COUNTER}"] = np.zeros((), np.int64)
    if len(state) == before:
      raise InputError(f"the torch layout {layout!r} of a {family.TITLE} has no name for {name}.")
  return state


def _matches(name: str, table: Any, side: int) -> Iterator[_Name]:
  """Yields (the name on the other side, axes of length 1) of each entry that has this name on its side.

  Args:
    name: of a module or a parameter.
    table: of one layout.
    side: 0 if the name is torch's, 1 if it is ours.
  """
  for entry in table:
    expression, first = _expression(entry[side])
    if m := expression.fullmatch(name):
      numbers = [int(n) - k for n, k in zip(m.groups(), first, strict=True)]
      yield _filled(entry[1 - side], numbers), entry[2] if len(entry) > 2 else ()


@functools.lru_cache(maxsize=8192)
def _expression(pattern: str) -> tuple[re.Pattern[str], list[int]]:
  """Returns the expression for names of a pattern, and the first number of each of its places."""
  parts = _PLACE.split(pattern)
  return re.compile(r"(\d+)".join(map(re.escape, parts[::2]))), [int(p or 0) for p in parts[1::2]]


def _filled(pattern: str, numbers: list[int]) -> str:
  """Returns the name of a pattern; numbers count from 0."""
  left = iter(numbers)
  return _PLACE.sub(lambda m: str(next(left) + int(m[1] or 0)).zfill(len(m[1])), pattern)


def _axes_to_torch(value: np.ndarray, axes: tuple[int, ...] | None) -> np.ndarray:
  if axes is None:
    return np.ascontiguousarray(value)
  if value.ndim > 1:  # the last two axes, in and out, go to the front as out and in
    value = value.transpose(value.ndim - 1, value.ndim - 2, *range(value.ndim - 2))
  return np.ascontiguousarray(np.expand_dims(value, axes))


def _axes_from_torch(value: np.ndarray, axes: tuple[int, ...] | None) -> np.ndarray:
  if axes is None:
    return np.ascontiguousarray(value)
  value = np.squeeze(value, axes) if axes else value
  if value.ndim > 1:
    value = value.transpose(*range(2, value.ndim), 1, 0)
  return np.ascontiguousarray(value)


def load_safetensors(
  path: str | os.PathLike[str], where: str | None = None
) -> dict[str, np.ndarray]:
  """Returns the arrays of a safetensors file by name.

  Args:
    path: the file.
    where: what to call it in messages, if not by its path.

  Raises:
    InputError: no such file, not a whole safetensors file, or values that are no floating-point numbers.
  """
  import safetensors

  where = where or str(path)
  try:
    entries = safetensors.deserialize(epath.Path(path).read_bytes())
  except (safetensors.SafetensorError, OSError) as e:
    raise InputError(f"{where} is not a whole safetensors file: {e}") from e
  state = {}
  for name, entry in entries:
    if name.endswith(f".{_COUNTER}"):
      continue
    if entry["dtype"] not in _TYPES:
      raise InputError(f"{where}: {name} is of type {entry['dtype']}; known: {', '.join(_TYPES)}.")
    try:
      state[name] = np.frombuffer(entry["data"], _TYPES[entry["dtype"]]).reshape(entry["shape"])
    except (ValueError, OverflowError) as e:
      raise InputError(f"{where}: {name} cannot be of shape {entry['shape']}: {e}") from e
  return state


def save_safetensors(
  path: str | os.PathLike[str], state: Mapping[str, np.ndarray], class_names: Sequence[str] = ()
) -> None:
  """Writes arrays by name as a safetensors file, the names of the classes in its header; whole or not at all.

  Raises:
    SaveError: the file could not be written.
  """
  import safetensors.numpy

  # The library takes memory as it lies, whatever the strides.
  state = {name: np.ascontiguousarray(value) for name, value in state.items()}
  content = safetensors.numpy.save(
    state, metadata={"format": "pt"} | named_classes.metadata(class_names)
  )
  with files.replacing(epath.Path(path)) as partial:
    partial.write_bytes(content)
