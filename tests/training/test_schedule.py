"""Schedules against those of the authors' code: the paper's, and the DeiT recipe's as each reference steps it."""

import json
import re

import jax
import numpy as np
import pytest

from mixer_jax import schema
from mixer_jax.errors import InputError
from mixer_jax.training.schedule import make_schedule
from tests.conftest import GOLDEN

RECIPES = json.loads((GOLDEN / "family" / "recipe.json").read_text())
# How the scheduler is stepped -> keys.
STEPPED = {"step(e) after epoch e": dict(lag=1), "step(e+1) after epoch e": dict(lag=0)}


def make(total_steps, learning_rate, steps_per_epoch=100.0, **keys):
  section = schema.Schedule(**{"warmup_steps": None, **keys})
  return jax.jit(
    make_schedule(
      **vars(section),
      total_steps=total_steps,
      learning_rate=learning_rate,
      steps_per_epoch=steps_per_epoch,
    )
  )


def recipe(name, steps_per_epoch, **keys):
  """Returns step -> learning rate of a reference."""
  r = RECIPES[name]
  run = r.get("total_epochs_run", r["epochs"])
  cosine = dict(decay="cosine", decay_from="start", cosine_end=r["lr_min"])
  warmup = dict(warmup_epochs=r["warmup_epochs"], warmup_start=r["warmup_lr"])
  cooldown = dict(cooldown_epochs=run - r["epochs"])
  steps = int(run * steps_per_epoch)
  schedule = make(steps, r["peak"], steps_per_epoch, **cosine, **warmup, **cooldown, **keys)
  return lambda step: r["peak"] * np.asarray(schedule(step), np.float64)


@pytest.mark.parametrize("steps_per_epoch", [1251.0, 3.0, 312.78])
@pytest.mark.parametrize(
  "name", ["cyclemlp", "spach_smlpnet", "hire_mlp_base", "hire_mlp_tiny", "convmlp"]
)
def test_every_epoch_has_the_references_rate(name, steps_per_epoch):
  """First and last step of each epoch; the recorded sum is over all epochs."""
  r = RECIPES[name]
  rate = recipe(name, steps_per_epoch, every="epoch", **STEPPED[r["step_call"]])
  bounds = steps_per_epoch * np.arange(r["total_epochs_run"] + 1)
  first, last = np.ceil(bounds[:-1] - 0.5), np.ceil(bounds[1:] - 0.5) - 1
  np.testing.assert_array_equal(rate(first), rate(last))
  epochs = np.array([*r["lr_used_in_epoch"]], int)
  wanted = [*r["lr_used_in_epoch"].values()]
  np.testing.assert_allclose(rate(first[epochs]), wanted, rtol=2**-24)  # float32, rounded once
  np.testing.assert_allclose(rate(first).sum(), r["lr_used_sum"], rtol=2**-24)


def test_every_update_has_ms_mlps_rate():
  """The scheduler's value at u is set after update u, and the first update has its start."""
  r = RECIPES["ms_mlp"]
  rate = recipe("ms_mlp", r["updates_per_epoch"], lag=1)
  values = {int(t): v for t, v in r["schedule"].items()}
  np.testing.assert_allclose(rate(np.array([0])), r["warmup_lr"], rtol=1e-6)
  np.testing.assert_allclose(rate(np.array([*values]) + 1), [*values.values()], rtol=5e-7)


def test_schedules_are_the_authors():
  golden = np.load(GOLDEN / "optimizer.npz")
  steps = np.arange(11)
  close = dict(rtol=1e-5, atol=1e-7)
  short = make(10, 0.001, warmup_steps=3)
  np.testing.assert_allclose(short(steps), golden["bv_schedule"], **close)
  short = make(10, 0.03, decay="cosine", warmup_steps=3)
  np.testing.assert_allclose(0.03 * short(steps), golden["vt_schedule"], **close)
  long = make(92897, 0.001, warmup_steps=10000)
  steps, multipliers = golden["bv_schedule_i1k300ep"].T
  np.testing.assert_allclose(long(steps), multipliers, **close)
  cifar = make(10000, 0.03, decay="cosine", warmup_steps=500)
  steps, rates = golden["vt_schedule_cifar10_10k"].T
  np.testing.assert_allclose(0.03 * cifar(steps), rates, **close)


def test_ends_in_both_units():
  ends = dict(
    peak=dict(linear_end=1e-5), rate=dict(linear_end=1e-5, linear_end_unit="learning_rate"),
    cosine=dict(decay="cosine", cosine_end=1e-5),
  )  # fmt: skip
  found = {name: 0.01 * float(make(10, 0.01, **keys)(10)) for name, keys in ends.items()}
  assert found == pytest.approx({"peak": 1e-7, "rate": 1e-5, "cosine": 1e-5}, rel=1e-5)


def test_warmup_before_or_in_place_of_the_decay():
  """Linear to 0 over 8 of 10 steps: from step 2 on, or from step 0."""
  keys = dict(linear_end=0.0, warmup_epochs=0.2, warmup_start=0.4, cooldown_epochs=0.2)
  before = make(10, 1.0, 10.0, **keys)
  inside = make(10, 1.0, 10.0, decay_from="start", **keys)
  steps = np.array([0, 1, 2, 5, 8, 9])
  np.testing.assert_allclose(before(steps), [0.4, 0.7, 1, 0.5, 0, 0], atol=1e-6)
  np.testing.assert_allclose(inside(steps), [0.4, 0.7, 0.75, 0.375, 0, 0], atol=1e-6)


@pytest.mark.parametrize("every", ["step", "epoch"])
@pytest.mark.parametrize(
  ("keys", "message"),
  [
    (dict(warmup_steps=10), "warmup_steps is 10"),
    (dict(warmup_epochs=2.0), "warmup_epochs is 2.0"),
    (dict(warmup_steps=8, cooldown_epochs=1.0), "cooldown_epochs is 1.0"),
    (dict(warmup_steps=2, warmup_epochs=1.0), "warmup_steps is 2 and warmup_epochs is 1.0"),
    (dict(warmup_start=0.02), "warmup_start is 0.02"),
    (dict(cosine_end=0.02), "cosine_end is 0.02"),
  ],
)
def test_impossible_schedules_are_named(keys, message, every):
  with pytest.raises(InputError, match=re.escape(message)):
    make(10, 0.01, 5.0, every=every, **keys)
