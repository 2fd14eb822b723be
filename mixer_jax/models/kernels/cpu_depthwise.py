"""The depthwise convolution as a sum of shifted maps, which XLA compiles to fast loops on a CPU."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def depthwise(
  x: Float[Array, "b h w c"], kernel: Float[Array, "n n 1 c"]
) -> Float[Array, "b h w c"]:
  """Convolves each channel with its own n×n kernel, n odd, padded with zeros by n // 2 on every side.

  XLA's CPU backend runs the convolution one value at a time; the sum over the kernel's n² places of the shifted map times a row of
  channels is vectorised. So is the gradient of x, the same with the kernel turned around. Other devices compile the convolution.
  """
  return jax.lax.platform_dependent(x, kernel, cpu=_sum_of_shifted, default=_convolution)


def _convolution(x: Array, kernel: Array) -> Array:
  pad = kernel.shape[0] // 2
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (1, 1),
    ((pad, pad), (pad, pad)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[-1],
  )


def _sum_of_shifted(x: Array, kernel: Array) -> Array:
  _, height, width, _ = x.shape
  size = kernel.shape[0]
  pad = (size // 2, size // 2)
  padded = jnp.pad(x, ((0, 0), pad, pad, (0, 0)))
  shifted = (
    padded[:, i : i + height, j : j + width] * kernel[i, j, 0]
    for i in range(size)
    for j in range(size)
  )
  return sum(shifted, start=jnp.zeros_like(x))


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
  return depthwise(x, kernel), (x, kernel)


def _backward(residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
  x, kernel = residuals
  # Of the kernel XLA's own gradient is the faster one.
  (kernel_grad,) = jax.linear_transpose(lambda kernel: _convolution(x, kernel), kernel)(g)
  return depthwise(g, kernel[::-1, ::-1]), kernel_grad


depthwise.defvjp(_forward, _backward)
