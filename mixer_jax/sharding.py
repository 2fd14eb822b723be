"""Where arrays live: the device mesh, the batch sharded over it, the state replicated on it.

The batch is sharded over all axes of the mesh. "data" counts copies of the state; "fsdp" is the axis
along which rules may shard parameters and optimizer state (its size is 1 until they do).
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mixer_jax.errors import InputError

AXES = ("data", "fsdp")


class Shardings(NamedTuple):
  """Shardings of the train state (a tree like it), of every array of a batch, and of small results."""

  state: Any
  batch: NamedSharding
  replicated: NamedSharding


def make_mesh(*, data: int) -> Mesh:
  """Returns a mesh of `data` devices; −1: all devices of all processes.

  Raises:
    InputError: more devices wanted than there are, or processes left without one.
  """
  count = jax.device_count() if data == -1 else data
  if not 1 <= count <= jax.device_count():
    raise InputError(
      f"config.mesh.data is {data}, but there are {jax.device_count()} devices; -1 takes all."
    )
  if jax.process_count() > 1 and count != jax.device_count():
    raise InputError("config.mesh.data must be -1 with several processes: each takes part.")
  axis_types = (AxisType.Auto,) * len(AXES)
  return jax.make_mesh((count, 1), AXES, axis_types, devices=jax.devices()[:count])


def make_shardings(mesh: Mesh, abstract_state: Any) -> Shardings:
  """Returns the shardings on this mesh; needs no device, so a mesh of absent devices will do."""
  replicated = NamedSharding(mesh, PartitionSpec())
  batch = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
  return Shardings(jax.tree.map(lambda _: replicated, abstract_state), batch, replicated)


def local_rows(batch: NamedSharding, batch_size: int) -> np.ndarray:
  """Returns the rows of the global batch, ascending, that this process's devices hold: int (n,)."""
  slices = batch.addressable_devices_indices_map((batch_size,)).values()
  return np.unique(np.concatenate([np.arange(batch_size)[s] for s in slices]))


def put_batch(
  local: dict[str, np.ndarray], batch: NamedSharding, rows: np.ndarray, batch_size: int
) -> dict[str, jax.Array]:
  """Puts this process's rows on its devices and returns the global batch.

  Args:
    local: arrays of shape (len(rows), ...).
    rows: their positions in the global batch, ascending, from `local_rows`.
    batch_size: rows of the global batch.
  """

  def put(array: np.ndarray) -> jax.Array:
    shape = (batch_size, *array.shape[1:])

    def shard(index: Any) -> np.ndarray:
      start, stop, _ = index[0].indices(batch_size)
      first = np.searchsorted(rows, start)
      return array[first : first + stop - start]

    return jax.make_array_from_callback(shape, batch, shard)

  return {key: put(array) for key, array in local.items()}
