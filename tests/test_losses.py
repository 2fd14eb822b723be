"""Losses against float64 NumPy, at extreme logits too."""

import jax.numpy as jnp
import numpy as np
import pytest

from mixer_jax import losses


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_losses_match_numpy(scale):
  rng = np.random.default_rng(0)
  logits = (rng.normal(size=(6, 9)) * scale).astype(np.float32)
  labels = rng.uniform(size=(6, 9)).astype(np.float32)
  x, y = logits.astype(np.float64), labels.astype(np.float64)
  log_p, log_not_p = -np.logaddexp(0, -x), -np.logaddexp(0, x)
  sigmoid = -(y * log_p + (1 - y) * log_not_p).sum(-1)
  np.testing.assert_allclose(
    losses.sigmoid_xent(jnp.asarray(logits), jnp.asarray(labels)), sigmoid, rtol=1e-5
  )
  log_softmax = (
    x
    - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
    - x.max(-1, keepdims=True)
  )
  np.testing.assert_allclose(
    losses.softmax_xent(jnp.asarray(logits), jnp.asarray(labels)),
    -(y * log_softmax).sum(-1),
    rtol=1e-5,
  )
