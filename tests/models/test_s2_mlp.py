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


@pytest.mark.parametrize("name", ["wide", "deep"])
def test_it_is_the_papers_with_maps_and_gradients(name):
  maps = {"block_0": "block1", "block_1": "block2", "stage_1": "block2"}
  families.assert_is_recorded(*families.golden(f"family/s2mlp_{name}_derived", nchw=True), maps)


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
