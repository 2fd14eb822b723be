"""Foreign state dictionaries: torch's names and axes to and from ours, bit for bit, in safetensors files.

A family's `TORCH_NAMES` has a table for each layout. An entry is a torch name and ours, of a module or of one parameter,
with {} for each block's number: ("blocks.{}.norm1", "MixerBlock_{}/LayerNorm_0"). A third item names the axes
of length 1 that torch has besides, (2, 3) of a 1×1 convolution that is a Dense here. An entry with "" for our name
is a constant that torch's module makes itself: it is dropped in reading and not written. A table may be a
function of the state, theirs or ours: name -> array. One of our names may have several of theirs, which all hold the
same values.

torch keeps a Linear's weight as (out, in) and a convolution's as (out, in, h, w); ours are (in, out) and
(h, w, in, out). A module's weight is our kernel, or scale if it has one axis; running statistics are ours of
BatchNorm, `num_batches_tracked` is dropped in reading and written as 0.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from mixer_jax import files, models
from mixer_jax.errors import InputError
from mixer_jax.weights import named_classes, variables
from mixer_jax.weights.variables import Variables

_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
_COUNTER = "num_batches_tracked"
_FROM_LEAF = {"bias": "bias", "running_mean": "mean", "running_var": "var"}
_TO_LEAF = {
  "kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var",
}  # fmt: skip


def from_torch(state: Mapping[str, Any], where: str = "this state dictionary") -> Variables:
  """Returns our variables for a state dictionary, whose layout is recognised by its names.

  Args:
    state: name -> array in torch's layout.
    where: what messages call it: a file, an address.

  Raises:
    InputError: it is not the state of a whole model in a known layout. The message lists what is wrong.
  """
  state = {k: np.asarray(v) for k, v in state.items() if not k.endswith(f".{_COUNTER}")}
  layouts = [
    (f"{layout}'s {family.TITLE}", _table(table, state))
    for family in models.FAMILIES.values()
    for layout, table in family.TORCH_NAMES.items()
  ]
  found = {
    title: {k: _ours(k, v.ndim, table) for k, v in state.items()} for title, table in layouts
  }
  title = min(found, key=lambda title: list(found[title].values()).count(None))
  if unknown := sorted(k for k, ours in found[title].items() if ours is None):
    listed = "\n  ".join(unknown)
    raise InputError(f"{where} is not of {title}, which has no\n  {listed}")
  named = {k: ours for k, ours in found[title].items() if ours is not None and ours[0]}
  try:
    tree = variables.unflatten(_without_repeats(state, named, where))
  except (ValueError, TypeError) as e:  # names below names, axes that are not of length 1
    raise InputError(f"{where} is not of {title}: {e}.") from e
  variables.describe(tree, where)
  return tree


def _without_repeats(
  state: Mapping[str, Any], named: Mapping[str, tuple[str, tuple[int, ...]]], where: str
) -> dict[str, np.ndarray]:
  """Returns our arrays by name; raises InputError if tensors that are one of ours differ."""
  found: dict[str, np.ndarray] = {}
  for theirs, (ours, axes) in named.items():
    value = _axes_from_torch(state[theirs], axes)
    if ours in found and not np.array_equal(found[ours], value):
      raise InputError(
        f"{where}: {theirs} differs from the tensors that it is shared with ({ours})."
      )
    found[ours] = value
  return found


def _table(names: Any, state: Mapping[str, Any]) -> Any:
  return names(state) if callable(names) else names


def _ours(name: str, ndim: int, table: Any) -> tuple[str, tuple[int, ...]] | None:
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
  if layout not in layouts:
    known = ", ".join(layouts) or "none"
    raise InputError(f"a {family.TITLE} has no torch layout {layout!r}; known: {known}.")
  state: dict[str, np.ndarray] = {}
  flat = variables.flatten(tree)
  table = _table(layouts[layout], flat)
  for name, leaf in flat.items():
    value, ours = np.asarray(leaf), name.removeprefix("batch_stats/")
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


def _matches(name: str, table: Any, side: int) -> Iterator[tuple[str, tuple[int, ...]]]:
  """Yields (the name on the other side, axes of length 1) of each entry that has this name on its side.

  Args:
    name: of a module or a parameter.
    table: of one layout.
    side: 0 if the name is torch's, 1 if it is ours.
  """
  for entry in table:
    pattern = re.escape(entry[side]).replace(r"\{\}", r"(\d+)")
    if m := re.fullmatch(pattern, name):
      yield entry[1 - side].format(*m.groups()), entry[2] if len(entry) > 2 else ()


def _axes_to_torch(value: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
  if value.ndim > 1:  # the last two axes, in and out, go to the front as out and in
    value = value.transpose(value.ndim - 1, value.ndim - 2, *range(value.ndim - 2))
  return np.ascontiguousarray(np.expand_dims(value, axes))


def _axes_from_torch(value: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
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
  except FileNotFoundError as e:
    raise InputError(f"weights file {where} does not exist.") from e
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
