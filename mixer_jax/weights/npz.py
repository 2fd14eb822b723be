"""The authors' released `.npz` checkpoints, in both layouts, without pickle.

New layout: flat slash names, those of the model. Older layout (big_vision, models/mlp_mixer.py: load):
`embedding` for the stem, `Mixer/encoderblock_<i>`, `Mixer/encoder_norm`, MLPs as kernel1/bias1/
kernel2/bias2 with superfluous axes of length 1, LayerNorms numbered among all submodules, and the
whole tree possibly below `opt/target` beside the optimizer's state.
"""

import os
import re
import zipfile
import zlib
from typing import Any

import numpy as np
from etils import epath
from flax import traverse_util

from mixer_jax.errors import InputError

_RENAMES = (
  (r"^opt/target/", ""),
  (r"^embedding/", "stem/"),
  (r"^Mixer/encoder_norm/", "pre_head_layer_norm/"),
  (r"^Mixer/encoderblock_(\d+)/", r"MixerBlock_\1/"),
  (r"_mixing_phase_0/(kernel|bias)([12])$", lambda m: f"_mixing/Dense_{int(m[2]) - 1}/{m[1]}"),
)
# What NumPy, zipfile and zlib make of files that are damaged or something else.
_DAMAGE = (
  ValueError, OSError, EOFError, AttributeError, TypeError, KeyError, NotImplementedError,
  zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_LAYER_NORM = re.compile(r"^(MixerBlock_\d+/LayerNorm_)(\d+)/")


def load_npz(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns the parameters of a checkpoint file as a nested dictionary of float arrays.

  Raises:
    InputError: no such file, not an .npz, truncated, or with pickled objects inside.
  """
  flat = {}
  for name, value in _read(epath.Path(path)).items():
    new = name
    for pattern, replacement in _RENAMES:
      new = re.sub(pattern, replacement, new)
    if not name.startswith("opt/state/"):
      flat[new] = _without_superfluous_axes(new, value)
  flat = _renumber_layer_norms(flat)
  for name in flat:
    if any(other.startswith(f"{name}/") for other in flat):
      raise InputError(f"{path} has the parameter {name} and others below that name.")
  return traverse_util.unflatten_dict(flat, sep="/")


def _read(path: epath.Path) -> dict[str, np.ndarray]:
  try:
    with path.open("rb") as f, np.load(f, allow_pickle=False) as archive:
      return {name: archive[name] for name in archive.files}
  except FileNotFoundError as e:
    raise InputError(f"weights file {path} does not exist.") from e
  except _DAMAGE as e:
    raise InputError(f"{path} is not a whole .npz file of plain arrays: {e}") from e


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


def check_match(params: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
  """Raises InputError that lists the parameters missing, superfluous, of another shape, or not finite numbers.

  Args:
    params: nested parameters, from a file.
    wanted: the model's parameters (arrays or jax.ShapeDtypeStruct).
    where: the file, for the message.
  """
  have: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
  want: dict[str, Any] = traverse_util.flatten_dict(wanted, sep="/")
  problems = [f"missing: {n} {want[n].shape}" for n in sorted(set(want) - set(have))]
  problems += [f"not in the model: {n} {have[n].shape}" for n in sorted(set(have) - set(want))]
  problems += [
    f"shape: {n} is {have[n].shape}, the model's is {want[n].shape}"
    for n in sorted(set(have) & set(want))
    if have[n].shape != want[n].shape
  ]
  problems += [
    f"values: {n} has {have[n].dtype} values that are not finite numbers"
    for n in sorted(set(have) & set(want))
    if not (np.issubdtype(have[n].dtype, np.floating) and np.isfinite(have[n]).all())
  ]
  if problems:
    listed = "\n  ".join(problems)
    raise InputError(f"the parameters of {where} do not fit the model:\n  {listed}")
