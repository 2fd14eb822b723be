"""Files of Vision Transformers and ResNets: what they tell, what they refuse, their heads and positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from flax import traverse_util

from mixer_jax import models, weights
from mixer_jax.errors import InputError
from tests import families
from tests.families import RESNET, VIT
from tests.weights import mixers

TANH = {**VIT, "representation_size": 12}
MODELS = {"mixer": mixers.TINY, "vit": VIT, "vit with a tanh layer": TANH, "resnet": RESNET}


def random(kind, seed=0):
  return families.random_params(kind.split(" ")[0], 8, 12, seed, **MODELS[kind])


def flatten(params):
  return traverse_util.flatten_dict(params, sep="/")


@pytest.mark.parametrize("kind", MODELS)
def test_a_file_tells_its_family_and_fields_and_comes_back_to_the_bit(kind, tmp_path):
  _, params = random(kind)
  weights.save_npz(tmp_path / "x.npz", params)
  with np.load(tmp_path / "x.npz") as file:
    assert set(file.files) == set(flatten(params))
  again = weights.load(tmp_path / "x.npz")
  jax.tree.map(np.testing.assert_array_equal, again, params)
  fields = {k: v for k, v in MODELS[kind].items() if k != "num_groups"}
  assert (weights.family(again), weights.model_fields(again)) == (kind.split(" ")[0], fields)
  headless = {k: v for k, v in params.items() if k not in ("head", "pre_logits")}
  if kind == "resnet":
    headless = {"resnet": {k: v for k, v in params["resnet"].items() if k != "head"}}
  assert weights.model_fields(headless)["num_classes"] is None


@pytest.mark.parametrize(
  ("family", "variant", "num_classes"),
  [("vit", "H/14", 21843), ("vit", "B/32", None), ("resnet", "R152x4", 21843), ("resnet", "R50x1", None)],
)  # fmt: skip
def test_published_sizes_are_recognised(family, variant, num_classes):
  model = models.build(family, variant=variant, num_classes=num_classes)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
  fields = weights.model_fields(shapes)
  assert fields.pop("representation_size", 0) == 0
  assert fields == {**models.VARIANTS[family][variant], "num_classes": num_classes}


def test_names_of_the_released_files():
  """As public code reads them: vision_transformer, vit_jax; big_transfer, bit_pytorch/models.py."""
  _, vit = random("vit with a tanh layer")
  block = "Transformer/encoderblock_1"
  assert {k: v.shape for k, v in flatten(vit).items()}.items() >= {
    "cls": (1, 1, 16),
    "embedding/kernel": (4, 4, 3, 16),
    "Transformer/posembed_input/pos_embedding": (1, 7, 16),
    f"{block}/LayerNorm_2/scale": (16,),
    f"{block}/MultiHeadDotProductAttention_1/query/kernel": (16, 2, 8),
    f"{block}/MultiHeadDotProductAttention_1/out/kernel": (2, 8, 16),
    f"{block}/MlpBlock_3/Dense_1/bias": (16,),
    "Transformer/encoder_norm/bias": (16,),
    "pre_logits/kernel": (16, 12),
    "head/kernel": (12, 5),
  }.items()
  _, resnet = random("resnet")
  assert {k: v.shape for k, v in flatten(resnet).items()}.items() >= {
    "resnet/root_block/standardized_conv2d/kernel": (7, 7, 3, 8),
    "resnet/block1/unit02/c/standardized_conv2d/kernel": (1, 1, 8, 32),
    "resnet/block2/unit01/a/proj/standardized_conv2d/kernel": (1, 1, 32, 64),
    "resnet/block2/unit01/b/group_norm/gamma": (16,),
    "resnet/group_norm/beta": (64,),
    "resnet/head/conv2d/kernel": (1, 1, 64, 5),
    "resnet/head/conv2d/bias": (5,),
  }.items()


@pytest.mark.parametrize(
  ("kind", "renamed"),
  [
    ("vit", {"LayerNorm_2": "LayerNorm_1", "MultiHeadDotProductAttention_1":
             "MultiHeadDotProductAttention_0", "MlpBlock_3": "MlpBlock_0"}),
    ("resnet", {"unit01/b/standardized_conv2d": "unit01/b/standardized_conv2d_2"}),
  ],
)  # fmt: skip
def test_other_numberings_are_read(kind, renamed, tmp_path):
  _, params = random(kind)
  flat = flatten(params)
  for old, new in renamed.items():
    flat = {name.replace(old, new): value for name, value in flat.items()}
  assert set(flat) != set(flatten(params))
  np.savez(tmp_path / "x.npz", **{f"opt/target/{k}": v for k, v in flat.items()})
  jax.tree.map(np.testing.assert_array_equal, weights.load(tmp_path / "x.npz"), params)


@pytest.mark.parametrize(
  ("have", "want", "message"),
  [
    ("vit", "mixer", r"x\.npz holds a Vision Transformer's parameters .*'vit'.* Mixer's .*'mixer'"),
    ("mixer", "resnet", r"x\.npz holds a Mixer's parameters .* but a BiT ResNet's"),
    ("resnet", "vit", r"x\.npz holds a BiT ResNet's parameters .* but a Vision Transformer's"),
  ],
)
def test_weights_of_another_architecture_are_refused(have, want, message, tmp_path):
  weights.save_npz(tmp_path / "x.npz", random(have)[1])
  with pytest.raises(InputError, match=message):
    weights.load(tmp_path / "x.npz", random(want)[1])


def test_what_is_wrong_with_a_file_is_listed():
  _, vit = random("vit")
  vit["pos_embedding"] = vit["Transformer"].pop("posembed_input")["pos_embedding"]
  vit["head"]["kernel"] = vit["head"]["kernel"][:-1]
  _, resnet = random("resnet")
  resnet["resnet"]["block1"]["unit03"] = resnet["resnet"]["block1"].pop("unit02")
  for params, lines in (
    (vit, ("missing: Transformer/posembed_input/pos_embedding",
           "not in the model: pos_embedding (1, 7, 16)", "shape: head/kernel is (15, 5)")),
    (resnet, ("missing: resnet/block1/unit02/a/group_norm/beta (32,)", "not in the model: resnet/block1/unit03/")),
  ):  # fmt: skip
    with pytest.raises(InputError) as error:
      weights.model_fields(params, "file.npz")
    for line in lines:
      assert line in str(error.value)


@pytest.mark.parametrize("kind", MODELS)
def test_a_new_head_starts_at_zero_and_leaves_the_body(kind):
  _, params = random(kind)
  new = weights.replace_head(params, 7, -2.0)
  fields = weights.model_fields(new)
  assert fields["num_classes"] == 7
  if kind.startswith("vit"):
    assert fields["representation_size"] == 0
  model = models.build(weights.family(new), **{**MODELS[kind], **fields})
  logits = jax.jit(model.apply)({"params": new}, families.image(2, 8, 12, 3))
  np.testing.assert_array_equal(logits, np.full((2, 7), -2.0, np.float32))
  head = ("head", "resnet/head", "pre_logits")
  body = {k: v for k, v in flatten(params).items() if not k.startswith(head)}
  kept = {k: v for k, v in flatten(new).items() if not k.startswith(head)}
  jax.tree.map(np.testing.assert_array_equal, kept, body)


@pytest.mark.parametrize("new", [(2, 3), (4, 6), (3, 7), (1, 2), (5, 1)])
def test_positions_are_interpolated_as_by_scipy(new):
  """vit_jax/checkpoint.py calls scipy.ndimage.zoom(order=1); the class token's stays."""
  _, params = random("vit")
  resized = weights.resize_tokens(params, (2, 3), new)
  old, got = (p["Transformer"]["posembed_input"]["pos_embedding"] for p in (params, resized))
  zoom = (new[0] / 2, new[1] / 3, 1)
  want = scipy.ndimage.zoom(old[0, 1:].reshape(2, 3, 16), zoom, order=1).reshape(-1, 16)
  np.testing.assert_allclose(got[0, 1:], want, atol=1e-6)
  np.testing.assert_array_equal(got[:, :1], old[:, :1])
  assert weights.num_tokens(resized) == new[0] * new[1]
  rest = {k: v for k, v in flatten(params).items() if "posembed" not in k}
  jax.tree.map(
    np.testing.assert_array_equal, {k: v for k, v in flatten(resized).items() if k in rest}, rest
  )
  image = families.image(1, 4 * new[0], 4 * new[1], 3)
  model = models.build("vit", **VIT)
  assert np.isfinite(jax.jit(model.apply)({"params": resized}, image)).all()


def test_what_cannot_be_resized_is_named():
  with pytest.raises(InputError, match=r"'paper' \(appendix C\) is for a Mixer"):
    weights.resize_tokens(random("vit")[1], (2, 3), (4, 6), "paper")
  with pytest.raises(InputError, match="not for a grid of 3x3"):
    weights.resize_tokens(random("vit")[1], (3, 3), (4, 6))
  with pytest.raises(InputError, match="a ResNet's parameters are those for every image size"):
    weights.resize_tokens(random("resnet")[1], (2, 3), (4, 6))
