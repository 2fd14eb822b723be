"""Baselines in the training step: the same on several devices and in parts as at once."""

import jax
import numpy as np
import pytest

from configs import common
from mixer_jax.training import experiment
from tests import families
from tests.configurations import small_config

FIELDS = {
  "vit": dict(patch_size=8, num_blocks=2, hidden_dim=16, mlp_dim=24, num_heads=2, stoch_depth=0.5),
  "resnet": dict(num_units=(1,), width=8, num_groups=4),
}  # fmt: skip


def grads_and_loss(family, *, devices, parts):
  """Returns the moments after one step, which are the gradients, and the loss."""
  config = small_config(grad_accum_steps=parts)
  config.mesh.data = devices
  config.model = common.get_config(family).model
  config.model.update(FIELDS[family])
  config.optimizer.clip_norm = None
  exp = experiment.build(config, experiment.make_mesh(config))
  # A head of zeros would keep the gradients from the body.
  params = families.random_params(family, 16, 16, num_classes=10, **FIELDS[family])[1]
  state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), exp.abstract_state)
  state = jax.device_put(state.replace(params=params), exp.shardings.state)
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.integers(0, 256, (16, 16, 16, 3), np.uint8),
    "label": rng.integers(0, 10, 16).astype(np.int32),
    "mask": np.ones(16, np.float32),
  }
  state, metrics = exp.train_step(state, jax.device_put(batch, exp.shardings.batch))
  return jax.device_get(state.opt_state[1].mu), float(metrics["loss"])


@pytest.mark.parametrize("family", FIELDS)
def test_devices_and_parts_change_nothing(family):
  grads, loss = grads_and_loss(family, devices=1, parts=1)
  others, other_loss = grads_and_loss(family, devices=4, parts=2)
  np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
  scale = max(np.abs(g).max() for g in jax.tree.leaves(grads))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), others, grads)
