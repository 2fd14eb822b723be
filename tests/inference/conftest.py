"""A small model with weights that say something (a new head is zero)."""

import jax
import pytest

from mixer_jax import experiment, inference
from tests.configurations import small_config


def make_trained(num_devices=1, dtype="float32", **changes):
  """Returns an inference.Trained of the small configuration with random weights."""
  config = small_config(**changes)
  config.mesh.data = num_devices
  config.model.dtype = dtype
  exp = experiment.build(config, experiment.make_mesh(config))
  params = exp.init_state().params
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(0), len(leaves))
  noisy = [p + 0.2 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)]
  params = jax.device_put(jax.tree.unflatten(tree, noisy), exp.shardings.state.params)
  return inference.Trained(exp, params, {}, "random weights")


@pytest.fixture(scope="session")
def trained():
  return make_trained()
