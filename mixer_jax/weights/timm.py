"""timm's MLP-Mixer (timm/models/mlp_mixer.py: MlpMixer): its state dictionary to and from ours, bit for bit.

torch keeps a Linear's weight as (out, in) and a convolution's as (out, in, h, w); ours are (in, out) and
(h, w, in, out). timm's GELU is the exact one, with erf, ours the tanh approximation of the authors:
with the same weights the logits differ (by 1.6e-4 for a small random model), unless timm's model is made
with `act_layer=partial(torch.nn.GELU, approximate="tanh")`. Both take values in [−1, 1] (timm: mean and
standard deviation 0.5).
"""

import os
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util

from mixer_jax import files
from mixer_jax.errors import InputError
from mixer_jax.weights.params import check_family, model_fields

_IN_BLOCK = (
  ("LayerNorm_0", "norm1"),
  ("LayerNorm_1", "norm2"),
  ("token_mixing/Dense_0", "mlp_tokens.fc1"),
  ("token_mixing/Dense_1", "mlp_tokens.fc2"),
  ("channel_mixing/Dense_0", "mlp_channels.fc1"),
  ("channel_mixing/Dense_1", "mlp_channels.fc2"),
)
_OUTSIDE = (("stem", "stem.proj"), ("pre_head_layer_norm", "norm"), ("head", "head"))
_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}


def _names(num_blocks: int) -> dict[str, str]:
  """Returns {our name: timm's} of every parameter."""
  modules = list(_OUTSIDE)
  for i in range(num_blocks):
    modules += [(f"MixerBlock_{i}/{ours}", f"blocks.{i}.{theirs}") for ours, theirs in _IN_BLOCK]
  names = {}
  for ours, theirs in modules:
    names[f"{ours}/{'scale' if 'norm' in theirs else 'kernel'}"] = f"{theirs}.weight"
    names[f"{ours}/bias"] = f"{theirs}.bias"
  return names


def to_timm(params: dict[str, Any]) -> dict[str, np.ndarray]:
  """Returns timm's state dictionary, as NumPy arrays in torch's layout.

  Raises:
    InputError: the parameters are not a whole Mixer's.
  """
  check_family(params, "mixer", "this tree")
  num_blocks = model_fields(params)["num_blocks"]
  names = _names(num_blocks)
  flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
  return {names[name]: _to_torch(np.asarray(value)) for name, value in flat.items()}


def from_timm(state: dict[str, Any], where: str = "this state dictionary") -> dict[str, Any]:
  """Returns our nested parameters for timm's state dictionary.

  Args:
    state: name -> array in torch's layout.
    where: its origin, for the message.

  Raises:
    InputError: it is not that of a whole MlpMixer; what is wrong is listed.
  """
  num_blocks = len({m[1] for name in state if (m := re.match(r"blocks\.(\d+)\.", name))})
  names = {theirs: ours for ours, theirs in _names(num_blocks).items()}
  if unknown := sorted(set(state) - set(names)):
    listed = "\n  ".join(unknown)
    raise InputError(f"{where} is not of timm's MlpMixer, which has no\n  {listed}")
  flat = {names[name]: _from_torch(np.asarray(value)) for name, value in state.items()}
  params = traverse_util.unflatten_dict(flat, sep="/")
  model_fields(params, where)
  return params


def _to_torch(value: np.ndarray) -> np.ndarray:
  axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim)
  return np.ascontiguousarray(value.transpose(axes)) if axes else value


def _from_torch(value: np.ndarray) -> np.ndarray:
  axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(value.ndim)
  return np.ascontiguousarray(value.transpose(axes)) if axes else value


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
    if entry["dtype"] not in _TYPES:
      raise InputError(f"{where}: {name} is of type {entry['dtype']}; known: {', '.join(_TYPES)}.")
    state[name] = np.frombuffer(entry["data"], _TYPES[entry["dtype"]]).reshape(entry["shape"])
  return state


def save_safetensors(path: str | os.PathLike[str], state: dict[str, np.ndarray]) -> None:
  """Writes arrays by name as a safetensors file, whole or not at all.

  Raises:
    SaveError: the file could not be written.
  """
  import safetensors.numpy

  # The library takes memory as it lies, whatever the strides.
  state = {name: np.ascontiguousarray(value) for name, value in state.items()}
  content = safetensors.numpy.save(state, metadata={"format": "pt"})
  with files.replacing(epath.Path(path)) as partial:
    partial.write_bytes(content)
