"""The kernel's gradient in its other layout is the gradient, in MLPs that widen and that narrow."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer_jax.models import layers
from mixer_jax.models.kernels import cpu_dense


@pytest.mark.parametrize("shape", [(2, 3, 5), (7, 5)])
@pytest.mark.parametrize("width", [3, 5, 9])
def test_gradients(shape, width):
  rng = np.random.default_rng(0)
  x, kernel = rng.standard_normal(shape), rng.standard_normal((shape[-1], width))
  g = rng.standard_normal((*shape[:-1], width))
  dimensions = (((len(shape) - 1,), (0,)), ((), ()))

  def call(x, kernel):
    return cpu_dense.dense_dot(x, kernel, dimensions, jax.lax.Precision.HIGHEST)

  with jax.enable_x64(True):
    out, pullback = jax.vjp(call, jnp.asarray(x), jnp.asarray(kernel))
    x_grad, kernel_grad = pullback(jnp.asarray(g))
  np.testing.assert_allclose(out, x @ kernel, rtol=1e-12, atol=1e-12)
  np.testing.assert_allclose(x_grad, g @ kernel.T, rtol=1e-12, atol=1e-12)
  by_hand = x.reshape(-1, shape[-1]).T @ g.reshape(-1, width)
  np.testing.assert_allclose(kernel_grad, by_hand, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [64, 512])
def test_on_cpu_all_products_go_to_the_fast_library(width):
  """As compiled, each contracts its left factor along the last axis, which YNNPACK asks for."""
  x, kernel = jnp.ones((4, 49, 128)), jnp.ones((128, width))

  def loss(x, kernel):
    return jnp.sum(cpu_dense.dense_dot(x, kernel, (((2,), (0,)), ((), ())), None) ** 2)

  compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).compile().as_text()
  assert compiled is not None
  left = re.findall(r" dot\(.*lhs_contracting_dims=\{(\d+)\}", compiled)
  assert left == ["1"] * 3, compiled


def test_other_devices_compile_what_they_would_without_it():
  """Lowered for TPU, which needs none, a gradient step has no barrier and the plain products."""
  x, kernel = jnp.ones((4, 6, 8)), jnp.ones((8, 16))

  def grads(dot):
    def loss(x, kernel):
      return jnp.sum(dot(x, kernel, (((2,), (0,)), ((), ())), None) ** 2)

    return jax.jit(jax.grad(loss, (0, 1))).trace(x, kernel)

  def products(text):
    return sorted(
      line.split("=", 1)[1].split("dot_general")[1].split(",", 2)[2]
      for line in text.splitlines()
      if "stablehlo.dot_general" in line
    )

  ours, plain = grads(cpu_dense.dense_dot), grads(jax.lax.dot_general)
  tpu = ours.lower(lowering_platforms=("tpu",)).as_text()
  assert "optimization_barrier" not in tpu
  assert "optimization_barrier" in ours.lower(lowering_platforms=("cpu",)).as_text()
  assert products(tpu) == products(plain.lower(lowering_platforms=("tpu",)).as_text())


def test_a_model_that_is_not_training_can_be_differentiated_forward():
  """<g, J·v> from the forward mode is <Jᵀ·g, v> from the backward mode."""
  block = layers.MlpBlock(mlp_dim=12)
  rng = np.random.default_rng(0)
  x, v, g = (jnp.asarray(rng.standard_normal((2, 3, 8)), jnp.float32) for _ in range(3))
  variables = block.init(jax.random.key(0), x, jnp.arange(2))

  def call(x):
    return block.apply(variables, x, jnp.arange(2))

  forward = jax.jvp(call, (x,), (v,))[1]
  (backward,) = jax.vjp(call, x)[1](g)
  np.testing.assert_allclose(jnp.vdot(g, forward), jnp.vdot(backward, v), rtol=1e-5)
