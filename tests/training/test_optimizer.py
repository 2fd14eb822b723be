"""Optimizers against recorded updates: five of the authors' code, three of torch's AdamW and of timm's LAMB."""

import functools
import re

import jax
import numpy as np
import optax
import pytest
from flax import traverse_util

from mixer_jax import models, schema
from mixer_jax.errors import InputError
from mixer_jax.training import optimizer
from mixer_jax.training.schedule import make_schedule
from mixer_jax.weights import torch_layout
from tests import families
from tests.conftest import GOLDEN, subtree


def section(**keys):
  """Returns config.optimizer and what comes with it, with these changes."""
  return dict(vars(schema.Optimizer()), layers=dict.fromkeys, **keys)


ADAM = section(learning_rate=0.001, weight_decay=1e-4, weight_decay_scale="schedule")
MOMENTUM = {**ADAM, "name": "momentum", "learning_rate": 0.03, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def golden():
  return dict(np.load(GOLDEN / "optimizer.npz"))


def schedule(learning_rate, **keys):
  keys = vars(schema.Schedule(warmup_steps=3, **keys))
  return make_schedule(**keys, total_steps=10, steps_per_epoch=5, learning_rate=learning_rate)


BV_SCHEDULE = schedule(0.001)
VT_SCHEDULE = schedule(0.03, decay="cosine")


def updated(params, grads, **settings):
  """Returns params and updates after each of the gradients, and the last state."""
  tx = optimizer.make_optimizer(**settings)
  state, history = tx.init(params), []
  for grad in grads:
    updates, state = jax.jit(tx.update)(grad, state, params)
    params = optax.apply_updates(params, updates)
    history.append((params, updates))
  params, updates = jax.tree.map(lambda *x: np.stack(x), *history)
  return params, updates, state


def run(golden, **settings):
  """Returns what `updated` does of the five gradients of the authors' code."""
  grads = subtree(golden, "grads/")
  each = [jax.tree.map(lambda g, i=i: g[i], grads) for i in range(5)]
  return updated(subtree(golden, "init/"), each, **settings)


def assert_close(tree, wanted, atol):
  have, want = (traverse_util.flatten_dict(t, sep="/") for t in (tree, wanted))
  assert have.keys() == want.keys()
  for name in want:
    np.testing.assert_allclose(
      np.asarray(have[name], np.float32), want[name], atol=atol, rtol=0, err_msg=name
    )


def assert_is_big_visions(golden, params, updates, opt_state):
  assert_close(params, subtree(golden, "bv_params/"), 5e-7)
  assert_close(updates, subtree(golden, "bv_updates/"), 5e-7)
  assert_close(opt_state[1].mu, subtree(golden, "bv_adam_mu/"), 5e-7)
  assert_close(opt_state[1].nu, subtree(golden, "bv_adam_nu/"), 5e-7)


def test_adam_is_big_visions(golden):
  result = run(golden, **ADAM, schedule=BV_SCHEDULE)
  assert_is_big_visions(golden, *result)
  first_update = jax.tree.leaves(jax.tree.map(lambda u: np.abs(u[0]).max(), result[1]))
  assert max(first_update) == 0, "with warm-up the first update must not move the parameters"


def test_the_papers_weight_decay_is_big_visions_in_other_units(golden):
  papers = {**ADAM, "weight_decay": 0.1, "weight_decay_scale": "learning_rate"}
  assert_is_big_visions(golden, *run(golden, **papers, schedule=BV_SCHEDULE))


@pytest.mark.parametrize(("accumulator_dtype", "name"), [(None, "f32"), ("bfloat16", "bf16")])
def test_momentum_is_vision_transformers(golden, accumulator_dtype, name):
  settings = {**MOMENTUM, "accumulator_dtype": accumulator_dtype or MOMENTUM["accumulator_dtype"]}
  params, updates, opt_state = run(golden, **settings, schedule=VT_SCHEDULE)
  assert_close(params, subtree(golden, f"vt_{name}_params/"), 5e-7)
  assert_close(updates, subtree(golden, f"vt_{name}_updates/"), 5e-7)
  assert_close(opt_state[1].trace, subtree(golden, f"vt_{name}_trace/"), 5e-7)


RULES = ("head/.*=0.5", r".*LayerNorm_\d+/.*=0", "Dense_0/bias=3")


def test_multipliers_scale_updates_of_what_they_match(golden):
  """Without clipping, an update is the factor times the undisturbed one; 0 leaves no trace."""
  settings = dict(MOMENTUM, weight_decay=0.01, clip_norm=None, schedule=VT_SCHEDULE)
  _, plain, _ = run(golden, **settings)
  _, scaled, state = run(golden, **{**settings, "lr_multipliers": RULES})
  factors = {
    "Dense_0/kernel": 1.0, "Dense_0/bias": 3.0, "LayerNorm_0/scale": 0.0, "head/kernel": 0.5, "head/bias": 0.5
  }  # fmt: skip
  plain, scaled = (traverse_util.flatten_dict(x, sep="/") for x in (plain, scaled))
  for name, factor in factors.items():
    wanted = plain[name][1] * factor  # of the second update: later ones decay moved kernels
    np.testing.assert_allclose(scaled[name][1], wanted, rtol=1e-6, atol=1e-9, err_msg=name)
  moments = [jax.tree_util.keystr(k) for k, _ in jax.tree_util.tree_leaves_with_path(state)]
  assert not any("LayerNorm" in name for name in moments)
  assert any("head" in name for name in moments)


def test_frozen_gradients_do_not_count_in_the_global_norm(golden):
  """The gradients of all but the bias of Dense_0 are frozen: its update is clipped by its own norm."""
  only = ("Dense_0/bias=1", ".*=0")
  _, updates, _ = run(golden, **MOMENTUM | {"schedule": VT_SCHEDULE, "lr_multipliers": only})
  grads = golden["grads/Dense_0/bias"]
  clipped = [g * min(1.0, 1.0 / np.linalg.norm(g)) for g in grads]
  trace = 0.9 * clipped[0] + clipped[1]
  np.testing.assert_allclose(
    updates["Dense_0"]["bias"][1], -float(VT_SCHEDULE(1)) * 0.03 * trace, rtol=1e-5
  )
  assert (updates["head"]["kernel"] == 0).all()


@pytest.mark.parametrize(
  ("rule", "message"),
  [
    ("head/.*", "'head/.*' is not"),
    ("head/(=1", "'head/(=1' is not"),
    ("head/.*=-1", "'head/.*=-1' is not"),
    ("=1", "'=1' is not"),
    ("(.|a)*b=1", "'(.|a)*b=1' is not"),
    ("((a+)/)+b=1", "'((a+)/)+b=1' is not"),
    (".*a.*a.*a.*a.*b=1", "'.*a.*a.*a.*a.*b=1' is not"),
    (f"{'a?' * 30}{'a' * 30}=1", f"'{'a?' * 30}"),
    ("haed/.*=1", "'haed/.*=1' decides for no parameter"),
  ],
)
def test_bad_multipliers_are_named(golden, rule, message):
  with pytest.raises(InputError, match=re.escape(f"lr_multipliers: {message}")):
    run(golden, **MOMENTUM | {"schedule": VT_SCHEDULE, "lr_multipliers": (rule,)})


RECIPE = section(weight_decay=0.05, weight_decay_on="multidimensional")


def assert_is_torchs(golden, init, grads, after, tolerance, **settings):
  """Compares the parameters after each of three recorded gradients; a parameter's name ends its array's."""
  nested = lambda prefix: subtree({k.replace(".", "/"): v for k, v in golden.items()}, prefix)  # noqa: E731
  params, *_ = updated(nested(init), [nested(f"{grads}{i}/") for i in range(3)], **settings)
  for step in range(3):
    have = jax.tree.map(lambda x, step=step: x[step], params)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, **tolerance), have, nested(f"{after}{step}/")
    )


