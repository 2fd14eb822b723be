"""Mixers with random parameters everywhere: biases, LayerNorms and head too."""

import jax

from mixer_jax import models
from tests import families
from tests.families import image

__all__ = ["TINY", "headless", "image", "random_params"]

TINY = dict(
  num_classes=5, patch_size=4, num_blocks=2, hidden_dim=16, tokens_mlp_dim=12, channels_mlp_dim=24
)


def random_params(height, width, seed=0, **fields):
  """Returns (module, parameters) for images of this size; activations stay of order 1."""
  return families.random_params("mixer", height, width, seed, **fields)


def headless(**fields):
  """Returns the compiled (params, image) -> pre_logits."""
  model = models.build("mixer", **{**fields, "num_classes": None})
  return jax.jit(lambda params, image: model.apply({"params": params}, image))
