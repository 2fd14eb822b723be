"""The whole of DeiT's recipe at once: on several devices, in parts; test_families.py resumes it."""

import jax
import numpy as np
import pytest

from configs import deit
from mixer_jax.training import experiment
from tests.configurations import small_config
from tests.marks import long
from tests.training.steps import batches, put


def recipe(**changes):
  """The small configuration with all that deit.py turns on, LAMB, SAM and an average that warms up."""
  config, full = small_config(total_steps=None, total_epochs=0.2, ema_decay=0.9), deit.get_config()
  config.augment, config.ema_warmup = full.augment, True
  config.optimizer, config.schedule = full.optimizer, full.schedule
  config.optimizer.update(name="lamb", sam_rho=0.05, layer_decay=0.9, clip_norm=1.0)
  config.schedule.update(warmup_epochs=0.05, cooldown_epochs=0.05, every="step")
  config.model.update(stoch_depth=0.5, stoch_depth_rescale=True)
  config.normalize = "imagenet"
  config.batch_size = 24
  config.data.ops = full.data.ops
  config.data.repeats, config.data.drop_remainder = 3, True
  config.update_from_flattened_dict(changes)
  return config


def after_a_step(devices, parts):
  """Returns the variables after three steps on the same batches, and the gradients' norms."""
  config = recipe(**{"grad_accum_steps": parts, "mesh.data": devices, "batch_size": 48})
  exp = experiment.build(config)
  state, norms = exp.init_state(), []
  for batch in batches(3, size=48):
    state, metrics = exp.train_step(state, put(exp, batch))
    norms.append(float(metrics["l2_grads"]))
  return jax.device_get(state.params), norms


@pytest.mark.parametrize(("devices", "parts"), [long(1, 4), long(2, 1), long(4, 4)])
def test_devices_and_parts_change_nothing(devices, parts):
  (wanted, norms), (got, other_norms) = after_a_step(1, 1), after_a_step(devices, parts)
  np.testing.assert_allclose(other_norms, norms, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), got, wanted)
