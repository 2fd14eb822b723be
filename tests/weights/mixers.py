"""Mixers with random parameters everywhere: biases, LayerNorms and head too."""

import jax
import jax.numpy as jnp
import numpy as np

from mixer_jax import models

TINY = dict(
  num_classes=5, patch_size=4, num_blocks=2, hidden_dim=16, tokens_mlp_dim=12, channels_mlp_dim=24
)


def random_params(height, width, seed=0, **fields):
  """Returns (module, parameters) for images of this size; activations stay of order 1."""
  model = models.build("mixer", **fields)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, height, width, 3)))
  rng = np.random.default_rng(seed)

  def draw(path, x):
    noise = rng.standard_normal(x.shape, np.float32)
    if path[-1].key == "kernel":
      value = noise / np.prod(x.shape[:-1]) ** 0.5
    else:
      value = (path[-1].key == "scale") + 0.2 * noise
    return value.astype(np.float32)

  return model, jax.tree_util.tree_map_with_path(draw, shapes["params"])


def headless(**fields):
  """Returns the compiled (params, image) -> pre_logits."""
  model = models.build("mixer", **{**fields, "num_classes": None})
  return jax.jit(lambda params, image: model.apply({"params": params}, image))


def image(*shape, seed=1):
  return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)
