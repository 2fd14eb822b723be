"""The train step on 1 and 4 devices, whole and accumulated; masks; no retracing, no transfers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mixer_jax import losses
from mixer_jax.training import experiment, step
from tests.configurations import random_variables, small_config
from tests.marks import long
from tests.training.steps import MESHES, SGD, batches, build, flat, put, stepped


def train(exp, steps, masked=()):
  """Returns the losses and the final parameters by name."""
  state, history = exp.init_state(), []
  for batch in batches(steps, masked=masked):
    state, metrics = exp.train_step(state, put(exp, batch))
    history.append(float(metrics["loss"]))
  return np.array(history), flat(state.params)


@pytest.fixture(scope="module")
def reference():
  return train(build(1), 20)


@pytest.mark.parametrize(("num_devices", "fsdp", "accum"), MESHES)
def test_20_steps_are_the_same_on_devices_sharded_and_accumulated(
  reference, num_devices, fsdp, accum
):
  """With mixup, stochastic depth and dropout on."""
  history, params = train(build(num_devices, fsdp, grad_accum_steps=accum), 20)
  np.testing.assert_allclose(history, reference[0], rtol=1e-5)
  for name, value in params.items():
    # Its true gradient is zero, and Adam turns rounding into motion there.
    atol = 1e-4 if name.endswith("token_mixing/Dense_1/bias") else 1e-6
    np.testing.assert_allclose(value, reference[1][name], atol=atol, rtol=0, err_msg=name)


@pytest.mark.campaign
def test_any_mesh_will_do(reference):
  """Other axis names, two axes, explicit axes."""
  config = small_config(grad_accum_steps=2)
  config.augment.mixup_p = 0.5
  config.model.stoch_depth, config.model.dropout_rate = 0.5, 0.1
  devices = np.array(jax.devices()[:4])
  for mesh in (
    jax.sharding.Mesh(devices.reshape(2, 2), ("a", "b")),
    jax.make_mesh((4,), ("z",), (jax.sharding.AxisType.Explicit,), devices=devices),
  ):
    exp = experiment.build(config, mesh)
    _, metrics = exp.train_step(exp.init_state(), put(exp, next(batches(1))))
    np.testing.assert_allclose(metrics["loss"], reference[0][0], rtol=1e-5)


def test_masked_rows_count_for_nothing():
  """Without mixup, a batch with masked rows gives the loss and gradients of the batch without them."""
  config = small_config()
  config.model.stoch_depth = 0.0
  exp = experiment.build(config)
  batch = next(batches(1))
  keep = np.array([0, 1, 2, 3, 8, 9, 10, 11])
  masked = {**batch, "mask": np.isin(np.arange(16), keep).astype(np.float32)}
  state, metrics = exp.train_step(exp.init_state(), put(exp, masked))
  small = {k: v[keep] for k, v in batch.items()}
  _, other = exp.train_step(exp.init_state(), put(exp, small))
  for name in ("loss", "l2_grads"):
    np.testing.assert_allclose(metrics[name], other[name], rtol=1e-5)


RHO, RATE = 0.2, 0.3


@pytest.fixture(scope="module")
def ascended():
  """Parameters, the loss there, and those after a step of SAM, computed from two plain steps."""
  plain = build(1, keys=SGD, learning_rate=RATE)
  params = random_variables(plain)["params"]
  after, loss = stepped(plain, params, next(batches(1)))
  grads = jax.tree.map(lambda p, q: (p - q) / RATE, params, after)
  norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in jax.tree.leaves(grads)))
  above = jax.tree.map(lambda p, g: p + np.float32(RHO / norm) * g, params, grads)
  after_above, loss_above = stepped(plain, above, next(batches(1)))
  wanted = jax.tree.map(lambda p, a, b: p + b - a, params, above, after_above)
  assert loss_above > loss
  assert max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), wanted, after))) > 1e-3
  return params, loss, wanted


@pytest.mark.parametrize(
  ("num_devices", "fsdp", "accum"),
  [(1, 1, 1), long(1, 1, 4), (2, 1, 4), long(4, 1, 1), long(4, 2, 4)],
)
def test_sam_takes_the_gradients_up_the_slope(ascended, num_devices, fsdp, accum):
  """With the same batch, drop path, dropout and mixup in both passes; the loss is that of the first."""
  params, loss, wanted = ascended
  exp = build(
    num_devices, fsdp, SGD | {"optimizer.sam_rho": RHO}, learning_rate=RATE, grad_accum_steps=accum
  )
  after, found = stepped(exp, params, next(batches(1)))
  assert found == pytest.approx(loss, rel=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after, wanted)


def test_sam_leaves_parameters_alone_where_all_rows_are_masked(ascended):
  exp = build(1, keys=SGD | {"optimizer.sam_rho": RHO}, learning_rate=RATE)
  after, _ = stepped(exp, ascended[0], next(batches(1, masked=range(16))))
  jax.tree.map(np.testing.assert_array_equal, after, ascended[0])


def test_the_step_compiles_once_and_moves_only_the_batch():
  exp = build(4, fsdp=2, ema_decay=0.9)
  state = exp.init_state()
  on_devices = [put(exp, b) for b in batches(4)]
  state, _ = exp.train_step(state, on_devices[0])
  with jax.transfer_guard("disallow"):
    for batch in on_devices[1:]:
      state, metrics = exp.train_step(state, batch)
  assert exp.train_step._cache_size() == 1
  assert int(state.step) == 4 and np.isfinite(float(metrics["loss"]))


def test_the_state_is_donated():
  exp = build(1, ema_decay=0.9)
  state = exp.init_state()
  exp.train_step(state, put(exp, next(batches(1))))
  assert all(x.is_deleted() for x in jax.tree.leaves((state.params, state.ema)))


def test_ranks_of_ties_and_nan():
  """Of equal logits the lower class comes first; NaN is never right."""

  class Fixed(nn.Module):
    def __call__(self, image):
      del image
      return self.get_variable("params", "logits")

  evaluate = step.make_eval_step(
    model=Fixed(), loss=losses.softmax_xent, normalize=lambda image: image
  )
  logits = jnp.array(
    [[1.0, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0], [0] * 7, [0] * 7, [jnp.nan] * 7]
  )
  batch = {
    "image": jnp.zeros((5, 2, 2, 3), jnp.uint8), "label": jnp.array([0, 1, 4, 5, 0]), "mask": jnp.ones(5)
  }  # fmt: skip
  rows = evaluate({"params": {"logits": logits}}, batch)
  assert rows["top1"].tolist() == [1, 0, 0, 0, 0]
  assert rows["top5"].tolist() == [1, 1, 1, 0, 0]
