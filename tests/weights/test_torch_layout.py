"""timm's state dictionaries: its recorded outputs, and round trips to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from mixer_jax import models, weights
from mixer_jax.errors import InputError
from mixer_jax.weights import torch_layout
from tests.conftest import GOLDEN
from tests.weights import mixers

FILE = GOLDEN / "mixer_timm.safetensors"


@pytest.fixture(scope="module")
def golden():
  """Inputs and outputs of timm's MlpMixer, with both GELUs."""
  return dict(np.load(GOLDEN / "mixer_timm.npz"))


def test_outputs_are_timms(golden):
  variables = weights.load(FILE)
  image = jnp.asarray(golden["image_nchw"].transpose(0, 2, 3, 1))
  for gelu, suffix in (("tanh", "_tanh"), ("erf", "")):
    model = models.build("mixer", **weights.describe(variables).fields, gelu=gelu)
    logits = model.apply(variables, image)
    np.testing.assert_allclose(logits, golden[f"logits{suffix}"], atol=2e-6, rtol=0)
    pre_logits = models.features(model, variables, image)["pre_logits"]
    np.testing.assert_allclose(pre_logits, golden[f"pre_logits{suffix}"], atol=2e-6, rtol=0)


def test_theirs_ours_theirs_is_the_same_to_the_bit(tmp_path):
  state = torch_layout.load_safetensors(FILE)
  again = torch_layout.to_torch(torch_layout.from_torch(state))
  torch_layout.save_safetensors(tmp_path / "again.safetensors", again)
  for other in (again, torch_layout.load_safetensors(tmp_path / "again.safetensors")):
    assert other.keys() == state.keys()
    for name in state:
      np.testing.assert_array_equal(other[name], state[name], err_msg=name)
      assert other[name].dtype == state[name].dtype


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_ours_theirs_ours_is_the_same_to_the_bit(tmp_path, dtype):
  params = mixers.random_variables(8, 12, **mixers.TINY)
  params = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), params)
  torch_layout.save_safetensors(tmp_path / "x.safetensors", torch_layout.to_torch(params))
  again = weights.load(tmp_path / "x.safetensors")
  jax.tree.map(np.testing.assert_array_equal, again, params)
  assert jax.tree.map(lambda x: x.dtype, again) == jax.tree.map(lambda x: x.dtype, params)


def test_a_model_without_head():
  params = mixers.random_variables(8, 12, **{**mixers.TINY, "num_classes": None})
  state = torch_layout.to_torch(params)
  assert not [name for name in state if "head" in name]
  jax.tree.map(np.testing.assert_array_equal, torch_layout.from_torch(state), params)


def test_another_architecture_is_listed():
  state = torch_layout.load_safetensors(FILE)
  other = {k.replace("mlp_tokens.fc1", "mlp_tokens.gate"): v for k, v in state.items()}
  with pytest.raises(InputError) as error:
    torch_layout.from_torch(other, "gmlp.safetensors")
  message = str(error.value)
  assert message.startswith("gmlp.safetensors is not of timm's Mixer")
  for name in ("blocks.0.mlp_tokens.gate.weight", "blocks.1.mlp_tokens.gate.bias"):
    assert name in message


def test_what_is_missing_or_misshapen_is_listed():
  state = torch_layout.load_safetensors(FILE)
  del state["norm.bias"], state["blocks.1.mlp_tokens.fc2.bias"]
  state["head.bias"] = np.zeros(6, np.float32)
  with pytest.raises(InputError) as error:
    torch_layout.from_torch(state)
  for line in (
    "missing: pre_head_layer_norm/bias (16,)",
    "missing: MixerBlock_1/token_mixing/Dense_1/bias (16,)",
    "shape: head/bias is (6,), the model's is (5,)",
  ):
    assert line in str(error.value)


@pytest.mark.parametrize(
  "content",
  [b"", FILE.read_bytes()[:-4], FILE.read_bytes() + b"\0", b"\xff" * 8 + b"{}", b"PK\x03\x04"],
  ids=["empty", "truncated", "longer", "absurd header", "npz"],
)
def test_damaged_files_are_refused(tmp_path, content):
  path = tmp_path / "x.safetensors"
  path.write_bytes(content)
  with pytest.raises(InputError, match=r"x\.safetensors is not a whole safetensors file"):
    torch_layout.load_safetensors(path)


def test_other_types_and_missing_files_are_named(tmp_path):
  torch_layout.save_safetensors(tmp_path / "x.safetensors", {"steps": np.zeros(2, np.int64)})
  with pytest.raises(InputError, match=r"x\.safetensors: steps is of type I64"):
    torch_layout.load_safetensors(tmp_path / "x.safetensors")
  with pytest.raises(InputError, match=r"nowhere\.safetensors does not exist"):
    torch_layout.load_safetensors(tmp_path / "nowhere.safetensors")


def test_arrays_are_saved_as_they_are_and_not_as_they_lie(tmp_path):
  x = np.arange(12, dtype=np.float32).reshape(3, 4)
  state = {"transposed": x.T, "every other": x[:, ::2], "big endian": x.astype(">f4")}
  torch_layout.save_safetensors(tmp_path / "x.safetensors", state)
  again = torch_layout.load_safetensors(tmp_path / "x.safetensors")
  for name, value in state.items():
    np.testing.assert_array_equal(again[name], value, err_msg=name)


def test_names_are_all_there():
  """Every parameter of ours has a place of its own in timm's."""
  params = mixers.random_variables(8, 12, **mixers.TINY)
  assert len(torch_layout.to_torch(params)) == len(traverse_util.flatten_dict(params))
