"""The train step on 1 and 4 devices, whole and accumulated; mixup; masks; no retracing, no transfers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from mixer_jax import losses
from mixer_jax.parallel import sharding
from mixer_jax.training import experiment, step
from tests.configurations import small_config
from tests.marks import long

# Every parameter is cut but for the head's ten biases and the 4 × 4 × 3 pixels of the stem's kernel.
SHARDED = ("head/bias=replicate", "stem/kernel=3", ".*=0")


def build(num_devices, fsdp=1, **changes):
  config = small_config(mixup_p=0.5, **changes)
  config.model.stoch_depth = 0.5
  config.model.dropout_rate = 0.1
  shard(config, num_devices, fsdp)
  return experiment.build(config, experiment.make_mesh(config))


def shard(config, num_devices, fsdp):
  config.mesh.data, config.mesh.fsdp = num_devices // fsdp, fsdp
  config.mesh.rules = SHARDED if fsdp > 1 else ()


def batches(count, size=16, masked=()):
  rng = np.random.default_rng(0)
  for _ in range(count):
    mask = np.ones(size, np.float32)
    mask[list(masked)] = 0
    yield {
      "image": rng.integers(0, 256, (size, 16, 16, 3), np.uint8),
      "label": rng.integers(0, 10, size).astype(np.int32),
      "mask": mask,
    }


def put(exp, batch):
  size = len(batch["label"])
  return sharding.put_batch(batch, exp.shardings.batch, np.arange(size), size)


def train(exp, steps, masked=()):
  """Returns the losses and the final parameters by name."""
  state, history = exp.init_state(), []
  for batch in batches(steps, masked=masked):
    state, metrics = exp.train_step(state, put(exp, batch))
    history.append(float(metrics["loss"]))
  return np.array(history), flat(state.params)


def flat(tree):
  return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(tree, sep="/").items()}


@pytest.fixture(scope="module")
def reference():
  return train(build(1), 20)


# Devices, fsdp, accumulation.
MESHES = [long(1, 1, 4), long(4, 1, 1), long(4, 1, 4), long(4, 4, 1), (4, 2, 2)]


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


@functools.cache
def gradients(num_devices, fsdp, accum, masked):
  """Returns the gradients of a step from a state with a non-zero head, by momentum SGD's trace."""
  config = small_config(mixup_p=0.5, grad_accum_steps=accum)
  config.model.stoch_depth = 0.5
  shard(config, num_devices, fsdp)
  config.optimizer.name, config.optimizer.clip_norm = "momentum", None
  config.optimizer.weight_decay = 0.0
  exp = experiment.build(config, experiment.make_mesh(config))
  state = exp.init_state()
  head = jax.random.normal(jax.random.key(1), state.params["head"]["kernel"].shape)
  params = {**state.params, "head": {**state.params["head"], "kernel": head}}
  state = jax.device_put(state.replace(params=params), exp.shardings.state)
  state, _ = exp.train_step(state, put(exp, next(batches(1, masked=masked))))
  return flat(state.opt_state[1].trace)


@pytest.mark.parametrize("masked", [long(()), (0, 5, 15)])
@pytest.mark.parametrize(("num_devices", "fsdp", "accum"), MESHES)
def test_gradients_of_one_step_are_the_same(num_devices, fsdp, accum, masked):
  wanted, got = gradients(1, 1, 1, masked), gradients(num_devices, fsdp, accum, masked)
  largest = max(np.abs(v).max() for v in wanted.values())
  for name, value in wanted.items():
    # The true gradient of this bias is zero, so its rounding is measured against the others.
    zero = name.endswith("token_mixing/Dense_1/bias")
    scale = largest if zero else np.abs(value).max()
    np.testing.assert_allclose(got[name], value, atol=1e-5 * scale, rtol=0, err_msg=name)


