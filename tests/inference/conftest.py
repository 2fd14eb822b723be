"""A small model with weights that say something (a new head is zero)."""

import jax
import numpy as np
import pytest

from mixer_jax import inference
from mixer_jax.training import experiment
from tests.configurations import small_config


def make_trained(num_devices=1, dtype="float32", config=None, **changes):
  """Returns an inference.Trained of a configuration, by default the small one, with random weights."""
  config = config or small_config(**changes)
  config.mesh.data = num_devices
  config.model.dtype = dtype
  setup = experiment.build_model(config)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: rng.normal(scale=0.3, size=x.shape).astype(x.dtype), setup.abstract_variables
  )
  return inference.Trained(
    setup, jax.device_put(variables, setup.shardings.variables), "random weights"
  )


@pytest.fixture(scope="session")
def trained():
  return make_trained()
