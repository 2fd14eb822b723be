"""Weights as variables: from files, addresses and names, to files, in torch's layouts, for other image sizes.

`load("imagenet21k/Mixer-B_16")` returns variables, {"params": …}; `describe` says of which model.
"""

from mixer_jax.weights.changes import (
  channels_line,
  grid_of,
  replace_channels,
  replace_head,
  resize,
  resize_line,
)
from mixer_jax.weights.hub import known
from mixer_jax.weights.npz import load_npz, save_npz
from mixer_jax.weights.released import RELEASED
from mixer_jax.weights.sources import class_names, load
from mixer_jax.weights.variables import (
  ModelSpec,
  Variables,
  check_family,
  check_match,
  check_values,
  describe,
  family_of,
)

__all__ = [
  "RELEASED",
  "ModelSpec",
  "Variables",
  "channels_line",
  "check_family",
  "check_match",
  "check_values",
  "class_names",
  "describe",
  "family_of",
  "grid_of",
  "known",
  "load",
  "load_npz",
  "replace_channels",
  "replace_head",
  "resize",
  "resize_line",
  "save_npz",
]
