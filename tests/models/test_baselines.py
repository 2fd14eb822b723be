"""ViT and BiT ResNet-v2 against NumPy, their published sizes, and their draws."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from numpy.lib.stride_tricks import sliding_window_view

from mixer_jax import models
from mixer_jax.errors import InputError
from tests import families
from tests.families import RESNET, VIT
from tests.formulas import float64, gelu, layer_norm

SMALLEST = [("vit", {**VIT, "num_blocks": 1}), ("resnet", {**RESNET, "num_units": (1,)})]


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def attention(x, p):
  """Head by head, for one image (s, c)."""
  total = p["out"]["bias"]
  for h in range(p["query"]["kernel"].shape[1]):
    q, k, v = (x @ p[n]["kernel"][:, h] + p[n]["bias"][h] for n in ("query", "key", "value"))
    total = total + softmax(q @ k.T / np.sqrt(q.shape[1])) @ v @ p["out"]["kernel"][h]
  return total


def vit(params, image, patch=4):
  """One image -> (pre_logits, logits)."""
  rows, columns = image.shape[0] // patch, image.shape[1] // patch
  tokens = [params["cls"][0, 0]]
  for i in range(rows):
    for j in range(columns):
      pixels = image[i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
      tokens.append(np.sum(pixels[..., None] * params["embedding"]["kernel"], axis=(0, 1, 2)))
      tokens[-1] = tokens[-1] + params["embedding"]["bias"]
  encoder = params["Transformer"]
  x = np.stack(tokens) + encoder["posembed_input"]["pos_embedding"][0]
  for i in range(VIT["num_blocks"]):
    block = encoder[f"encoderblock_{i}"]
    x = x + attention(layer_norm(x, block["LayerNorm_0"]), block["MultiHeadDotProductAttention_1"])
    first, second = block["MlpBlock_3"]["Dense_0"], block["MlpBlock_3"]["Dense_1"]
    y = gelu(layer_norm(x, block["LayerNorm_2"]) @ first["kernel"] + first["bias"])
    x = x + y @ second["kernel"] + second["bias"]
  x = layer_norm(x, encoder["encoder_norm"])[0]
  if "pre_logits" in params:
    x = np.tanh(x @ params["pre_logits"]["kernel"] + params["pre_logits"]["bias"])
  return x, x @ params["head"]["kernel"] + params["head"]["bias"]


def outputs(model, params, image):
  logits, sown = jax.jit(lambda p, x: model.apply({"params": p}, x, mutable=["intermediates"]))(
    params, image
  )
  return sown["intermediates"]["pre_logits"][0], logits


@pytest.mark.parametrize("representation_size", [0, 12])
def test_vit_is_the_papers_formula(representation_size):
  fields = {**VIT, "representation_size": representation_size}
  model, params = families.random_params("vit", 8, 12, **fields)
  image = families.image(3, 8, 12, 3)
  wanted = [vit(float64(params), x) for x in np.asarray(image, np.float64)]
  for got, want in zip(outputs(model, params, image), zip(*wanted, strict=True), strict=True):
    np.testing.assert_allclose(got, np.stack(want), atol=5e-6, rtol=0)


def group_norm(x, p, groups):
  """One image (h, w, c), group by group."""
  size = x.shape[-1] // groups
  out = np.empty_like(x)
  for g in range(groups):
    part = x[..., g * size : (g + 1) * size]
    out[..., g * size : (g + 1) * size] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
  return out * p["gamma"] + p["beta"]


def std_conv(x, kernel, stride=1):
  kernel = kernel - kernel.mean((0, 1, 2))
  kernel = kernel / np.sqrt(kernel.var((0, 1, 2)) + 1e-10)
  size = kernel.shape[0]
  x = np.pad(x, ((size // 2,) * 2, (size // 2,) * 2, (0, 0)))
  windows = sliding_window_view(x, (size, size), axis=(0, 1))[::stride, ::stride]
  return np.einsum("yxijk,jkio->yxo", windows, kernel)


def resnet(params, image, groups=4):
  """One image -> (pre_logits, logits)."""
  p = params["resnet"]
  name = "standardized_conv2d"

  def relu_norm(x, part):
    return np.maximum(group_norm(x, part["group_norm"], groups), 0)

  x = std_conv(image, p["root_block"][name]["kernel"], 2)
  x = sliding_window_view(np.pad(x, ((1, 1), (1, 1), (0, 0))), (3, 3), axis=(0, 1))
  x = x[::2, ::2].max((-1, -2))
  for i, num_units in enumerate(RESNET["num_units"]):
    for j in range(num_units):
      unit = p[f"block{i + 1}"][f"unit{j + 1:02d}"]
      stride = 2 if i > 0 and j == 0 else 1
      y = relu_norm(x, unit["a"])
      if "proj" in unit["a"]:
        x = std_conv(y, unit["a"]["proj"][name]["kernel"], stride)
      y = std_conv(y, unit["a"][name]["kernel"])
      y = std_conv(relu_norm(y, unit["b"]), unit["b"][name]["kernel"], stride)
      x = x + std_conv(relu_norm(y, unit["c"]), unit["c"][name]["kernel"])
  x = relu_norm(x, p).mean((0, 1))
  return x, x @ p["head"]["conv2d"]["kernel"][0, 0] + p["head"]["conv2d"]["bias"]


@pytest.mark.parametrize("size", [(16, 24), (15, 18)])
def test_resnet_is_the_authors_formula(size):
  """All-negative borders of the root show that its pooling pads with zeros."""
  model, params = families.random_params("resnet", *size, **RESNET)
  image = families.image(3, *size, 3)
  wanted = [resnet(float64(params), x) for x in np.asarray(image, np.float64)]
  for got, want in zip(outputs(model, params, image), zip(*wanted, strict=True), strict=True):
    np.testing.assert_allclose(got, np.stack(want), atol=2e-5, rtol=0)


def vit_count(patch, hidden, blocks, classes=1000):
  tokens = (224 // patch) ** 2 + 1
  attention = 4 * (hidden * hidden + hidden)
  mlp = hidden * 4 * hidden + 4 * hidden + 4 * hidden * hidden + hidden
  body = patch * patch * 3 * hidden + hidden + hidden + tokens * hidden
  return body + blocks * (attention + mlp + 4 * hidden) + 2 * hidden + hidden * classes + classes


def resnet_count(units, factor, classes=1000):
  width, count, c = 64 * factor, 7 * 7 * 3 * 64 * factor, 64 * factor
  for stage, num in enumerate(units):
    mid = width << stage
    for unit in range(num):
      count += 2 * c + c * mid + 2 * mid + 9 * mid * mid + 2 * mid + mid * 4 * mid
      count += c * 4 * mid if unit == 0 else 0
      c = 4 * mid
  return count + 2 * c + c * classes + classes


SIZES = [
  ("vit", "B/32", 88_224_232, vit_count(32, 768, 12)),
  ("vit", "B/16", 86_567_656, vit_count(16, 768, 12)),
  ("vit", "L/32", 306_535_400, vit_count(32, 1024, 24)),
  ("vit", "L/16", 304_326_632, vit_count(16, 1024, 24)),
  ("vit", "H/14", 632_045_800, vit_count(14, 1280, 32)),
  ("resnet", "R50x1", 25_549_352, resnet_count((3, 4, 6, 3), 1)),
  ("resnet", "R50x2", 97_988_712, resnet_count((3, 4, 6, 3), 2)),
  ("resnet", "R50x3", 217_319_080, resnet_count((3, 4, 6, 3), 3)),
  ("resnet", "R101x1", 44_541_480, resnet_count((3, 4, 23, 3), 1)),
  ("resnet", "R101x3", 387_934_888, resnet_count((3, 4, 23, 3), 3)),
  ("resnet", "R152x1", 60_185_128, resnet_count((3, 8, 36, 3), 1)),
  ("resnet", "R152x2", 236_335_208, resnet_count((3, 8, 36, 3), 2)),
  ("resnet", "R152x4", 936_533_224, resnet_count((3, 8, 36, 3), 4)),
  ("resnet", "R200x3", 568_633_000, resnet_count((3, 24, 36, 3), 3)),
]


@pytest.mark.parametrize(("family", "variant", "pinned", "counted"), SIZES)
def test_published_sizes(family, variant, pinned, counted):
  model = models.build(family, variant=variant, num_classes=1000)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
  assert sum(x.size for x in jax.tree.leaves(shapes)) == pinned == counted


def test_every_published_size_is_counted():
  assert {(family, variant) for family, variant, *_ in SIZES} == {
    (family, variant)
    for family in ("vit", "resnet")
    for variant in models.FAMILIES[family].VARIANTS
  }


@pytest.mark.parametrize(("family", "fields"), SMALLEST, ids=["vit", "resnet"])
def test_rematerialisation_changes_nothing(family, fields):
  _, params = families.random_params(family, 16, 16, **fields)
  image = families.image(2, 16, 16, 3)

  def grads(remat):
    model = models.build(family, remat=remat, **fields)

    def loss(params):
      return jnp.sum(model.apply({"params": params}, image, train=True) ** 2)

    return jax.jit(jax.grad(loss))(params)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    grads("none"),
    grads("block"),
  )


def test_vits_draws_belong_to_the_image_and_not_to_its_place():
  _, params = families.random_params("vit", 16, 16, **VIT)
  model = models.build("vit", stoch_depth=0.5, dropout_rate=0.2, **VIT)
  image = families.image(8, 16, 16, 3)

  @jax.jit
  def apply(key, image, rows):
    return model.apply({"params": params}, image, train=True, index=rows, rngs={"dropout": key})

  rows = jnp.array([6, 1, 3, 0, 7, 2, 5, 4])
  keys = jax.random.key(5), jax.random.key(6)
  whole, other = (apply(key, image, jnp.arange(8)) for key in keys)
  np.testing.assert_allclose(apply(keys[0], image[rows], rows), whole[rows], atol=1e-5)
  assert np.abs(whole - other).max() > 0.01


def test_vits_last_block_is_dropped_at_stochastic_depth_1_and_its_first_is_kept():
  _, params = families.random_params("vit", 16, 16, **VIT)
  model = models.build("vit", stoch_depth=1.0, **VIT)
  image = families.image(2, 16, 16, 3)
  rngs = {"dropout": jax.random.key(5)}

  def blocks(**options):
    _, sown = model.apply({"params": params}, image, mutable=["intermediates"], **options)
    return [sown["intermediates"][f"block_{i}"][0] for i in (0, 1)]

  first, last = blocks(train=True, rngs=rngs)
  np.testing.assert_allclose(first, blocks()[0], atol=1e-6)
  np.testing.assert_array_equal(first, last)


MIXER = dict(
  num_classes=5, patch_size=4, num_blocks=2, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=24
)  # fmt: skip


@pytest.mark.parametrize(
  ("family", "fields", "last_of_branches"),
  [
    ("mixer", MIXER, r"MixerBlock_1/.*_mixing/Dense_1/"),
    ("vit", VIT, r"Transformer/encoderblock_1/(.*_1/out|MlpBlock_3/Dense_1)/"),
  ],
)
def test_kept_branches_are_divided_where_asked_for(family, fields, last_of_branches):
  """The last block keeps both branches of an image with probability ¼, and they are twice as large then."""
  model, tree = families.random_variables(family, 16, 16, **fields)
  model = model.clone(stoch_depth=0.5, stoch_depth_rescale=True)
  flat = traverse_util.flatten_dict(tree, sep="/")
  last = [k for k in flat if re.match("params/" + last_of_branches, k)]
  assert len(last) == 4
  doubled = traverse_util.unflatten_dict(flat | {k: 2 * flat[k] for k in last}, sep="/")
  image = families.image(1, 16, 16, 3)
  apply = jax.jit(functools.partial(model.apply, train=True, rngs={"dropout": jax.random.key(0)}))
  logits = apply(tree, jnp.tile(image, (1000, 1, 1, 1)))
  both = np.abs(logits - model.apply(doubled, image)).max(-1) < 1e-5
  assert abs(both.mean() - 0.25) < 0.05
  assert np.abs(logits - model.apply(tree, image)).max(-1).min() > 1e-3


@pytest.mark.parametrize(("family", "fields"), SMALLEST, ids=["vit", "resnet"])
def test_bfloat16_keeps_parameters_and_logits_in_float32(family, fields):
  exact_model, params = families.random_params(family, 16, 16, **fields)
  model = models.build(family, dtype="bfloat16", **fields)
  image = families.image(3, 16, 16, 3)
  fresh = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  assert {x.dtype for x in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
  logits, exact = (outputs(m, params, image)[1] for m in (model, exact_model))
  assert logits.dtype == jnp.float32
  assert 1e-4 < np.abs(logits - exact).max() < 0.1
  half = models.build(family, param_dtype="bfloat16", **fields)
  fresh = jax.eval_shape(half.init, jax.random.key(0), image)["params"]
  assert {x.dtype for x in jax.tree.leaves(fresh)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(("family", "fields"), SMALLEST, ids=["vit", "resnet"])
def test_heads_start_at_zero_with_the_given_bias(family, fields):
  model = models.build(family, head_bias_init=-6.9, **fields)
  image = families.image(2, 16, 16, 3)

  @jax.jit
  def init(key):
    params = model.init(key, image)["params"]
    return params["head"] if family == "vit" else params["resnet"]["head"]["conv2d"]

  head = init(jax.random.key(0))
  assert not head["kernel"].any()
  np.testing.assert_array_equal(head["bias"], np.full(5, np.float32(-6.9)))


@pytest.mark.parametrize(
  ("family", "fields", "message"),
  [
    ("vit", {**VIT, "num_heads": 3}, "num_heads 3 does not divide hidden_dim 16"),
    ("vit", {**VIT, "patch_size": 5}, "patch_size 5 does not divide the image of 16x16"),
    ("resnet", {**RESNET, "num_groups": 3}, "num_groups 3 does not divide width 8"),
    ("resnet", {**RESNET, "num_units": (2, 0)}, "every stage needs a unit"),
  ],
)
def test_what_does_not_fit_is_named(family, fields, message):
  with pytest.raises(InputError, match=message):
    models.build(family, **fields).init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))


@pytest.mark.parametrize(
  ("family", "fields", "message"),
  [
    ("vit", {"variant": "B/61"}, "Did you mean 'B/16'"),
    ("resnet", {"variant": "R50x1", "stoch_depth": 0.1}, "stoch_depth is not read by anything"),
    ("resnet", {"num_units": (1, "2"), "width": 32}, "expected tuple"),
    ("vit", {"patch_size": 4}, "lacks num_blocks"),
  ],
)
def test_bad_models_are_named(family, fields, message):
  with pytest.raises(InputError, match=message):
    models.build(family, num_classes=10, **fields)
