"""The dense layer's gradient in the form that XLA's CPU library multiplies fast."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def dense_dot(
  x: Float[Array, "*n d"], kernel: Float[Array, "d o"], dimensions: Any, precision: Any = None
) -> Float[Array, "*n o"]:
  """nn.Dense's `dot_general`, whose gradient of the kernel is laid out for XLA's CPU library.

  That library (YNNPACK) multiplies only where the left factor is contracted along its last axis; other
  products go to Eigen, at half the speed (docs/results/speed.md). Other devices compile what they would without this.
  """
  return jax.lax.dot_general(x, kernel, dimensions, precision)


def _dense_dot_forward(x: Array, kernel: Array, dimensions: Any, precision: Any) -> Any:
  return dense_dot(x, kernel, dimensions, precision), (x, kernel)


def _dense_dot_backward(dimensions: Any, precision: Any, residuals: Any, g: Array) -> Any:
  def plain(x: Array, kernel: Array, g: Array) -> Any:
    dot = functools.partial(jax.lax.dot_general, dimension_numbers=dimensions, precision=precision)
    (x_grad,) = jax.linear_transpose(lambda x: dot(x, kernel), x)(g)
    (kernel_grad,) = jax.linear_transpose(lambda kernel: dot(x, kernel), kernel)(g)
    return x_grad, kernel_grad

  def on_cpu(x: Array, kernel: Array, g: Array) -> Any:
    dot = functools.partial(jnp.dot, precision=precision)
    barrier = jax.lax.optimization_barrier
    rows, grads = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    # Of both factors the narrower one is transposed; the barriers keep XLA from undoing it, and the last
    # from doing it anew for each use.
    if kernel.shape[0] <= kernel.shape[1]:
      kernel_grad = dot(barrier(rows.T), grads)
    else:
      kernel_grad = barrier(barrier(dot(barrier(grads.T), rows)).T)
    return dot(g, kernel.T), kernel_grad

  return jax.lax.platform_dependent(*residuals, g, cpu=on_cpu, default=plain)


dense_dot.defvjp(_dense_dot_forward, _dense_dot_backward)
