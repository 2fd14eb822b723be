"""Files of Mixers, Vision Transformers and ResNets: what they tell, what they refuse, their heads and positions."""

import jax
import numpy as np
import pytest
import scipy.ndimage

from mixer_jax import models, weights
from mixer_jax.errors import InputError
from mixer_jax.weights import variables
from tests import families
from tests.families import RESNET, VIT
from tests.weights import mixers

TANH = {**VIT, "representation_size": 12}
MODELS = {"mixer": mixers.TINY, "vit": VIT, "vit with a tanh layer": TANH, "resnet": RESNET}


def random(kind, seed=0):
  return families.random_variables(kind.split(" ")[0], 8, 12, seed, **MODELS[kind])


flatten = variables.flatten


@pytest.mark.parametrize("kind", MODELS)
def test_a_file_tells_its_family_and_fields_and_comes_back_to_the_bit(kind, tmp_path):
  _, params = random(kind)
  weights.save_npz(tmp_path / "x.npz", params)
  with np.load(tmp_path / "x.npz") as file:
    assert set(file.files) == set(flatten(params))
  again = weights.load(tmp_path / "x.npz")
  jax.tree.map(np.testing.assert_array_equal, again, params)
  fields = {k: v for k, v in MODELS[kind].items() if k != "num_groups"}
  assert weights.describe(again)[:2] == (kind.split(" ")[0], fields)
  head = ("head/", "pre_logits/", "resnet/head/")
  headless = {k: v for k, v in flatten(params).items() if not k.startswith(head)}
  assert weights.describe(variables.unflatten(headless)).fields["num_classes"] is None


@pytest.mark.parametrize(
  ("family", "variant", "num_classes"),
  [
    ("mixer", "S/32", None), ("mixer", "B/16", 1000), ("mixer", "H/14", 21843), ("vit", "H/14", 21843),
    ("vit", "B/32", None), ("resnet", "R152x4", 21843), ("resnet", "R50x1", None),
  ],
)  # fmt: skip
def test_published_sizes_are_recognised(family, variant, num_classes):
  model = models.build(family, variant=variant, num_classes=num_classes)
  name, fields, shape = weights.describe(models.abstract_variables(model, (224, 224, 4)))
  assert name == family and (family == "resnet" or shape == (224, 224, 4))
  assert fields.pop("representation_size", 0) == 0
  assert fields == {**models.FAMILIES[family].VARIANTS[variant], "num_classes": num_classes}


def test_big_visions_checkpoints_are_read(tmp_path):
  """Below params/, beside other state; a ViT has no position for its class token, a BiT other names and axes."""
  model, params = random("vit")
  flat = dict(flatten(params))
  positions = flat.pop("Transformer/posembed_input/pos_embedding")
  flat |= {"cls": flat["cls"] + positions[:, :1], "pos_embedding": positions[:, 1:]}
  state = {"opt/0/count": np.zeros(()), "chrono/accum_train_time": np.zeros(())}
  np.savez(tmp_path / "vit.npz", **{f"params/{k}": v for k, v in flat.items()}, **state)
  image = jax.numpy.asarray(np.random.default_rng(0).normal(size=(2, 8, 12, 3)), np.float32)
  again = weights.load(tmp_path / "vit.npz")
  np.testing.assert_allclose(model.apply(again, image), model.apply(params, image), atol=1e-6)
  del flat["cls"]
  np.savez(tmp_path / "gap.npz", **{f"params/{k}": v for k, v in flat.items()})
  with pytest.raises(InputError, match=r"gap\.npz: .*pool_type gap or map"):
    weights.load(tmp_path / "gap.npz")

  _, params = random("resnet")
  theirs = {}
  for name, value in flatten(params).items():  # bit_paper.py: maybe_convert_big_transfer_format
    *place, module, leaf = name.removeprefix("resnet/").split("/")
    number = "abc".find(place[-1]) + 1 if place else 0
    if module == "group_norm":
      where = [*place[:-1], f"gn{number}"] if place else ["norm-pre-head"]
      name, value = [*where, {"gamma": "scale", "beta": "bias"}[leaf]], value[None, None, None]
    elif module == "conv2d":
      name, value = ["head", leaf], value[0, 0] if leaf == "kernel" else value
    elif place == ["root_block"]:
      name = ["root_block", "conv_root", leaf]
    else:
      name = [*place[:2], "conv_proj" if place[-1] == "proj" else f"conv{number}", leaf]
    theirs["/".join(["params", *name])] = value
  np.savez(tmp_path / "bit.npz", **theirs)
  jax.tree.map(np.testing.assert_array_equal, weights.load(tmp_path / "bit.npz"), params)


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
  _, mixer = random("mixer")
  mixer["params"]["pre_head"] = mixer["params"].pop("pre_head_layer_norm")
  _, vit = random("vit")
  params = vit["params"]
  params["pos_embedding"] = params["Transformer"].pop("posembed_input")["pos_embedding"]
  params["head"]["kernel"] = params["head"]["kernel"][:-1]
  _, resnet = random("resnet")
  block = resnet["params"]["resnet"]["block1"]
  block["unit03"] = block.pop("unit02")
  for params, lines in (
    (mixer, ("missing: pre_head_layer_norm/scale (16,)", "not in the model: pre_head/bias (16,)")),
    (vit, ("missing: Transformer/posembed_input/pos_embedding",
           "not in the model: pos_embedding (1, 7, 16)", "shape: head/kernel is (15, 5)")),
    (resnet, ("missing: resnet/block1/unit02/a/group_norm/beta (32,)", "not in the model: resnet/block1/unit03/")),
  ):  # fmt: skip
    with pytest.raises(InputError) as error:
      weights.describe(params, "file.npz")
    for line in lines:
      assert line in str(error.value)


