"""The average of the variables, batch statistics included, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from mixer_jax import losses, schema
from mixer_jax.parallel import sharding
from mixer_jax.training import augment, normalization, optimizer, state, step

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


def train(ema_decay):
  """Returns the states before the first and after each step."""
  model, tx = Tiny(), optax.sgd(0.3)
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
    multipliers=optimizer.make_multipliers(()),
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