@pytest.mark.parametrize(("name", "clip_norm"), [("noclip", None), ("clip5", 5.0)])
def test_adamw_is_torchs(name, clip_norm):
  """gamma_1 of the shape (1, 1, c) decays, and names in "bias" do not."""
  golden = dict(np.load(GOLDEN / "family" / "recipe.npz"))
  rates = jax.numpy.array([0.001, 0.0004, 0.0025])  # recipe.json: adamw_noclip/lrs
  settings = RECIPE | dict(
    clip_norm=clip_norm, learning_rate=1.0, schedule=lambda step: rates[step]
  )
  close = dict(atol=5e-7, rtol=0)
  assert_is_torchs(
    golden, "adamw/init/", "adamw/grads/", f"adamw/{name}/params/", close, **settings
  )


def test_biases_of_several_dimensions_do_not_decay():
  params = {name: np.ones((2, 2)) for name in ("bias", "kernel")}
  assert optimizer.decaying("multidimensional")(params) == {"bias": False, "kernel": True}


@pytest.fixture(scope="module")
def timms():
  return dict(np.load(GOLDEN / "timm_training.npz"))


def test_lamb_is_timms(timms):
  """The first gradients are clipped; biases have no trust ratio, parameters or updates of zeros have 1."""
  settings = RECIPE | dict(name="lamb", clip_norm=1.0, eps=1e-6, weight_decay=0.2)
  settings |= dict(learning_rate=0.02, schedule=lambda _: 1.0)
  close = dict(rtol=1e-6, atol=2e-7)
  assert_is_torchs(timms, "lamb/init/", "lamb/grads/", "lamb/params/", close, **settings)


