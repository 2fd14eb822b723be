"""timm's state dictionaries: its recorded outputs, and round trips to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mixer_jax
from mixer_jax import models, weights
from mixer_jax.errors import InputError
from mixer_jax.weights import torch_layout
from tests import families
from tests.conftest import GOLDEN
from tests.weights import mixers

FILE = GOLDEN / "mixer_timm.safetensors"
FILES = {
  "mixer": FILE,
  "vit": GOLDEN / "family" / "vit_timm.safetensors",
  "resnet": GOLDEN / "family" / "resnet_timm.safetensors",
}


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


@pytest.mark.parametrize(
  ("name", "fields"),
  [("vit_timm", dict(num_heads=3, gelu="erf")), ("resnet_timm", dict(num_groups=4))],
)
def test_baselines_outputs_are_timms(name, fields):
  recorded = np.load(GOLDEN / "family" / f"{name}.npz")
  file, size = GOLDEN / "family" / f"{name}.safetensors", recorded["image"].shape[1:3]
  model, variables = mixer_jax.load(file, image_size=size, **fields)
  apply = jax.jit(lambda variables, image: model.apply(variables, image, mutable=["intermediates"]))
  logits, sown = apply(variables, recorded["image"])
  for have, want in (
    (logits, recorded["logits"]),
    (sown["intermediates"]["pre_logits"][0], recorded["pre_logits"]),
  ):
    np.testing.assert_allclose(have, want, atol=2e-6 * np.abs(want).max(), rtol=0)


def test_unknown_numbers_of_heads_are_asked_for():
  state = torch_layout.load_safetensors(FILES["vit"])
  for num_heads, message in ((None, "tell num_heads.* 24 channels"), (5, "num_heads 5 does not")):
    with pytest.raises(InputError, match=message):
      torch_layout.from_torch(state, num_heads=num_heads)
  model = models.build("vit", variant="B/16", num_blocks=1)
  wide = jax.tree.map(
    lambda x: np.zeros(x.shape, x.dtype), models.abstract_variables(model, (16, 16, 3))
  )
  again = torch_layout.from_torch(torch_layout.to_torch(wide))
  assert weights.describe(again).fields["num_heads"] == 12


def test_bits_names_are_the_authors():
  """big_transfer, bit_pytorch/models.py."""
  _, variables = families.random_variables("resnet", 8, 12, **families.RESNET)
  state = torch_layout.to_torch(variables, "authors")
  assert {k: v.shape for k, v in state.items()}.items() >= {
    "root.conv.weight": (8, 3, 7, 7),
    "body.block1.unit02.gn1.bias": (32,),
    "body.block2.unit01.conv2.weight": (16, 16, 3, 3),
    "body.block2.unit01.downsample.weight": (64, 32, 1, 1),
    "head.gn.weight": (64,),
    "head.conv.weight": (5, 64, 1, 1),
  }.items()


@pytest.mark.parametrize("family", FILES)
def test_theirs_ours_theirs_is_the_same_to_the_bit(family, tmp_path):
  state = torch_layout.load_safetensors(FILES[family])
  again = torch_layout.to_torch(torch_layout.from_torch(state, num_heads=3))
  torch_layout.save_safetensors(tmp_path / "again.safetensors", again)
  for other in (again, torch_layout.load_safetensors(tmp_path / "again.safetensors")):
    assert other.keys() == state.keys()
    for name in state:
      np.testing.assert_array_equal(other[name], state[name], err_msg=name)
      assert other[name].dtype == state[name].dtype


@pytest.mark.parametrize(
  ("family", "fields", "layout", "dtype"),
  [
    ("mixer", mixers.TINY, "timm", "float32"), ("mixer", mixers.TINY, "timm", "bfloat16"),
    ("mixer", mixers.TINY, "timm", "float16"), ("mixer", {**mixers.TINY, "num_classes": None}, "timm", "float32"),
    ("vit", families.VIT, "timm", "float32"), ("resnet", families.RESNET, "timm", "float32"),
    ("resnet", families.RESNET, "authors", "float32"),
  ],
)  # fmt: skip
def test_ours_theirs_ours_is_the_same_to_the_bit(family, fields, layout, dtype, tmp_path):
  _, variables = families.random_variables(family, 8, 12, **fields)
  variables = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), variables)
  state = torch_layout.to_torch(variables, layout)
  assert any("head" in name for name in state) == (fields["num_classes"] is not None)
  torch_layout.save_safetensors(tmp_path / "x.safetensors", state)
  wanted = None if family == "mixer" else variables  # whose shapes tell the heads
  again = weights.load(tmp_path / "x.safetensors", wanted)
  jax.tree.map(np.testing.assert_array_equal, again, variables)
  assert jax.tree.map(lambda x: x.dtype, again) == jax.tree.map(lambda x: x.dtype, variables)


def test_another_architecture_is_listed():
  state = torch_layout.load_safetensors(FILE)
  other = {k.replace("mlp_tokens.fc1", "mlp_tokens.gate"): v for k, v in state.items()}
  with pytest.raises(InputError) as error:
    torch_layout.from_torch(other, "gmlp.safetensors")
  message = str(error.value)
  assert "gmlp.safetensors" in message
  assert "timm's Mixer" in message
  for name in ("blocks.0.mlp_tokens.gate.weight", "blocks.1.mlp_tokens.gate.bias"):
    assert name in message


@pytest.mark.parametrize("prefix", ["module.", "module._orig_mod.", "net.backbone."])
def test_a_prefix_of_all_names_is_taken_off_and_said(prefix, capsys):
  state = torch_layout.load_safetensors(FILE)
  again = torch_layout.from_torch({f"{prefix}{k}": v for k, v in state.items()}, "x.pth")
  jax.tree.map(np.testing.assert_array_equal, again, torch_layout.from_torch(state))
  assert capsys.readouterr().err == f"x.pth: the prefix {prefix} of all names is taken off\n"


@pytest.mark.parametrize(
  ("name", "owner"),
  [
    ("vit.encoder.layer.0.attention.attention.query.weight", "Hugging Face"),
    ("model.encoder.layers.encoder_layer_0.ln_1.weight", "torchvision"),
    ("layers.0.blocks.0.attn.relative_position_bias_table", "Swin"),
    ("layer1.0.bn1.running_mean", "ResNet with BatchNorm"),
  ],
)
def test_another_library_is_named(name, owner):
  state = {f"{name}{i}": np.zeros(3, np.float32) for i in range(30)}
  with pytest.raises(InputError, match=rf"(?s)x\.pth .*{owner}.*… and 20 more") as error:
    torch_layout.from_torch(state, "x.pth")
  assert len(str(error.value).splitlines()) == 12


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


def test_other_types_are_named(tmp_path):
  torch_layout.save_safetensors(tmp_path / "x.safetensors", {"steps": np.zeros(2, np.int64)})
  with pytest.raises(InputError, match=r"x\.safetensors: steps is of type I64"):
    torch_layout.load_safetensors(tmp_path / "x.safetensors")


def test_arrays_are_saved_as_they_are_and_not_as_they_lie(tmp_path):
  x = np.arange(12, dtype=np.float32).reshape(3, 4)
  state = {"transposed": x.T, "every other": x[:, ::2], "big endian": x.astype(">f4")}
  torch_layout.save_safetensors(tmp_path / "x.safetensors", state)
  again = torch_layout.load_safetensors(tmp_path / "x.safetensors")
  for name, value in state.items():
    np.testing.assert_array_equal(again[name], value, err_msg=name)
