"""Test set-up: four simulated CPU devices, and shapes of all annotated functions checked.

Programs are compiled without LLVM's optimizations, which takes half the time; what runs in processes of
its own, as a user starts it, is compiled as usual.
"""

import os
import pathlib

# Before JAX starts: both only count then.
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "")
  + " --xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jaxtyping

_CHECKED = [
  f"mixer_jax.{m}"
  for m in (
    "models",
    "losses",
    "labels",
    "training.step",
    "training.augment",
    "training.normalization",
    "training.gradients",
    "data.ops",
    "data.decode",
    "data.geometry",
  )
]
jaxtyping.install_import_hook(_CHECKED, "beartype.beartype")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

# Files that take a minute or more: first, so that no worker waits for another at the end.
_LONG = (
  "test_multiprocess",
  "test_commands",
  "test_worker",
  "test_loop",
  "test_step",
  "test_gradients",
  "test_init_from",
)
GOLDEN = pathlib.Path(__file__).parent / "golden"


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: item.path.stem not in _LONG)


def subtree(archive, prefix):
  """Returns the arrays below a prefix of an archive as a nested dictionary."""
  flat = {k[len(prefix) :]: archive[k] for k in archive if k.startswith(prefix)}
  return traverse_util.unflatten_dict(flat, sep="/")


@pytest.fixture(scope="session")
def mixer_tiny():
  """Inputs, weights, outputs and gradients recorded from the authors' public code."""
  return {k: jnp.asarray(v) for k, v in np.load(GOLDEN / "mixer_tiny.npz").items()}


@pytest.fixture(scope="session", autouse=True)
def shared_directories(tmp_path_factory):
  """Data prepared and programs compiled once for the whole session, commands that tests start included."""
  base = tmp_path_factory.getbasetemp()
  base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
  os.environ["TFDS_DATA_DIR"] = str(base / "tfds")
  jax.config.update("jax_compilation_cache_dir", str(base / "compiled"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(base / "compiled")
