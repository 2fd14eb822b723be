"""Test set-up: four simulated CPU devices, and shapes of all annotated functions checked."""

import os
import pathlib

# Before JAX starts: both only count then.
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jaxtyping

_CHECKED = ["mixer_jax.models", "mixer_jax.losses", "mixer_jax.step", "mixer_jax.data.ops"]
jaxtyping.install_import_hook(_CHECKED, "beartype.beartype")

import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

GOLDEN = pathlib.Path(__file__).parent / "golden"


def subtree(archive, prefix):
  """Returns the arrays below a prefix of an archive as a nested dictionary."""
  flat = {k[len(prefix) :]: archive[k] for k in archive if k.startswith(prefix)}
  return traverse_util.unflatten_dict(flat, sep="/")


@pytest.fixture(scope="session")
def mixer_tiny():
  """Inputs, weights, outputs and gradients recorded from the authors' public code."""
  return {k: jnp.asarray(v) for k, v in np.load(GOLDEN / "mixer_tiny.npz").items()}


@pytest.fixture(scope="session")
def tfds_dir(tmp_path_factory):
  """One TFDS directory for the whole session, so the digits are prepared once."""
  base = os.environ.get("MIXER_JAX_TEST_TFDS")
  directory = pathlib.Path(base) if base else tmp_path_factory.mktemp("tfds")
  os.environ["TFDS_DATA_DIR"] = str(directory)
  return directory