def test_accumulation_reduces_over_devices_once_and_never_gathers_the_batch():
  exp = build(4, grad_accum_steps=4)
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(next(batches(1))))
  text = exp.train_step.lower(exp.abstract_state, batch).compile().as_text()
  body = text[: text.index("ENTRY")]
  loops = [
    c for c in body.split("\n\n") if "while" in c.split("\n")[0] or "region" in c.split("\n")[0]
  ]
  assert loops, "the accumulation must be a loop for this test to see into it"
  collectives = ("all-reduce(", "all-gather(", "all-to-all(", "collective-permute(")
  assert not [c for c in collectives if any(c in loop for loop in loops)]
  assert "all-gather(" not in text and "all-to-all(" not in text


@pytest.mark.campaign
def test_any_mesh_will_do(reference):
  """Other axis names, two axes, explicit axes."""
  config = small_config(mixup_p=0.5, grad_accum_steps=2)
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
  config.mesh.data = 1
  config.model.stoch_depth = 0.0
  exp = experiment.build(config, experiment.make_mesh(config))
  batch = next(batches(1))
  keep = np.array([0, 1, 2, 3, 8, 9, 10, 11])
  masked = {**batch, "mask": np.isin(np.arange(16), keep).astype(np.float32)}
  state, metrics = exp.train_step(exp.init_state(), put(exp, masked))
  small = {k: v[keep] for k, v in batch.items()}
  _, other = exp.train_step(exp.init_state(), put(exp, small))
  for name in ("loss", "l2_grads"):
    np.testing.assert_allclose(metrics[name], other[name], rtol=1e-5)


def test_mixup_mixes_neighbours_of_the_whole_batch():
  rng = np.random.default_rng(0)
  pixels, label = rng.integers(0, 256, size=(6, 2, 2, 3)), np.eye(6)
  image = pixels / 255 * 2 - 1
  shares = []
  for seed in range(200):
    mixed, labels = step.mixup(jax.random.key(seed), jnp.uint8(pixels), jnp.float32(label), 0.5)
    a = float(labels[0, 0])
    np.testing.assert_allclose(labels, a * label + (1 - a) * np.roll(label, 1, axis=0), atol=1e-6)
    np.testing.assert_allclose(mixed, a * image + (1 - a) * np.roll(image, 1, axis=0), atol=1e-5)
    shares.append(a)
  assert min(shares) >= 0.5
  # max(a, 1 − a) of Beta(½, ½), the arcsine law, has mean ½ + 1/π.
  assert abs(np.mean(shares) - (0.5 + 1 / np.pi)) < 0.03


def test_the_step_compiles_once_and_moves_only_the_batch():
  exp = build(4)
  state = exp.init_state()
  on_devices = [put(exp, b) for b in batches(4)]
  state, _ = exp.train_step(state, on_devices[0])
  with jax.transfer_guard("disallow"):
    for batch in on_devices[1:]:
      state, metrics = exp.train_step(state, batch)
  assert exp.train_step._cache_size() == 1
  assert int(state.step) == 4 and np.isfinite(float(metrics["loss"]))


def test_the_state_is_donated():
  exp = build(1)
  state = exp.init_state()
  exp.train_step(state, put(exp, next(batches(1))))
  assert all(x.is_deleted() for x in jax.tree.leaves(state.params))


def test_ranks_of_ties_and_nan():
  """Of equal logits the lower class comes first; NaN is never right."""

  class Fixed(nn.Module):
    def __call__(self, image):
      del image
      return self.get_variable("params", "logits")

  evaluate = step.make_eval_step(model=Fixed(), loss=losses.softmax_xent)
  logits = jnp.array(
    [[1.0, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0], [0] * 7, [0] * 7, [jnp.nan] * 7]
  )
  batch = {
    "image": jnp.zeros((5, 2, 2, 3), jnp.uint8), "label": jnp.array([0, 1, 4, 5, 0]), "mask": jnp.ones(5)
  }  # fmt: skip
  rows = evaluate({"logits": logits}, {}, batch)
  assert rows["top1"].tolist() == [1, 0, 0, 0, 0]
  assert rows["top5"].tolist() == [1, 1, 1, 0, 0]
