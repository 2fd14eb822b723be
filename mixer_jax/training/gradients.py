"""Loss and gradients of a global batch, taken whole or in parts; the parameters may be shards."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from mixer_jax.parallel import sharding

ValueAndGrad = Callable[..., tuple[tuple[Array, Any], Any]]


def make_value_and_grad(
  loss_fn: Callable[..., tuple[Array, Any]], param_shardings: Any, num_parts: int
) -> ValueAndGrad:
  """Returns (params, batch, *args) -> ((loss, aux), gradients), for use inside jit.

  Args:
    loss_fn: (params, part, *args) -> (loss, aux). The loss of a batch is the sum of those of its parts.
    param_shardings: which parameters arrive as shards; their gradients are shards too.
    num_parts: parts of the batch, one after the other; with several, aux must be an empty tree.
  """
  if num_parts > 1:
    return _in_parts(loss_fn, param_shardings, num_parts)
  gather = sharding.make_gather(param_shardings)
  return jax.value_and_grad(
    lambda params, batch, *args: loss_fn(gather(params), batch, *args), has_aux=True
  )


def _in_parts(
  loss_fn: Callable[..., tuple[Array, Any]], param_shardings: Any, num_parts: int
) -> ValueAndGrad:
  """Each device gathers the parameters once and adds up the gradients of its own rows.

  The devices add theirs once, at the end, each keeping the shards that it holds.
  """
  mesh = jax.tree.leaves(param_shardings)[0].mesh
  axes = mesh.axis_names
  specs = jax.tree.map(lambda s: s.spec, param_shardings)
  dims = jax.tree.map(sharding.shard_dim, param_shardings)

  def value_and_grad(params: Any, batch: dict[str, Array], *args: Any):
    def one_shard(params: Any, rows: dict[str, Array]):
      params = jax.tree.map(functools.partial(_gather, axes), params, dims)
      parts = jax.tree.map(lambda x: x.reshape(num_parts, -1, *x.shape[1:]), rows)
      value, grads, aux = _scan(loss_fn, axes, params, parts, *args)
      value, grads = _sum_over_devices(axes, value, grads, dims)
      return (value, aux), jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)

    sharded = jax.shard_map(
      one_shard,
      mesh=mesh,
      in_specs=(specs, PartitionSpec(axes)),
      out_specs=((PartitionSpec(), PartitionSpec()), specs),
    )
    return sharded(params, batch)

  return value_and_grad


def _scan(
  loss_fn: Callable[..., tuple[Array, Any]], axes: Any, params: Any, parts: Any, *args: Any
):
  """Returns the sums of loss and gradients over the parts, float32 whatever the parameters' type, and aux."""

  def one_part(total: Any, part: dict[str, Array]):
    (value, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, part, *args)
    return jax.tree.map(jnp.add, total, (value, grads)), aux

  zero = jax.lax.pcast(jnp.zeros(()), axes, to="varying")
  zeros = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params)
  (value, grads), aux = jax.lax.scan(one_part, (zero, zeros), parts)
  return value, grads, aux


def _gather(axes: tuple[str, ...], p: Array, dim: int) -> Array:
  """Returns the whole of a parameter that this device holds a shard of, inside shard_map."""
  if dim != sharding.REPLICATED:
    p = jax.lax.all_gather(p, "fsdp", axis=dim, tiled=True)
    axes = tuple(axis for axis in axes if axis != "fsdp")
  # Marked as differing between devices, the parameters get gradients that are not yet summed.
  return jax.lax.pcast(p, axes, to="varying")


def _sum_over_devices(axes: tuple[str, ...], value: Array, grads: Any, dims: Any):
  """Returns the sums over the devices; of the gradient of a sharded parameter, this device's shard."""
  leaves, structure = jax.tree.flatten(grads)
  dimensions = dict(enumerate(jax.tree.leaves(dims)))
  shards = {
    i: jax.lax.psum_scatter(leaves[i], "fsdp", scatter_dimension=dim, tiled=True)
    for i, dim in dimensions.items()
    if dim != sharding.REPLICATED
  }
  shards = jax.lax.psum(shards, tuple(axis for axis in axes if axis != "fsdp"))
  whole = {i: leaves[i] for i, dim in dimensions.items() if dim == sharding.REPLICATED}
  value, whole = jax.lax.psum((value, whole), axes)
  return value, structure.unflatten((shards | whole)[i] for i in dimensions)
