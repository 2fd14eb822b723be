"""A small model with weights that say something (a new head is zero)."""

import jax
import numpy as np
import pytest

from mixer_jax import inference
from mixer_jax.training import experiment
from tests.configurations import small_config


def make_trained(num_devices=1, dtype="float32", **changes):
  """Returns an inference.Trained of the small configuration with random weights."""
  config = small_config(**changes)
  config.mesh.data = num_devices
  config.model.dtype = dtype
  exp = experiment.build(config, experiment.make_mesh(config))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.normal(scale=0.3, size=x.shape).astype(x.dtype), exp.abstract_state.params
  )
  variables = jax.device_put({"params": params}, exp.shardings.state.variables())
  return inference.Trained(exp, variables, "random weights")


@pytest.fixture(scope="session")
def trained():
  return make_trained()
