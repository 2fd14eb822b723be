"""A small model with weights that say something (a new head is zero)."""

import jax
import pytest

from mixer_jax import inference
from mixer_jax.training import experiment
from tests.configurations import random_variables, small_config


def make_trained(num_devices=1, dtype="float32", config=None, **changes):
  """Returns an inference.Trained of a configuration, by default the small one, with random weights."""
  config = config or small_config(**changes)
  config.mesh.data = num_devices
  config.model.dtype = dtype
  setup = experiment.build_model(config)
  variables = jax.device_put(random_variables(setup), setup.shardings.variables)
  return inference.Trained(setup, variables, "random weights")


@pytest.fixture(scope="session")
def trained():
  return make_trained()
