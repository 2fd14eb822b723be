"""S²-MLP against a program written from the paper, and its shift against recorded values."""

import jax.numpy as jnp
import numpy as np
import pytest

from mixer_jax import models
from mixer_jax.errors import InputError
from mixer_jax.models import s2_mlp
from mixer_jax.weights import torch_layout
from tests import families
from tests.conftest import GOLDEN
from tests.models.test_relatives import TINY

OPS = np.load(GOLDEN / "family/ops_s2_mlp.npz")


@pytest.fixture(scope="module", params=["wide", "deep"])
def recorded_model(request):
  return families.golden(f"family/s2mlp_{request.param}_derived", nchw=True)


def test_outputs_and_maps_are_the_papers(recorded_model):
  model, found, recorded = recorded_model
  seen = models.features(model, found, recorded["image"])
  families.assert_close(model.apply(found, recorded["image"]), recorded["logits"])
  families.assert_close(seen["pre_logits"], recorded["pre_logits"])
  for i in range(2):
    families.assert_close(seen[f"block_{i}"], recorded[f"block{i + 1}"])
  families.assert_close(seen["stage_1"], recorded["block2"])


def test_gradients_are_the_papers(recorded_model):
  families.assert_gradients_and_statistics(*recorded_model)


@pytest.mark.parametrize("name", ["wide", "deep"])
def test_state_dictionary_comes_back_to_the_bit(name):
  path = GOLDEN / f"family/s2mlp_{name}_derived.safetensors"
  state = torch_layout.load_safetensors(path)
  again = torch_layout.to_torch(torch_layout.from_torch(state))
  assert again.keys() == state.keys()
  for key, value in state.items():
    np.testing.assert_array_equal(again[key], value)


@pytest.mark.parametrize("size", ["4x5x8", "3x3x12", "1x4x8", "2x1x4"])
def test_shift_moves_four_groups_and_the_edge_keeps_its_value(size):
  x, y = (jnp.asarray(OPS[f"s2_shift/{size}/{name}"], jnp.float32) for name in "xy")
  np.testing.assert_array_equal(s2_mlp.shift(x), y)


def test_shift_is_not_that_of_the_overlapping_assignment():
  """The copy that reads what it has just written repeats the first row and column."""
  x, wrong = (jnp.asarray(OPS[f"s2_shift/inplace_trap/{name}"], jnp.float32) for name in "xy")
  differs = np.abs(s2_mlp.shift(x) - wrong).max((0, 1, 2)) > 0
  np.testing.assert_array_equal(differs, np.repeat([True, False, True, False], 2))


@pytest.mark.parametrize(
  ("fields", "size", "key"),
  [(dict(hidden_dim=18), 32, "hidden_dim is 18.*multiple of 4"), ({}, 34, "34.*4")],
)
def test_sizes_that_cannot_be_are_named(fields, size, key):
  model = models.build("s2_mlp", **{**TINY["s2_mlp"], **fields})
  with pytest.raises(InputError, match=key):
    models.abstract_variables(model, (size, size, 3))
