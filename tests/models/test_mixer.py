"""MLP-Mixer against the authors' code, and its behaviour by gradients and draws."""

import csv
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer_jax import losses, models, weights
from mixer_jax.errors import InputError
from mixer_jax.models import layers
from mixer_jax.models.mixer import MixerBlock
from mixer_jax.models.token_mixing import Mlp
from tests import families
from tests.conftest import GOLDEN, subtree

TINY = dict(patch_size=4, num_blocks=2, hidden_dim=16, tokens_mlp_dim=12, channels_mlp_dim=24)


def tiny(**fields):
  return models.build("mixer", num_classes=5, **TINY, **fields)


def table1():
  with (GOLDEN / "table1_architectures.csv").open() as f:
    return list(csv.DictReader(f))


@pytest.mark.parametrize("row", table1(), ids=lambda r: r["model"])
def test_variants_are_table_1(row):
  model = models.build("mixer", variant=row["model"], num_classes=1000)
  for field in ("num_blocks", "patch_size", "hidden_dim", "channels_mlp_dim", "tokens_mlp_dim"):
    assert getattr(model, field) == int(row[field])
  variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
  count = sum(x.size for x in jax.tree.leaves(variables["params"]))
  assert count == int(row["params_exact_1000_class_head"])


def test_logits_and_pre_logits_are_the_authors(mixer_tiny):
  params = subtree(mixer_tiny, "params/")
  logits, sown = tiny().apply({"params": params}, mixer_tiny["image"], mutable=["intermediates"])
  np.testing.assert_allclose(logits, mixer_tiny["logits"], atol=2e-6, rtol=0)
  pre_logits = sown["intermediates"]["pre_logits"][0]
  np.testing.assert_allclose(pre_logits, mixer_tiny["pre_logits"], atol=2e-6, rtol=0)
  headless = {k: v for k, v in params.items() if k != "head"}
  for none in (None, 0):
    model = models.build("mixer", num_classes=none, **TINY)
    np.testing.assert_array_equal(
      model.apply({"params": headless}, mixer_tiny["image"]), pre_logits
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_a_clip_is_the_image_of_its_tubelets_one_below_the_other(channels):
  """Whose pixels have the channels of all frames of a tubelet: the same tokens, in the same order."""
  clip = families.image(3, 6, 8, 12, channels)
  model, image_model = tiny(tubelet=2), tiny()
  shapes = models.abstract_variables(model, clip.shape[1:])
  params = jax.tree.map(lambda x: 0.3 * families.image(*x.shape), shapes["params"])
  kernel = jnp.moveaxis(params["stem"]["kernel"], 0, 2).reshape(4, 4, 2 * channels, 16)
  image_params = {**params, "stem": {**params["stem"], "kernel": kernel}}
  image = jnp.moveaxis(clip.reshape(3, 3, 2, 8, 12, channels), 2, 4)
  image = image.reshape(3, 3 * 8, 12, 2 * channels)
  have = models.features(model, {"params": params}, clip)
  want = models.features(image_model, {"params": image_params}, image)
  for name in ("block_0", "block_1", "pre_logits"):
    np.testing.assert_allclose(have[name], want[name], atol=1e-5, rtol=0)
  np.testing.assert_array_equal(have["stage_1"].reshape(have["block_1"].shape), have["block_1"])
  assert have["stage_1"].shape == (3, 3, 2, 3, 16)
  spec = weights.describe({"params": params})
  assert spec.fields == {**TINY, "tubelet": 2, "num_classes": 5}
  with pytest.raises(InputError, match=r"frames is 5\b.* tubelet 2"):
    models.abstract_variables(model, (5, 8, 12, channels))


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_losses_and_gradients_are_the_authors(mixer_tiny, name):
  params = subtree(mixer_tiny, "params/")
  loss = losses.LOSSES[f"{name}_xent"]

  def mean_loss(params, labels):
    return jnp.mean(loss(tiny().apply({"params": params}, mixer_tiny["image"]), labels))

  value, grads = jax.value_and_grad(mean_loss)(params, mixer_tiny["labels_onehot"])
  np.testing.assert_allclose(value, mixer_tiny[f"loss_{name}"], atol=2e-6, rtol=0)
  soft = mean_loss(params, mixer_tiny["labels_soft"])
  np.testing.assert_allclose(soft, mixer_tiny[f"loss_{name}_soft"], atol=2e-6, rtol=0)
  wanted = subtree(mixer_tiny, f"grad_{name}/")
  assert jax.tree.structure(grads) == jax.tree.structure(wanted)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=0), grads, wanted)