@pytest.mark.parametrize("kind", MODELS)
def test_a_new_head_starts_at_zero_and_leaves_the_body(kind):
  _, params = random(kind)
  fields = {**MODELS[kind], "num_classes": 7}
  if kind.startswith("vit"):
    fields["representation_size"] = 0
  model = models.build(kind.split(" ")[0], **fields)
  new = weights.replace_head(params, models.abstract_variables(model, (8, 12, 3)), -2.0)
  assert {x.dtype for x in jax.tree.leaves(new)} == {np.dtype("float32")}
  logits = jax.jit(model.apply)(new, families.image(2, 8, 12, 3))
  np.testing.assert_array_equal(logits, np.full((2, 7), -2.0, np.float32))
  head = ("head", "resnet/head", "pre_logits")
  body = {k: v for k, v in flatten(params).items() if not k.startswith(head)}
  kept = {k: v for k, v in flatten(new).items() if not k.startswith(head)}
  jax.tree.map(np.testing.assert_array_equal, kept, body)


@pytest.mark.parametrize("new", [(2, 3), (4, 6), (3, 7), (1, 2), (5, 1)])
def test_positions_are_interpolated_as_by_scipy(new):
  """vit_jax/checkpoint.py calls scipy.ndimage.zoom(order=1); the class token's stays."""
  _, params = random("vit")
  resized = weights.resize(params, (2, 3), new)
  old, got = (
    p["params"]["Transformer"]["posembed_input"]["pos_embedding"] for p in (params, resized)
  )
  zoom = (new[0] / 2, new[1] / 3, 1)
  want = scipy.ndimage.zoom(old[0, 1:].reshape(2, 3, 16), zoom, order=1).reshape(-1, 16)
  np.testing.assert_allclose(got[0, 1:], want, atol=1e-6)
  np.testing.assert_array_equal(got[:, :1], old[:, :1])
  assert got.shape[1] == 1 + new[0] * new[1]
  rest = {k: v for k, v in flatten(params).items() if "posembed" not in k}
  jax.tree.map(
    np.testing.assert_array_equal, {k: v for k, v in flatten(resized).items() if k in rest}, rest
  )
  image = families.image(1, 4 * new[0], 4 * new[1], 3)
  model = models.build("vit", **VIT)
  assert np.isfinite(jax.jit(model.apply)(resized, image)).all()


def test_what_cannot_be_resized_is_named():
  with pytest.raises(InputError, match="'paper'"):
    weights.resize(random("vit")[1], (2, 3), (4, 6), "paper")
  with pytest.raises(InputError, match="not for a grid of 3x3"):
    weights.resize(random("vit")[1], (3, 3), (4, 6))
  with pytest.raises(InputError, match="a BiT ResNet of these fields is not resized"):
    weights.resize(random("resnet")[1], (2, 3), (4, 6))
