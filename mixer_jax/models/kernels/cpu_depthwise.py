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
  channels is vectorised. So is the gradient of x, the same with the kernel turned around, and that of the kernel, n² sums in one
  pass over an image. Other devices compile the convolution.
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


def _shifted(x: Array, size: int) -> list[Array]:
  """Returns the map as each place of a kernel sees it, row by row."""
  _, height, width, _ = x.shape
  pad = (size // 2, size // 2)
  padded = jnp.pad(x, ((0, 0), pad, pad, (0, 0)))
  return [padded[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]


def _sum_of_shifted(x: Array, kernel: Array) -> Array:
  size, channels = kernel.shape[0], kernel.shape[-1]
  pairs = zip(_shifted(x, size), kernel.reshape(-1, channels), strict=True)
  return sum((shifted * row for shifted, row in pairs), start=jnp.zeros_like(x))


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
  return depthwise(x, kernel), (x, kernel)


def _backward(residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
  x, kernel = residuals

  def transposed(x: Array, g: Array) -> Array:
    return jax.linear_transpose(lambda kernel: _convolution(x, kernel), kernel)(g)[0]

  def on_cpu(x: Array, g: Array) -> Array:
    return _kernel_grad(x, g, kernel.shape[0])

  kernel_grad = jax.lax.platform_dependent(x, g, cpu=on_cpu, default=transposed)
  return depthwise(g, kernel[::-1, ::-1]), kernel_grad


def _kernel_grad(x: Array, g: Array, size: int) -> Array:
  # Of one image at a time, whose maps stay in the cache; sums of narrow types are float32's.
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  products = [shifted * g.astype(dtype) for shifted in _shifted(x.astype(dtype), size)]
  zeros = [jnp.zeros((), dtype)] * len(products)
  sums = jax.lax.reduce(
    products, zeros, lambda a, b: [i + j for i, j in zip(a, b, strict=True)], (1, 2)
  )
  return jnp.sum(jnp.stack(sums), axis=1).reshape(size, size, 1, -1).astype(x.dtype)


depthwise.defvjp(_forward, _backward)
