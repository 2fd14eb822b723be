"""Mixers with random parameters everywhere: biases, LayerNorms and head too."""

import jax

from mixer_jax import models
from tests import families
from tests.families import image

__all__ = ["TINY", "headless", "image", "random_variables"]

TINY = dict(
  num_classes=5, patch_size=4, num_blocks=2, hidden_dim=16, tokens_mlp_dim=12, channels_mlp_dim=24
)


def random_variables(height, width, seed=0, **fields):
  """Returns variables for images of this size; activations stay of order 1."""
  return families.random_variables("mixer", height, width, seed, **fields)[1]


def headless(**fields):
  """Returns the compiled (variables, image) -> pre_logits."""
  return jax.jit(models.build("mixer", **{**fields, "num_classes": None}).apply)