def test_every_block_is_available(mixer_tiny):
  """The last block's output, taken on by hand in NumPy, gives the recorded pre_logits."""
  params = subtree(mixer_tiny, "params/")
  _, sown = tiny().apply({"params": params}, mixer_tiny["image"], mutable=["intermediates"])
  assert set(sown["intermediates"]) == {"block_0", "block_1", "stage_1", "pre_logits"}
  x = np.asarray(sown["intermediates"]["block_1"][0], np.float64)
  norm = params["pre_head_layer_norm"]
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  x = (x * norm["scale"] + norm["bias"]).mean(1)
  np.testing.assert_allclose(x, mixer_tiny["pre_logits"], atol=2e-6, rtol=0)


def test_token_mixing_crosses_tokens_and_channel_mixing_does_not(mixer_tiny):
  params = subtree(mixer_tiny, "params/")["MixerBlock_0"]
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 16)), jnp.float32)

  def influence(params):
    """Returns |∂ output of token 3 / ∂ token t|, for each t."""
    block = MixerBlock(functools.partial(Mlp, 12), 24, gelu="tanh")
    grad = jax.grad(
      lambda x: jnp.sum(
        block.apply({"params": params}, x, jnp.arange(1), None, None, False)[0, 3] ** 2
      )
    )(x)
    return np.abs(grad[0]).sum(-1)

  assert (influence(params) > 1e-4).all()
  silent = jax.tree.map(np.zeros_like, params["token_mixing"])
  only_channels = influence({**params, "token_mixing": silent})
  assert only_channels[3] > 1e-4
  assert (np.delete(only_channels, 3) == 0).all()


def test_rematerialisation_changes_nothing(mixer_tiny):
  params = subtree(mixer_tiny, "params/")

  def grads(remat):
    model = tiny(remat=remat, stoch_depth=0.5, dropout_rate=0.1)

    def loss(params):
      rngs = {"dropout": jax.random.key(3)}
      return jnp.sum(
        model.apply({"params": params}, mixer_tiny["image"], train=True, rngs=rngs) ** 2
      )

    return jax.grad(loss)(params)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    grads("none"),
    grads("block"),
  )


def test_stochastic_depth_follows_the_formula(mixer_tiny):
  """Survivors are not rescaled; block i drops with s·i/(L−1); both branches are drawn independently."""
  block_params = subtree(mixer_tiny, "params/")["MixerBlock_1"]
  x = jnp.tile(np.random.default_rng(0).normal(size=(1, 16, 16)).astype(np.float32), (4000, 1, 1))
  rows = jnp.arange(4000)
  block = MixerBlock(functools.partial(Mlp, 12), 24, gelu="tanh")

  def run(params, x=x[:1], rows=rows[:1], keep=None):
    return block.apply({"params": params}, x, rows, keep, None, False)

  keep = layers.draw_kept(jax.random.key(0), rows, jnp.array([0.9, 0.3]))[:, 1]
  drawn = run(block_params, x, rows, keep)
  kept = run(block_params)[0]
  no_token = {
    **block_params,
    "token_mixing": jax.tree.map(np.zeros_like, block_params["token_mixing"]),
  }
  no_channel = {
    **block_params, "channel_mixing": jax.tree.map(np.zeros_like, block_params["channel_mixing"])
  }  # fmt: skip
  only_channel = run(no_token)[0]
  only_token = run(no_channel)[0]
  shares = [
    np.mean(np.abs(drawn - outcome).max((1, 2)) < 1e-5)
    for outcome in (kept, only_channel, only_token, x[0])
  ]
  np.testing.assert_allclose(shares, [0.49, 0.21, 0.21, 0.09], atol=0.025)
  assert np.isclose(sum(shares), 1.0)


def test_drop_rate_grows_linearly_from_zero(mixer_tiny):
  """With s = 1 the first block keeps every branch and the last none."""
  params = subtree(mixer_tiny, "params/")
  model = tiny(stoch_depth=1.0)
  rngs = {"dropout": jax.random.key(0)}
  _, sown = model.apply(
    {"params": params}, mixer_tiny["image"], train=True, rngs=rngs, mutable=["intermediates"]
  )
  _, plain = model.apply({"params": params}, mixer_tiny["image"], mutable=["intermediates"])
  first, last = (sown["intermediates"][f"block_{i}"][0] for i in (0, 1))
  np.testing.assert_allclose(first, plain["intermediates"]["block_0"][0], atol=1e-6)
  np.testing.assert_array_equal(first, last)


def test_draws_belong_to_the_image_and_not_to_its_place(mixer_tiny):
  params = subtree(mixer_tiny, "params/")
  model = tiny(stoch_depth=0.5, dropout_rate=0.2)
  image = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (8, 16, 16, 3)), jnp.float32)
  rngs = {"dropout": jax.random.key(5)}
  whole = model.apply({"params": params}, image, train=True, rngs=rngs)
  rows = jnp.array([6, 1, 3])
  part = model.apply({"params": params}, image[rows], train=True, index=rows, rngs=rngs)
  np.testing.assert_allclose(part, whole[rows], atol=1e-5)
  assert np.abs(whole - model.apply({"params": params}, image)).max() > 0.01


