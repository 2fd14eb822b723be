"""The authors' released `.npz` checkpoints: their layouts read, the models' own written, without pickle.

The models have the flat slash names of the released files. A Mixer's older layout (big_vision,
models/mlp_mixer.py: load):
`embedding` for the stem, `Mixer/encoderblock_<i>`, `Mixer/encoder_norm`, MLPs as kernel1/bias1/
kernel2/bias2 with superfluous axes of length 1, LayerNorms numbered among all submodules, and the
whole tree possibly below `opt/target` beside the optimizer's state. A Vision Transformer written by
Flax Linen numbers a block's submodules by their kind, and some of BiT's files number the convolutions.
bfloat16 is stored as two raw bytes.

A file may come from anywhere, so names and sizes are checked in the archive's directory and the arrays'
headers before anything is unpacked.
"""

import math
import os
import re
import zipfile
import zlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util

from mixer_jax import files
from mixer_jax.errors import InputError

MAX_BYTES = 16 << 30  # unpacked; three times H/14 at three times its resolution
# Trained weights hardly compress; those of a model made K times larger are zeros but for 1/K².
_MAX_EXPANSION, _ALWAYS_BYTES = 50, 64 << 20
_MAX_MEMBERS = 10_000
_OPTIMIZER = "opt/state/"
_TARGET = r"^opt/target/"
_MIXER_RENAMES = (
  (r"^embedding/", "stem/"),
  (r"^Mixer/encoder_norm/", "pre_head_layer_norm/"),
  (r"^Mixer/encoderblock_(\d+)/", r"MixerBlock_\1/"),
  (r"_mixing_phase_0/(kernel|bias)([12])$", lambda m: f"_mixing/Dense_{int(m[2]) - 1}/{m[1]}"),
)
_BASELINE_RENAMES = (
  (r"^(Transformer/encoderblock_\d+)/LayerNorm_1/", r"\1/LayerNorm_2/"),
  (r"^(Transformer/encoderblock_\d+)/MultiHeadDotProductAttention_0/",
   r"\1/MultiHeadDotProductAttention_1/"),
  (r"^(Transformer/encoderblock_\d+)/MlpBlock_0/", r"\1/MlpBlock_3/"),
  (r"^(resnet/.*/standardized_conv2d)_\d+/", r"\1/"),
)  # fmt: skip
# What NumPy, zipfile and zlib make of files that are damaged or something else.
_DAMAGE = (
  ValueError, OSError, EOFError, AttributeError, TypeError, KeyError, NotImplementedError,
  RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_LAYER_NORM = re.compile(r"^(MixerBlock_\d+/LayerNorm_)(\d+)/")
_NAME = re.compile(r"[^/\\\x00-\x1f]+(/[^/\\\x00-\x1f]+)*")


def load_npz(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns the parameters of a checkpoint file as a nested dictionary of arrays.

  Raises:
    InputError: no such file, not an .npz, truncated, with pickled objects inside, with names that are
      no parameters' or given twice, or larger than any model needs.
  """
  flat: dict[str, np.ndarray] = {}
  read = _read(epath.Path(path))
  baseline = any(re.match(rf"({_TARGET})?(Transformer|resnet)/", name) for name in read)
  for name, value in read.items():
    new = re.sub(_TARGET, "", name)
    for pattern, replacement in _BASELINE_RENAMES if baseline else _MIXER_RENAMES:
      new = re.sub(pattern, replacement, new)
    if new in flat:
      raise InputError(f"{path} has the parameter {new} twice, in the old and the new layout.")
    flat[new] = _without_superfluous_axes(new, value)
  flat = _renumber_layer_norms(flat)
  for name in flat:
    if any(other.startswith(f"{name}/") for other in flat):
      raise InputError(f"{path} has the parameter {name} and others below that name.")
  return traverse_util.unflatten_dict(flat, sep="/")


def save_npz(path: str | os.PathLike[str], params: dict[str, Any]) -> None:
  """Writes parameters in the released layout, which the authors' code loads too; whole or not at all.

  Raises:
    SaveError: the file could not be written.
  """
  flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
  with (
    files.replacing(epath.Path(path)) as partial,
    partial.open("wb") as f,
    zipfile.ZipFile(f, "w", allowZip64=True) as archive,
  ):
    for name, value in flat.items():
      # As np.savez does it, but with dates that do not depend on the clock.
      with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        np.lib.format.write_array(member, np.asarray(value), allow_pickle=False)


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
    raise InputError(f"{where}: {e}. Install it with pip install 'mixer-jax[gcs]'") from e
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
    if not name.startswith(_OPTIMIZER):
      members[name] = info
  unpacked = sum(info.file_size for info in members.values())
  if unpacked > min(MAX_BYTES, _ALWAYS_BYTES + _MAX_EXPANSION * size):
    raise InputError(
      f"{where} of {size:,} bytes would unpack to {unpacked:,}: that is no weights file. Refused."
    )
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


def _renumber_layer_norms(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Numbers each block's LayerNorms 0, 1 in their order."""
  numbers: dict[str, set[int]] = {}
  for name in flat:
    if m := _LAYER_NORM.match(name):
      numbers.setdefault(m[1], set()).add(int(m[2]))

  def renumber(m: re.Match[str]) -> str:
    return f"{m[1]}{sorted(numbers[m[1]]).index(int(m[2]))}/"

  return {_LAYER_NORM.sub(renumber, name): value for name, value in flat.items()}
