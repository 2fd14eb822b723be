"""The token mixing of appendix A against loops in NumPy; without it, the Mixer is the paper's listing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import published
from mixer_jax import models
from mixer_jax.errors import InputError
from mixer_jax.models import token_mixing
from mixer_jax.models.mixer import MixerBlock
from tests import families
from tests.formulas import float64, gelu, layer_norm

TINY = dict(
  num_classes=5, patch_size=4, num_blocks=2, hidden_dim=16, tokens_mlp_dim=12, channels_mlp_dim=24
)
TOKENS, CHANNELS, GROUPS = 6, 16, 4


def test_mixer_equals_the_papers_listing_to_the_bit():
  """Without the options of appendix A, or with a pyramid that keeps all tokens."""
  image = families.image(2, 8, 12, 3)
  _, params = families.random_params("mixer", 8, 12, **TINY)

  def outcome(model):
    init = jax.jit(model.init)(jax.random.key(7), image)["params"]
    return init, jax.jit(model.apply)({"params": params}, image)

  plain = outcome(published.MlpMixer(**TINY))
  assert np.ptp(plain[1]) > 0.1
  for undone in ({}, {"pyramid": (6, 6)}):
    found = outcome(models.build("mixer", **TINY, **undone))
    jax.tree.map(np.testing.assert_array_equal, found, plain)


def mlp(x, p):
  """One vector."""
  hidden = gelu(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
  return hidden @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def untied(x, p):
  """Column by column, each with the c-th MLP."""
  columns = [mlp(x[:, c], jax.tree.map(lambda w, c=c: w[c], p["mlp"])) for c in range(CHANNELS)]
  return np.stack(columns, axis=1)


def grouped(x, p):
  """Neighbouring columns, one below the other, through the one MLP."""
  out = []
  for first in range(0, CHANNELS, GROUPS):
    joined = np.concatenate([x[:, first + g] for g in range(GROUPS)])
    out += np.split(mlp(joined, p["mlp"]), GROUPS)
  return np.stack(out, axis=1)


def views(x, p):
  """Each view a table (s, c/G) of its own; their m-th columns are joined."""
  seen = [x @ p["views"]["kernel"][:, g::GROUPS] for g in range(GROUPS)]
  out = []
  for m in range(CHANNELS // GROUPS):
    out += np.split(mlp(np.concatenate([view[:, m] for view in seen]), p["mlp"]), GROUPS)
  return np.stack(out, axis=1)


FORMULAS = {"untied": untied, "grouped": grouped, "views": views}


@pytest.mark.parametrize("num_tokens", [None, 3], ids=["level", "pyramid"])
@pytest.mark.parametrize("name", FORMULAS)
def test_token_mixing_is_that_of_the_appendix(name, num_tokens):
  mix_tokens = functools.partial(
    token_mixing.TOKEN_MIXING[name],
    12,
    channel_groups=1 if name == "untied" else GROUPS,
    num_tokens=num_tokens,
  )
  block = MixerBlock(mix_tokens, 24, gelu="tanh")
  x = families.image(2, TOKENS, CHANNELS)
  rest = jnp.arange(2), None, None, False
  shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, *rest))["params"]
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape, np.float32), shapes)
  got = jax.jit(lambda params: block.apply({"params": params}, x, *rest))(params)
  p = float64(params)
  for one, out in zip(np.asarray(x, np.float64), got, strict=True):
    mixed = FORMULAS[name](layer_norm(one, p["LayerNorm_0"]), p["token_mixing"])
    one = one + mixed if num_tokens is None else mixed
    y = np.stack([mlp(token, p["channel_mixing"]) for token in layer_norm(one, p["LayerNorm_1"])])
    np.testing.assert_allclose(out, one + y, atol=5e-6, rtol=0)


def test_each_ablation_has_the_parameters_that_the_appendix_says():
  """C MLPs instead of one; G·S → G·S; G linear maps more."""

  def count(**fields):
    model = models.build("mixer", **{**TINY, "num_blocks": 1}, **fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 12, 3)))["params"]
    return sum(x.size for x in jax.tree.leaves(shapes["MixerBlock_0"]["token_mixing"]))

  def mlp_count(tokens, out):
    return tokens * 12 + 12 + 12 * out + out

  assert count() == mlp_count(6, 6)
  assert count(token_mixing="untied") == 16 * mlp_count(6, 6)
  assert count(token_mixing="grouped", channel_groups=4) == mlp_count(24, 24)
  assert count(token_mixing="views", channel_groups=4) == mlp_count(24, 24) + 4 * 16 * 4
  assert count(pyramid=(3,)) == mlp_count(6, 3)


def test_a_pyramid_narrows_and_its_narrowing_is_never_dropped():
  fields = {**TINY, "pyramid": (6, 2), "stoch_depth": 1.0}
  model, params = families.random_params("mixer", 8, 12, **fields)
  image = families.image(2, 8, 12, 3)
  rngs = {"dropout": jax.random.key(0)}
  _, sown = model.apply({"params": params}, image, train=True, rngs=rngs, mutable=["intermediates"])
  first, last = (sown["intermediates"][f"block_{i}"][0] for i in (0, 1))
  assert (first.shape, last.shape) == ((2, 6, 16), (2, 2, 16))
  p = float64(params["MixerBlock_1"])
  for one, out in zip(np.asarray(first, np.float64), last, strict=True):
    columns = layer_norm(one, p["LayerNorm_0"]).T
    mixed = np.stack([mlp(column, p["token_mixing"]) for column in columns], axis=1)
    np.testing.assert_allclose(out, mixed, atol=5e-6, rtol=0)  # without channel mixing


def test_draws_belong_to_the_image():
  fields = {
    **TINY, "token_mixing": "untied", "pyramid": (6, 3), "stoch_depth": 0.5, "dropout_rate": 0.2,
  }  # fmt: skip
  model, params = families.random_params("mixer", 8, 12, **fields)
  image = families.image(4, 8, 12, 3)

  @jax.jit
  def apply(image, rows):
    rngs = {"dropout": jax.random.key(5)}
    return model.apply({"params": params}, image, train=True, index=rows, rngs=rngs)

  rows = jnp.array([3, 1, 0, 2])
  whole = apply(image, jnp.arange(4))
  np.testing.assert_allclose(apply(image[rows], rows), whole[rows], atol=1e-5)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(token_mixing="grouped"), "channel_groups 1 with token_mixing 'grouped'"),
    (dict(channel_groups=4), "channel_groups 4 with token_mixing 'mlp'"),
    (dict(token_mixing="views", channel_groups=3), "a divisor of hidden_dim 16"),
    (dict(pyramid=(3,)), r"pyramid \(3,\) must say .* each of the 2 blocks"),
    (dict(pyramid=(3, 0)), r"pyramid \(3, 0\)"),
    (dict(token_mixing="tied"), "expected one of 'mlp', 'untied', 'grouped', 'views'"),
  ],
)
def test_options_that_do_not_go_together_are_named(fields, message):
  with pytest.raises(InputError, match=message):
    models.build("mixer", **TINY, **fields).init(jax.random.key(0), jnp.zeros((1, 8, 12, 3)))
