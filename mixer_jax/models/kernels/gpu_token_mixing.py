"""The token-mixing MLP as one kernel for NVIDIA GPUs: its hidden layer never leaves the chip.

Written in Pallas for its Triton backend, which takes tiles whose sides are powers of 2: weights are padded with zeros, and rows
and columns of a tile that are not there are masked. A program holds the tokens of one image in a block of channels. The
backward pass computes the hidden layer again, once for the gradient of the tokens and once for those of the weights. Sums
have a fixed order.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.pallas import triton as plgpu
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from mixer_jax.models.kernels import gpu_mlp

MAX_TOKENS = 256  # in and out; more do not fit into a program's registers
INTERPRET = False  # run on any device, as Python; for tests
_CHANNELS, _HIDDEN, _MIN_SIDE, _SPLITS = 64, 32, 16, 16


def fits(*num_tokens: int) -> bool:
  """Returns whether the kernel takes so many tokens, in and out."""
  return max(num_tokens) <= MAX_TOKENS


def on_this_platform(
  plain: Callable[[Any, Array], Array],
  params: Mapping[str, Any],
  x: Float[Array, "b s c"],
  *,
  gelu: gpu_mlp.Gelu,
  kernels: str,
  train: bool,
  dtype: Any,
) -> Float[Array, "b t c"]:
  """Returns plain(params, x), on a GPU computed in the form that is fast there.

  Args:
    plain: the MLP on columns.
    params: kernel and bias of "Dense_0" and "Dense_1".
    x: tokens.
    gelu: its name.
    kernels: "pallas": by `mix`; "xla": by `gpu_mlp.mix_in_place`.
    train: need not have forward-mode derivatives.
    dtype: that is computed in.
  """

  def on_gpu(params: Any, x: Array) -> Array:
    if kernels == "pallas":
      return mix(params, x.astype(dtype), gelu)
    return gpu_mlp.mix_in_place(params, x.astype(dtype), gelu, train)

  return jax.lax.platform_dependent(params, x, cuda=on_gpu, default=plain)


def mix(
  params: Mapping[str, Any], x: Float[Array, "b s c"], name: gpu_mlp.Gelu
) -> Float[Array, "b t c"]:
  """Returns what `gpu_mlp.mix_in_place` returns; it has no forward-mode derivatives."""
  first, second = (jax.tree.map(lambda p: p.astype(x.dtype), params[f"Dense_{i}"]) for i in (0, 1))
  return _mix(name, x, first["kernel"], first["bias"], second["kernel"], second["bias"])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(name: gpu_mlp.Gelu, x: Array, k1: Array, b1: Array, k2: Array, b2: Array) -> Array:
  return _over_batch(_forward, name, "b s c, s d, d, d t, t -> b t c")(x, k1, b1, k2, b2)


def _mix_forward(name: gpu_mlp.Gelu, *args: Array) -> tuple[Array, tuple[Array, ...]]:
  return _mix(name, *args), args


def _mix_backward(name: gpu_mlp.Gelu, residuals: tuple[Array, ...], g: Array) -> tuple[Array, ...]:
  x, k1, b1, k2, b2 = residuals
  inputs = "b s c, b t c, s d, d, d t"
  x_grad = _over_batch(_token_grad, name, f"{inputs} -> b s c")(x, g, k1, b1, k2)
  weight_grads = _over_batch(_weight_grads, name, f"{inputs} -> s d, d, d t")
  k1_grad, b1_grad, k2_grad = weight_grads(x, g, k1, b1, k2)
  b2_grad = jnp.sum(g, (0, 2), jnp.float32).astype(b2.dtype)
  return (
    x_grad,
    k1_grad.astype(k1.dtype),
    b1_grad.astype(b1.dtype),
    k2_grad.astype(k2.dtype),
    b2_grad,
  )


_mix.defvjp(_mix_forward, _mix_backward)


# --- calls: padding, grids, devices ------------------------------------------------------------------


def _forward(name: Any, x: Array, k1: Array, b1: Array, k2: Array, b2: Array) -> Array:
  (b, _, c), t = x.shape, k2.shape[1]
  weights = _padded(k1, b1, k2)
  out = _like(x, (b, t, c), x.dtype)
  kernel = functools.partial(_forward_kernel, name)
  return _call(kernel, out, (b, pl.cdiv(c, _CHANNELS)))(x, *weights, _pad(b2))


def _token_grad(name: Any, x: Array, g: Array, k1: Array, b1: Array, k2: Array) -> Array:
  out = _like(x, x.shape, x.dtype)
  kernel = functools.partial(_token_grad_kernel, name)
  grid = x.shape[0], pl.cdiv(x.shape[2], _CHANNELS)
  return _call(kernel, out, grid)(x, g, *_padded(k1, b1, k2))


def _weight_grads(name: Any, x: Array, g: Array, k1: Array, b1: Array, k2: Array) -> Any:
  weights, splits = _padded(k1, b1, k2), min(_SPLITS, x.shape[0])
  out = [_like(x, (splits, *w.shape), jnp.float32) for w in weights]
  kernel = functools.partial(_weight_grads_kernel, name)
  parts = _call(kernel, out, (weights[1].shape[0] // _HIDDEN, splits))(x, g, *weights)
  cut = (tuple(map(slice, w.shape)) for w in (k1, b1, k2))
  return tuple(jnp.sum(part, 0)[where] for part, where in zip(parts, cut, strict=True))


def _call(kernel: Callable[..., None], out_shape: Any, grid: tuple[int, ...]) -> Any:
  compiler = plgpu.CompilerParams(num_warps=4, num_stages=2)
  return pl.pallas_call(
    kernel, out_shape=out_shape, grid=grid, compiler_params=compiler, interpret=INTERPRET
  )


def _like(x: Array, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
  """Returns what an array of this shape is that differs between devices where x does."""
  return jax.eval_shape(lambda x: jnp.broadcast_to(x.ravel()[0].astype(dtype), shape), x)


def _padded(k1: Array, b1: Array, k2: Array) -> tuple[Array, Array, Array]:
  hidden = -k1.shape[1] % _HIDDEN
  k1 = jnp.pad(_pad(k1, 0), ((0, 0), (0, hidden)))
  return k1, jnp.pad(b1, (0, hidden)), jnp.pad(_pad(k2, 1), ((0, hidden), (0, 0)))


def _pad(x: Array, axis: int = 0) -> Array:
  """Pads an axis of tokens with zeros to a power of 2."""
  size = x.shape[axis]
  more = max(_MIN_SIDE, pl.next_power_of_2(size)) - size
  return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)])


@functools.cache
def _over_batch(function: Any, name: str, rule: str) -> Callable[..., Any]:
  """Returns (*arrays) -> function(name, *arrays), of which each device computes its own rows of the batch.

  Without it XLA, which cannot look into a kernel, would gather the batch on every device.

  Args:
    function: of arrays.
    name: its first argument.
    rule: axes of arguments and results, as einsum writes them. "b", always first, is the batch, which is
      shared out; results without it are sums over it.
  """
  call = functools.partial(function, name)
  split = custom_partitioning(call)
  inputs, outputs = (side.split(", ") for side in rule.split(" -> "))
  summed = not outputs[0].startswith("b")

  def partition(mesh: Any, arg_shapes: Any, result_shape: Any) -> Any:
    axes = (*arg_shapes[0].sharding.spec, None)[0]
    rows, whole = NamedSharding(mesh, PartitionSpec(axes)), NamedSharding(mesh, PartitionSpec())

    def on_shard(*args: Array) -> Any:
      out = call(*args)
      return jax.lax.psum(out, axes) if summed and axes else out

    args = tuple(rows if axes.startswith("b") else whole for axes in inputs)
    return mesh, on_shard, jax.tree.map(lambda _: whole if summed else rows, result_shape), args

  split.def_partition(partition=partition, sharding_rule=rule)

  def run(*args: Array) -> Any:
    # Inside shard_map the rows are a device's own already.
    return (call if jax.sharding.get_abstract_mesh().manual_axes else split)(*args)

  return run


# --- kernels ----------------------------------------------------------------------------------------


def _tile(ref: Any, image: Any, block: Any, rows: int) -> tuple[Any, Array]:
  """Returns where a block of channels by tokens lies in (b, s, c), and what of it is there."""
  columns = block * _CHANNELS + jnp.arange(_CHANNELS)[:, None]
  tokens = jnp.arange(rows)[None, :]
  return ref.at[image, tokens, columns], (tokens < ref.shape[1]) & (columns < ref.shape[2])


def _load(ref: Any, image: Any, block: Any, rows: int) -> Array:
  where, there = _tile(ref, image, block, rows)
  return plgpu.load(where, mask=there, other=0.0)


def _store(ref: Any, image: Any, block: Any, value: Array) -> None:
  where, there = _tile(ref, image, block, value.shape[1])
  plgpu.store(where, value.astype(ref.dtype), mask=there)


def _dot(a: Array, b: Array) -> Array:
  return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _hidden(name: Any, x: Array, k1_ref: Any, b1_ref: Any, units: Any) -> Any:
  """Returns gelu of a block of hidden units, (channels, units) in float32, and its pull-back."""
  before = _dot(x, k1_ref[:, units]) + b1_ref[units].astype(jnp.float32)[None]
  return jax.vjp(lambda h: gpu_mlp.biased_gelu(name, h, jnp.zeros((), h.dtype)), before)


def _units(block: Any) -> Any:
  return pl.ds(block * _HIDDEN, _HIDDEN)


def _forward_kernel(name: Any, x_ref, k1_ref, b1_ref, k2_ref, b2_ref, y_ref) -> None:
  image, block = pl.program_id(0), pl.program_id(1)
  x = _load(x_ref, image, block, k1_ref.shape[0])

  def body(i: Any, y: Array) -> Array:
    hidden, _ = _hidden(name, x, k1_ref, b1_ref, _units(i))
    return y + _dot(hidden.astype(x.dtype), k2_ref[_units(i), :])

  y = jnp.zeros((_CHANNELS, k2_ref.shape[1]), jnp.float32)
  y = jax.lax.fori_loop(0, k1_ref.shape[1] // _HIDDEN, body, y)
  _store(y_ref, image, block, y + b2_ref[...].astype(jnp.float32)[None])


def _token_grad_kernel(name: Any, x_ref, g_ref, k1_ref, b1_ref, k2_ref, x_grad_ref) -> None:
  image, block = pl.program_id(0), pl.program_id(1)
  x = _load(x_ref, image, block, k1_ref.shape[0])
  g = _load(g_ref, image, block, k2_ref.shape[1])

  def body(i: Any, x_grad: Array) -> Array:
    _, pull = _hidden(name, x, k1_ref, b1_ref, _units(i))
    (before_grad,) = pull(_dot(g, k2_ref[_units(i), :].T))
    return x_grad + _dot(before_grad.astype(x.dtype), k1_ref[:, _units(i)].T)

  x_grad = jnp.zeros(x.shape, jnp.float32)
  x_grad = jax.lax.fori_loop(0, k1_ref.shape[1] // _HIDDEN, body, x_grad)
  _store(x_grad_ref, image, block, x_grad)


def _weight_grads_kernel(
  name: Any, x_ref, g_ref, k1_ref, b1_ref, k2_ref, k1_grad_ref, b1_grad_ref, k2_grad_ref
) -> None:
  units, split, splits = _units(pl.program_id(0)), pl.program_id(1), k1_grad_ref.shape[0]
  images, blocks = x_ref.shape[0], pl.cdiv(x_ref.shape[2], _CHANNELS)
  k2 = k2_ref[units, :]

  def body(i: Any, grads: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    image, block = i // blocks, i % blocks
    x = _load(x_ref, image, block, k1_ref.shape[0])
    g = _load(g_ref, image, block, k2_ref.shape[1])
    hidden, pull = _hidden(name, x, k1_ref, b1_ref, units)
    (before_grad,) = pull(_dot(g, k2.T))
    k1_grad = grads[0] + _dot(x.T, before_grad.astype(x.dtype))
    k2_grad = grads[2] + _dot(hidden.astype(x.dtype).T, g)
    return k1_grad, grads[1] + jnp.sum(before_grad, 0), k2_grad

  shapes = (k1_ref.shape[0], _HIDDEN), (_HIDDEN,), k2.shape
  first, last = (((split + i) * images // splits) * blocks for i in (0, 1))
  zeros = tuple(jnp.zeros(shape, jnp.float32) for shape in shapes)
  k1_grad, b1_grad, k2_grad = jax.lax.fori_loop(first, last, body, zeros)
  k1_grad_ref[split, :, units] = k1_grad
  b1_grad_ref[split, units] = b1_grad
  k2_grad_ref[split, units, :] = k2_grad
