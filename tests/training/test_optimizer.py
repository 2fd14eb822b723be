"""Optimizers and schedules against five recorded updates of the authors' code."""

import re

import jax
import numpy as np
import pytest
from flax import traverse_util

from mixer_jax.errors import InputError
from mixer_jax.training import optimizer
from tests.conftest import GOLDEN, subtree

ADAM = dict(
  name="adam", learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-8, momentum=0.9,
  accumulator_dtype="float32", weight_decay=1e-4, weight_decay_scale="schedule", clip_norm=1.0,
  lr_multipliers=(),
)  # fmt: skip
MOMENTUM = {**ADAM, "name": "momentum", "learning_rate": 0.03, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def golden():
  return dict(np.load(GOLDEN / "optimizer.npz"))


def schedule(decay, *, total_steps, warmup_steps, learning_rate, unit="peak"):
  return optimizer.make_schedule(
    decay=decay, total_steps=total_steps, warmup_steps=warmup_steps, learning_rate=learning_rate,
    linear_end=1e-5, linear_end_unit=unit,
  )  # fmt: skip


BV_SCHEDULE = schedule("linear", total_steps=10, warmup_steps=3, learning_rate=0.001)
VT_SCHEDULE = schedule("cosine", total_steps=10, warmup_steps=3, learning_rate=0.03)


def run(golden, **settings):
  """Returns params and updates after each of the five recorded gradients, and the last state."""
  tx = optimizer.make_optimizer(**settings)
  params = subtree(golden, "init/")
  grads = subtree(golden, "grads/")
  opt_state = tx.init(params)

  @jax.jit
  def update(params, opt_state, grads):
    updates, opt_state = tx.update(grads, opt_state, params)
    return jax.tree.map(lambda p, u: p + u, params, updates), updates, opt_state

  history = []
  for i in range(5):
    params, updates, opt_state = update(params, opt_state, jax.tree.map(lambda g: g[i], grads))  # noqa: B023
    history.append((params, updates))
  params, updates = jax.tree.map(lambda *x: np.stack(x), *history)
  return params, updates, opt_state


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


def test_momentum_is_vision_transformers_in_float32(golden):
  params, updates, opt_state = run(golden, **MOMENTUM, schedule=VT_SCHEDULE)
  assert_close(params, subtree(golden, "vt_f32_params/"), 5e-7)
  assert_close(updates, subtree(golden, "vt_f32_updates/"), 5e-7)
  assert_close(opt_state[1].trace, subtree(golden, "vt_f32_trace/"), 5e-7)


def test_momentum_is_vision_transformers_in_bfloat16(golden):
  settings = {**MOMENTUM, "accumulator_dtype": "bfloat16"}
  params, updates, opt_state = run(golden, **settings, schedule=VT_SCHEDULE)
  assert_close(params, subtree(golden, "vt_bf16_params/"), 5e-7)
  assert_close(updates, subtree(golden, "vt_bf16_updates/"), 5e-7)
  assert_close(opt_state[1].trace, subtree(golden, "vt_bf16_trace/"), 5e-7)


def test_schedules_are_the_authors(golden):
  steps = np.arange(11)
  close = dict(rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(BV_SCHEDULE(steps), golden["bv_schedule"], **close)
  np.testing.assert_allclose(0.03 * VT_SCHEDULE(steps), golden["vt_schedule"], **close)
  long = schedule("linear", total_steps=92897, warmup_steps=10000, learning_rate=0.001)
  steps, multipliers = golden["bv_schedule_i1k300ep"].T
  np.testing.assert_allclose(long(steps), multipliers, **close)
  cifar = schedule("cosine", total_steps=10000, warmup_steps=500, learning_rate=0.03)
  steps, rates = golden["vt_schedule_cifar10_10k"].T
  np.testing.assert_allclose(0.03 * cifar(steps), rates, **close)


def test_linear_end_in_both_units():
  relative = schedule("linear", total_steps=10, warmup_steps=0, learning_rate=0.01)
  absolute = schedule(
    "linear", total_steps=10, warmup_steps=0, learning_rate=0.01, unit="learning_rate"
  )
  np.testing.assert_allclose(0.01 * relative(10), 1e-7, rtol=1e-5)
  np.testing.assert_allclose(0.01 * absolute(10), 1e-5, rtol=1e-5)


def test_warmup_must_be_shorter_than_the_run():
  with pytest.raises(InputError, match="warmup_steps is 10, but the run has 10 steps"):
    schedule("linear", total_steps=10, warmup_steps=10, learning_rate=0.01)


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
    ("haed/.*=1", "'haed/.*=1' decides for no parameter"),
  ],
)
def test_bad_multipliers_are_named(golden, rule, message):
  with pytest.raises(InputError, match=re.escape(f"lr_multipliers: {message}")):
    run(golden, **MOMENTUM | {"schedule": VT_SCHEDULE, "lr_multipliers": (rule,)})
