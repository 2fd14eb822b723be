"""Models of any family with random parameters everywhere: biases, normalisations and heads too."""

import jax
import jax.numpy as jnp
import numpy as np

from mixer_jax import models

VIT = dict(
  num_classes=5, patch_size=4, num_blocks=2, hidden_dim=16, mlp_dim=24, num_heads=2,
  representation_size=0,
)  # fmt: skip
RESNET = dict(num_classes=5, num_units=(2, 1), width=8, num_groups=4)


def random_params(family, height, width, seed=0, /, **fields):
  """Returns (module, parameters) for images of this size; activations stay of order 1."""
  model, variables = random_variables(family, height, width, seed, **fields)
  return model, variables["params"]


def random_variables(family, height, width, seed=0, /, **fields):
  """Returns (module, variables) for images of this size; activations stay of order 1."""
  model = models.build(family, **fields)
  shapes = models.abstract_variables(model, (height, width, 3))
  rng = np.random.default_rng(seed)

  def draw(path, x):
    noise = rng.standard_normal(x.shape, np.float32)
    if path[-1].key == "kernel":
      value = noise / np.prod(x.shape[:-1]) ** 0.5
    elif path[-1].key == "var":
      value = np.exp(0.2 * noise)
    else:
      value = (path[-1].key in ("scale", "gamma", "alpha")) + 0.2 * noise
    return value.astype(np.float32)

  return model, jax.tree_util.tree_map_with_path(draw, shapes)


def image(*shape, seed=1):
  return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)
