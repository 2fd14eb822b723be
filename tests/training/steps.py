"""Small experiments on several devices, their batches, and trees as flat dictionaries."""

import jax
import numpy as np
from flax import traverse_util

from mixer_jax.parallel import sharding
from mixer_jax.training import experiment
from tests.configurations import small_config
from tests.marks import long

# Every parameter is cut but for the head's ten biases and the 4 × 4 × 3 pixels of the stem's kernel.
SHARDED = ("head/bias=replicate", "stem/kernel=3", ".*=0")

# Constant steps against the gradients, which are what the trace holds after the first.
SGD = {
  "optimizer.name": "momentum", "optimizer.clip_norm": None, "optimizer.weight_decay": 0.0,
  "schedule.warmup_steps": 0, "schedule.decay": "constant",
}  # fmt: skip


def build(num_devices, fsdp=1, keys=(), **changes):
  """Returns an experiment with drop path, dropout and mixup; `keys` are dotted ones of sections and their values."""
  config = small_config(**changes)
  config.augment.mixup_p = 0.5
  config.update_from_flattened_dict(dict(keys))
  config.model.stoch_depth = 0.5
  config.model.dropout_rate = 0.1
  config.mesh.data, config.mesh.fsdp = num_devices // fsdp, fsdp
  config.mesh.rules = SHARDED if fsdp > 1 else ()
  return experiment.build(config)


def batches(count, size=16, masked=(), shape=(16, 16, 3)):
  rng = np.random.default_rng(0)
  for _ in range(count):
    mask = np.ones(size, np.float32)
    mask[list(masked)] = 0
    yield {
      "image": rng.integers(0, 256, (size, *shape), np.uint8),
      "label": rng.integers(0, 10, size).astype(np.int32),
      "mask": mask,
    }


def put(exp, batch):
  size = len(batch["label"])
  return sharding.put_batch(batch, exp.shardings.batch, np.arange(size), size)


def stepped(exp, params, batch):
  """Returns the parameters after the first step from these, and the loss."""
  state = exp.first_state(jax.device_put({"params": params}, exp.shardings.variables))
  state, metrics = exp.train_step(state, put(exp, batch))
  return jax.device_get(state.params), float(metrics["loss"])


def flat(tree):
  return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(tree, sep="/").items()}


def assert_same_gradients(got, wanted):
  """Each is within 1e-5 of its largest value."""
  largest = max(np.abs(v).max() for v in wanted.values())
  for name, value in wanted.items():
    # The true gradient of this bias is zero, so its rounding is measured against the others.
    zero = name.endswith("token_mixing/Dense_1/bias")
    scale = largest if zero else np.abs(value).max()
    np.testing.assert_allclose(got[name], value, atol=1e-5 * scale, rtol=0, err_msg=name)


# Devices, fsdp, accumulation.
MESHES = [long(1, 1, 4), long(4, 1, 1), long(4, 1, 4), long(4, 4, 1), (4, 2, 2)]
