"""The authors' released `.npz` checkpoints: their layouts read, the models' own written, without pickle.

The models have the flat slash names of the released files; other names are each family's `RELEASED_RENAMES`, and what takes more than
names, as big_vision's Vision Transformers and BiT do, its `released_form`. The whole
tree may lie below `opt/target` or `params` beside the optimizer's state, and an old Mixer's MLPs may have superfluous
axes of length 1. Batch statistics lie below `batch_stats`. bfloat16 is stored as two raw bytes.

A file may come from anywhere, so names and sizes are checked in the archive's directory and the arrays'
headers before anything is unpacked.
"""

import math
import os
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from mixer_jax import files as paths
from mixer_jax import models
from mixer_jax.errors import InputError, installing
from mixer_jax.weights import files, foreign, named_classes, variables

_MAX_MEMBERS = 10_000
_OPTIMIZER = re.compile(r"opt/(?!target/)|extra/|chrono/")
_TARGET = r"^opt/target/"
# What NumPy, zipfile and zlib make of files that are damaged or something else.
_DAMAGE = (
  ValueError, OSError, EOFError, AttributeError, TypeError, KeyError, NotImplementedError,
  RuntimeError, OverflowError, SyntaxError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_NAME = re.compile(r"[^/\\\x00-\x1f]+(/[^/\\\x00-\x1f]+)*")


def load_npz(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns the variables of a checkpoint file as nested dictionaries of arrays.

  They are {"params": …} and, for a model with BatchNorm, "batch_stats".

  Raises:
    InputError: no such file, not an .npz, truncated, with pickled objects inside, with names that are
      no parameters' or given twice, or larger than any model needs.
  """
  flat: dict[str, np.ndarray] = {}
  read = _read(epath.Path(path))
  family = models.family_of(re.sub(_TARGET, "", name) for name in read)
  if family is None:
    read = _without_prefix(read, str(path))
    family = models.family_of(read)
  first_layout = any(re.match(_TARGET, name) for name in read)
  form = models.FAMILIES[family].released_form if family and not first_layout else dict
  try:
    read = form(read)
  except InputError as e:
    raise InputError(f"{path}: {e}") from e
  renames = models.FAMILIES[family].RELEASED_RENAMES if family else ()
  for name, value in read.items():
    new = re.sub(_TARGET, "", name)
    for pattern, replacement in renames:
      new = re.sub(pattern, replacement, new)
    if new in flat:
      raise InputError(f"{path} has the parameter {new} twice, in the old and the new layout.")
    flat[new] = _without_superfluous_axes(new, value)
  for name in flat:
    if any(other.startswith(f"{name}/") for other in flat):
      raise InputError(f"{path} has the parameter {name} and others below that name.")
  return variables.unflatten(flat)


def _without_prefix(read: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
  """Returns the arrays with the names of a known family's parameters, if all begin with the same: "params/"."""
  stats = {name: value for name, value in read.items() if name.startswith("batch_stats/")}
  params = {name: value for name, value in read.items() if name not in stats}
  return foreign.without_prefix(params, lambda s: models.family_of(s) is not None, where) | stats


def save_npz(
  path: str | os.PathLike[str], tree: Mapping[str, Any], class_names: Sequence[str] = ()
) -> None:
  """Writes variables in the released layout, which the authors' code loads too; whole or not at all.

  The names of the classes go into a file beside it, `path`.json.

  Raises:
    SaveError: the file could not be written.
  """
  with (
    paths.replacing(epath.Path(path)) as partial,
    partial.open("wb") as f,
    zipfile.ZipFile(f, "w", allowZip64=True) as archive,
  ):
    for name, value in sorted(variables.flatten(tree).items()):
      # As np.savez does it, but with dates that do not depend on the clock.
      with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        np.lib.format.write_array(member, np.asarray(value), allow_pickle=False)
  if class_names:
    named_classes.write_beside(epath.Path(path), class_names)


def check_npz(path: str | os.PathLike[str], where: str) -> None:
  """Raises InputError if names, headers or sizes in the file are not those of weights; unpacks nothing.

  Args:
    path: the file.
    where: what to call it in the message.
  """
  _read(epath.Path(path), where, headers_only=True)


def _read(
  path: epath.Path, where: str | None = None, *, headers_only: bool = False
) -> dict[str, np.ndarray]:
  where = where or str(path)
  try:
    with path.open("rb") as f, zipfile.ZipFile(f) as archive:
      size = f.seek(0, os.SEEK_END)
      members = _members(archive, size, where)
      for name, info in members.items():
        _check_header(archive, info, f"{where}: {name}")
      if headers_only:
        return {}
      return {name: _array(archive, info) for name, info in members.items()}
  except InputError:
    raise
  except FileNotFoundError as e:
    raise InputError(f"weights file {where} does not exist.") from e
  except ImportError as e:  # gs:// without its extra
    raise InputError(f"{where}: {e}. Install it with {installing('gcs')}") from e
  except _DAMAGE as e:
    raise InputError(f"{where} is not a whole .npz file of plain arrays: {e}") from e


def _members(archive: zipfile.ZipFile, size: int, where: str) -> dict[str, zipfile.ZipInfo]:
  """Returns {parameter: its entry}, without the optimizer's state; checks all names and sizes."""
  infos = archive.infolist()
  if len(infos) > _MAX_MEMBERS:
    raise InputError(f"{where} has {len(infos)} entries; no model has that many parameters.")
  members: dict[str, zipfile.ZipInfo] = {}
  for info in infos:
    name = info.filename.removesuffix(".npy")
    if name == info.filename or not _NAME.fullmatch(name) or {".", ".."} & set(name.split("/")):
      raise InputError(f"{where} has an entry {info.filename!r}, which is no parameter's name.")
    if name in members:
      raise InputError(f"{where} has the parameter {name} twice.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
      raise InputError(f"{where} has an entry {name} in a compression that NumPy does not write.")
    if not _OPTIMIZER.match(name):
      members[name] = info
  files.check_unpacked(sum(info.file_size for info in members.values()), size, where)
  return members


def _check_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> None:
  with archive.open(info) as member:
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
      shape, _, dtype = np.lib.format.read_array_header_1_0(member)
    else:
      shape, _, dtype = np.lib.format.read_array_header_2_0(member)
    if dtype.kind not in "fiubV" or dtype.hasobject or dtype.names or dtype.subdtype:
      raise ValueError(f"{where} is of type {dtype}, not numbers")
    if min(shape, default=0) < 0:
      raise ValueError(f"{where} has the shape {shape}")
    if member.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
      raise ValueError(f"{where} is not of the size that its header says")


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
  with archive.open(info) as member:
    value = np.lib.format.read_array(member, allow_pickle=False)
    member.read()  # up to the end, where zipfile compares the CRC
  if value.dtype == np.dtype("V2"):
    return value.view(jnp.bfloat16)
  return value.astype(value.dtype.newbyteorder("="), copy=False)


def _without_superfluous_axes(name: str, value: np.ndarray) -> np.ndarray:
  """Removes axes of length 1, the first ones first, that an MLP's kernel or bias has too many."""
  rank = {"kernel": 2, "bias": 1}.get(name.rsplit("/", 1)[-1])
  if rank is None or "_mixing/" not in name:
    return value
  while value.ndim > rank and 1 in value.shape:
    value = np.squeeze(value, axis=value.shape.index(1))
  return value
