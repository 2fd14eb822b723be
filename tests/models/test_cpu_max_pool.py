"""Pooling by maximum is Flax's, with its gradients, and only a CPU compiles it as shifted maps."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mixer_jax.models.kernels import cpu_max_pool


def reference(x):
  return nn.max_pool(x, (3, 3), strides=(2, 2))


def test_windows_are_flaxs_with_ties_and_what_is_no_number():
  rng = np.random.default_rng(0)
  for height, width in ((7, 10), (8, 3)):
    x = rng.integers(-2, 3, (2, height, width, 5)).astype(np.float32)  # most windows have ties
    g = rng.standard_normal(reference(x).shape, np.float32)
    have, pullback = jax.vjp(lambda x: cpu_max_pool.max_pool(x, True), x)
    want, reference_pullback = jax.vjp(reference, x)
    np.testing.assert_array_equal(have, want)
    np.testing.assert_allclose(pullback(g)[0], reference_pullback(g)[0], atol=1e-6, rtol=0)
    x[0, 1, 1], x[1, 2, 2] = np.nan, np.nan
    unknown = jnp.asarray(x)
    np.testing.assert_array_equal(cpu_max_pool.max_pool(unknown, True), reference(unknown))


def test_only_a_cpu_compiles_shifted_maps():
  traced = jax.jit(jax.grad(lambda x: jnp.sum(cpu_max_pool.max_pool(x, True)))).trace(
    jnp.ones((1, 9, 9, 2))
  )
  windows = {
    platform: traced.lower(lowering_platforms=(platform,)).as_text().count("select_and_scatter")
    for platform in ("cpu", "tpu")
  }
  assert windows == {"cpu": 0, "tpu": 1}