def test_dropout_rescales():
  x = jnp.ones((64, 100))
  y = np.asarray(layers.dropout(x, jax.random.key(0), jnp.arange(64), 0.25))
  assert set(np.unique(y).round(5)) == {0.0, np.float32(1 / 0.75).round(5)}
  assert abs((y == 0).mean() - 0.25) < 0.02


def test_bfloat16_keeps_parameters_and_statistics_in_float32(mixer_tiny):
  params = subtree(mixer_tiny, "params/")
  model = tiny(dtype="bfloat16")
  fresh = model.init(jax.random.key(0), mixer_tiny["image"])["params"]
  assert {x.dtype for x in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
  logits = model.apply({"params": params}, mixer_tiny["image"])
  assert logits.dtype == jnp.float32
  assert 1e-4 < np.abs(logits - mixer_tiny["logits"]).max() < 0.05
  # A large common offset destroys bfloat16 statistics, and float32 ones not: 256 + noise of 1.
  from flax import linen as nn

  x = (256 + np.random.default_rng(0).normal(size=(4, 512)) * 8).astype(jnp.bfloat16)
  norm = nn.LayerNorm(dtype=jnp.bfloat16)
  got = np.asarray(norm.apply(norm.init(jax.random.key(0), x), x), np.float64)
  exact = np.asarray(x, np.float64)
  exact = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
  assert np.abs(got - exact).max() < 0.02


def test_bfloat16_parameters():
  model = tiny(param_dtype="bfloat16")
  fresh = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
  assert {x.dtype for x in jax.tree.leaves(fresh)} == {jnp.dtype("bfloat16")}


def test_initial_values():
  """Kernels lecun-normal, head kernel zero, head bias as given, other biases zero."""
  model = models.build("mixer", variant="S/32", num_classes=10, head_bias_init=-6.9)
  params = model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
  assert (params["head"]["kernel"] == 0).all()
  np.testing.assert_array_equal(params["head"]["bias"], np.full(10, -6.9, np.float32))
  assert (params["stem"]["bias"] == 0).all()
  for kernel, fan_in in (
    (params["stem"]["kernel"], 32 * 32 * 3),
    (params["MixerBlock_7"]["channel_mixing"]["Dense_1"]["kernel"], 2048),
    (params["MixerBlock_0"]["token_mixing"]["Dense_0"]["kernel"], 49),
  ):
    assert abs(float(jnp.std(kernel)) * fan_in**0.5 - 1) < 0.03


@pytest.mark.parametrize(
  ("name", "fields", "message"),
  [
    ("mixr", {}, "Did you mean 'mixer'"),
    ("mixer", {"variant": "B/61"}, "Did you mean 'B/16'"),
    ("mixer", {"variant": "B/16", "stoch_dept": 0.1}, "Did you mean 'stoch_depth'"),
    ("mixer", {"patch": 4}, "lacks patch_size, .* It has no 'patch'. Did you mean 'patch_size'"),
    ("mixer", {"patch_size": 4}, "model mixer lacks num_blocks, .*variants S/32"),
    ("mixer", {"variant": "B/16", "dtype": "float16"}, "expected .*float32.*bfloat16"),
  ],
)
def test_bad_models_are_named(name, fields, message):
  with pytest.raises(InputError, match=message):
    models.build(name, num_classes=10, **fields)


@pytest.mark.parametrize(
  ("shape", "message"),
  [
    ((16, 16, 3), r"\(16, 16, 3\); expected a batch"),
    ((2, 3, 16, 16), "channels first"),
    ((2, 32, 32, 3), "another size .*mixer_jax.weights.resize"),
    ((2, 16, 16, 1), "number of channels"),
  ],
)
def test_images_that_are_not_the_models_are_explained(shape, message):
  model = tiny()
  variables = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
  with pytest.raises(InputError, match=message):
    jax.eval_shape(model.apply, variables, jnp.zeros(shape))


def test_training_without_its_random_stream_is_explained():
  model, image = tiny(stoch_depth=0.5), jnp.zeros((1, 16, 16, 3))
  with pytest.raises(InputError, match=r'rngs={"dropout"'):
    jax.eval_shape(lambda: model.apply(model.init(jax.random.key(0), image), image, train=True))


def test_patch_must_divide_the_image():
  with pytest.raises(InputError, match="patch_size 4 does not divide the image of 18x16"):
    tiny().init(jax.random.key(0), jnp.zeros((1, 18, 16, 3)))
