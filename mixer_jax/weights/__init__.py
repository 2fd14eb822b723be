"""Weights as pure trees: from files, addresses and names, to files, for timm, for other image sizes.

`load("imagenet21k/Mixer-B_16")` returns nested parameters; `family` and `model_fields` say of which model.
"""

from mixer_jax.weights.npz import load_npz, save_npz
from mixer_jax.weights.params import (
  check_family,
  check_match,
  family,
  model_fields,
  num_tokens,
  replace_head,
)
from mixer_jax.weights.released import RELEASED
from mixer_jax.weights.resize import resize_tokens, resized_tokens_mlp_dim, token_grid
from mixer_jax.weights.sources import load

__all__ = [
  "RELEASED",
  "check_family",
  "check_match",
  "family",
  "load",
  "load_npz",
  "model_fields",
  "num_tokens",
  "replace_head",
  "resize_tokens",
  "resized_tokens_mlp_dim",
  "save_npz",
  "token_grid",
]
