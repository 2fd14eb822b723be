"""The average of the variables, batch statistics included, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from mixer_jax import losses, schema
from mixer_jax.parallel import sharding
from mixer_jax.training import augment, normalization, state, step
from tests.conftest import GOLDEN, subtree

STEPS, BATCH, DECAY, MOMENTUM = 4, 6, 0.7, 0.5


class Tiny(nn.Module):
  """BatchNorm and a head."""

  @nn.compact
  def __call__(self, image, *, train=False, index=None, mask=None):
    del index, mask
    x = nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM)(image)
    return nn.Dense(3)(x.reshape(len(x), -1))


def batches():
  rng = np.random.default_rng(0)
  for _ in range(STEPS):
    image = rng.integers(0, 256, (BATCH, 2, 2, 3), np.uint8)
    label = rng.integers(0, 3, BATCH).astype(np.int32)
    yield {"image": image, "label": label, "mask": np.ones(BATCH, np.float32)}


def train(ema_decay, tx=optax.sgd(0.3)):  # noqa: B008
  """Returns the states before the first and after each step."""
  model = Tiny()
  mesh = sharding.make_mesh(data=1)
  states = [
    state.first_state(state.init_variables(model, (2, 2, 3), 0), tx, seed=0, ema_decay=ema_decay)
  ]
  train_step = step.make_train_step(
    model=model,
    tx=tx,
    schedule=lambda _: jnp.ones(()),
    learning_rate=0.3,
    loss=losses.softmax_xent,
    augment=augment.make_augment(
      normalize=normalization.unit, num_classes=3, **vars(schema.Augment())
    ),
    grad_accum_steps=1,
    ema_decay=ema_decay,
    ema_warmup=False,
    multipliers=lambda params: jax.tree.map(lambda _: 1.0, params),
    param_shardings=sharding.make_shardings(mesh, states[0].variables()).variables["params"],
  )
  for batch in batches():
    states.append(jax.jit(train_step)(states[-1], batch)[0])
  return states


@pytest.fixture(scope="module")
def averaged():
  return train(DECAY)


def assert_close(got, wanted):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), got, wanted)


def test_batch_statistics_are_those_of_the_batches(averaged):
  mean, var = np.zeros(3), np.ones(3)
  for batch in batches():
    x = batch["image"] / 255 * 2 - 1
    mean = MOMENTUM * mean + (1 - MOMENTUM) * x.mean((0, 1, 2))
    var = MOMENTUM * var + (1 - MOMENTUM) * x.var((0, 1, 2))
  assert_close(averaged[-1].batch_stats, {"BatchNorm_0": {"mean": mean, "var": var}})


def test_sam_takes_the_batch_statistics_of_the_first_pass(averaged):
  sam = optax.contrib.sam(optax.sgd(0.3), optax.sgd(0.5), opaque_mode=True)
  after = train(0.0, sam)
  jax.tree.map(np.testing.assert_array_equal, after[1].batch_stats, averaged[1].batch_stats)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after[1].params, averaged[1].params)
  assert max(jax.tree.leaves(moved)) > 1e-3


def test_the_average_is_that_of_all_variables_after_each_step(averaged):
  """From those at the start; it is what is evaluated."""
  wanted = averaged[0].variables()
  assert sorted(wanted) == ["batch_stats", "params"]
  for after in averaged[1:]:
    wanted = jax.tree.map(
      lambda a, x: DECAY * np.float64(a) + (1 - DECAY) * np.float64(x), wanted, after.variables()
    )
  assert_close(averaged[-1].eval_variables(), wanted)
  moved = jax.tree.map(
    lambda a, x: np.abs(a - x).max(), averaged[-1].eval_variables(), averaged[-1].variables()
  )
  assert min(jax.tree.leaves(moved)) > 1e-3


def test_an_average_changes_nothing_else(averaged):
  plain = train(0.0)[-1]
  jax.tree.map(np.testing.assert_array_equal, plain, averaged[-1].replace(ema={}))
  assert plain.eval_variables() == plain.variables()


def test_the_average_is_float32_and_given_in_the_parameters_type():
  """Steps of 1e-4 would be lost in bfloat16."""
  before = state.first_state(
    {"params": {"kernel": jnp.full((2, 2), 3.0, jnp.bfloat16)}}, optax.sgd(0.1), seed=0, ema_decay=0.9999
  )  # fmt: skip
  after = before.replace(params={"kernel": jnp.full((2, 2), 4.0, jnp.bfloat16)}).with_average(
    0.9999
  )
  np.testing.assert_allclose(after.ema["params"]["kernel"], 3.0001, rtol=1e-6)
  assert after.ema["params"]["kernel"].dtype == jnp.float32
  assert after.eval_variables()["params"]["kernel"].dtype == jnp.bfloat16


@pytest.mark.parametrize("decay", [0.99996, 0.9])
def test_the_average_is_that_of_the_reference_recipe(decay):
  """BatchNorm's running statistics are averaged too."""
  golden = {
    k: v for k, v in np.load(GOLDEN / "family" / "recipe.npz").items() if "batches" not in k
  }

  def variables(prefix):
    found = subtree(golden, prefix)
    statistics = {k: found.pop(k) for k in [*found] if "running" in k}
    return {"params": found, "batch_stats": statistics}

  after = state.first_state(variables("ema/init/"), optax.identity(), seed=0, ema_decay=decay)
  for step_ in range(3):
    after = after.replace(**variables(f"ema/model/{step_}/")).with_average(decay)
    wanted = variables(f"ema/decay_{decay}/{step_}/")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-7), after.ema, wanted)


def test_the_averages_decay_warms_up_as_timms():
  """Of 1 and then 0 the average is the decay itself."""
  timms = np.load(GOLDEN / "timm_training.npz")
  before = state.first_state({"params": jnp.ones(())}, optax.identity(), seed=0, ema_decay=0.99)
  for updates, decay in zip(timms["ema/updates"], timms["ema/decays"], strict=True):
    after = before.replace(step=jnp.int32(updates), params=jnp.zeros(()))
    average = after.with_average(0.99, warmup=True).ema["params"]
    np.testing.assert_allclose(average, decay, atol=1e-7)