def test_values_are_clipped():
  settings = section(clip_value=0.5, clip_norm=None, name="momentum", learning_rate=1.0)
  tx = optimizer.make_optimizer(**settings, schedule=lambda _: 1.0)
  grads = {"kernel": jax.numpy.array([-2.0, 0.25, 0.75])}
  updates, _ = tx.update(grads, tx.init(grads), grads)
  np.testing.assert_array_equal(updates["kernel"], [0.5, -0.25, -0.5])


FIELDS = {
  "mixer": dict(patch_size=8, hidden_dim=8, tokens_mlp_dim=4, channels_mlp_dim=32, num_blocks=3),
  "res_mlp": dict(patch_size=8, hidden_dim=8, mlp_dim=32, num_blocks=3),
}


@pytest.mark.parametrize("family", FIELDS)
def test_layers_have_timms_factors(family, timms):
  """The head's 1, the last block's and the final norm's 0.75, the stem's 0.75⁴."""
  _, params = families.random_params(family, 16, 16, num_classes=5, **FIELDS[family])
  layers = functools.partial(models.layer_numbers, family)
  factors = optimizer.make_multipliers((), layer_decay=0.75, layers=layers)(params)
  filled = jax.tree.map(lambda p, f: np.full(p.shape, f), params, factors)
  for name, value in torch_layout.to_torch({"params": filled}, "timm").items():
    np.testing.assert_allclose(value, timms[f"layer_decay/{family}/{name}"], err_msg=name)


def test_layers_of_stages_are_in_the_order_of_the_computation():
  """What narrows a stage's input belongs to its first block; what precedes the head, to the last."""
  names = {
    "conv_mlp": [
      ["stem/Conv_0/kernel"], ["ConvBlock_0/Conv_0/kernel"],
      ["downsample_0/kernel", "ConvMlpBlock_0_0/Conv_0/kernel"], ["ConvMlpBlock_0_1/Conv_0/kernel"],
      ["downsample_1/bias", "ConvMlpBlock_1_0/Conv_0/kernel"],
      *([f"ConvMlpBlock_1_{i}/Conv_0/kernel"] for i in range(1, 10)),
      ["ConvMlpBlock_1_10/Conv_0/kernel", "pre_head_layer_norm/scale"], ["head/bias"],
    ],
    "vit": [
      ["cls", "embedding/kernel", "Transformer/posembed_input/pos_embedding"],
      ["Transformer/encoderblock_0/LayerNorm_0/scale"],
      ["Transformer/encoderblock_1/LayerNorm_0/scale", "Transformer/encoder_norm/bias"],
      ["pre_logits/bias", "head/kernel"],
    ],
    "resnet": [
      ["resnet/root_block/standardized_conv2d/kernel"], ["resnet/block1/unit01/a/kernel"],
      ["resnet/block1/unit02/a/kernel"], ["resnet/block2/unit01/a/kernel", "resnet/group_norm/gamma"],
      ["resnet/head/conv2d/kernel"],
    ],
  }  # fmt: skip
  for family, layers in names.items():
    wanted = {name: i for i, members in enumerate(layers) for name in members}
    assert models.layer_numbers(family, sorted(wanted)) == wanted


def test_layer_decay_multiplies_with_multipliers(golden):
  layers = lambda names: {name: int(name.startswith("head")) for name in names}  # noqa: E731
  settings = MOMENTUM | dict(clip_norm=None, schedule=VT_SCHEDULE)
  _, plain, _ = run(golden, **settings)
  settings |= dict(layer_decay=0.5, layers=layers, lr_multipliers=(".*/bias=3", "head/kernel=0"))
  _, scaled, _ = run(golden, **settings)
  factors = {"Dense_0": {"kernel": 0.5, "bias": 1.5}, "LayerNorm_0": {"scale": 0.5}, "head": {"kernel": 0.0, "bias": 3.0}}  # fmt: skip
  jax.tree.map(
    lambda s, p, f: np.testing.assert_allclose(s, f * p, rtol=1e-6, atol=1e-9),
    *(scaled, plain, factors),
  )


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (dict(clip_value=0.1), "clip_norm is 1.0 and clip_value is 0.1"),
    (dict(name="lamb"), "weight_decay_scale is 'schedule'"),
  ],
)
def test_settings_that_exclude_each_other_are_named(settings, message):
  with pytest.raises(InputError, match=message):
    optimizer.make_optimizer(**ADAM | settings, schedule=BV_SCHEDULE)
