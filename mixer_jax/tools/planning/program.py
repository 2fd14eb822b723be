"""Compiles the real train step, also for absent devices, and returns the compiler's numbers."""

import dataclasses
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.errors import JaxRuntimeError

from mixer_jax.parallel import sharding
from mixer_jax.tools.planning import flops, hlo, host
from mixer_jax.training.experiment import Experiment

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)B?"
_OVERFLOWS = (
  re.compile(rf"Used {_SIZE} of {_SIZE}"),
  re.compile(rf"\({_SIZE}\) exceeds available \w+ \({_SIZE}\)"),
)


class DoesNotFitError(RuntimeError):
  """The program needs `needed_bytes` of memory, but a device has only `limit_bytes`."""

  def __init__(self, needed_bytes: int, limit_bytes: int):
    super().__init__(f"needs {needed_bytes:,} bytes of {limit_bytes:,}")
    self.needed_bytes = needed_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
  """Bytes on one device.

  Attributes:
    arguments: the state and a batch. The new state reuses the old one's memory.
    outputs: results that do not reuse an argument's memory.
    temporaries: activations, gradients, gathered parameters.
    code: the program itself.
  """

  arguments: int
  outputs: int
  temporaries: int
  code: int

  @property
  def total(self) -> int:
    return self.arguments + self.outputs + self.temporaries + self.code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """A compiled train step.

  Attributes:
    memory: on one device.
    flops: operations of a step on one device, recomputation and everything beside the matrix products
      included.
    bytes_moved: to and from the memory of one device in a step.
  """

  memory: Memory
  flops: float
  bytes_moved: float
  collectives: list[hlo.Collective]
  compile_seconds: float


def compile_step(exp: Experiment) -> Program:
  """Compiles the train step of the experiment for the devices of its mesh.

  Raises:
    DoesNotFitError: the compiler knows the devices' memory, and it is too small.
  """
  traced = exp.train_step.trace(exp.abstract_state, abstract_batch(exp))
  lowered = traced.lower()
  begin = time.perf_counter()
  try:
    compiled = lowered.compile()
  except JaxRuntimeError as e:
    if sizes := parse_overflow(str(e)):
      raise DoesNotFitError(*sizes) from e
    raise
  seconds = time.perf_counter() - begin
  module = hlo.parse(compiled.as_text())
  cost = compiled.cost_analysis()
  counted, once = (flops.matmul_flops(traced.jaxpr.jaxpr, loops=loops) for loops in (True, False))
  return Program(
    memory=_memory(compiled.memory_analysis()),
    flops=cost.get("flops", 0.0) + (counted - once) / exp.mesh.size,
    bytes_moved=cost.get("bytes accessed", 0.0) + hlo.uncounted_loop_bytes(module),
    collectives=hlo.collectives(module),
    compile_seconds=seconds,
  )


def abstract_batch(exp: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes and types of a global batch, as the loader makes it."""
  rows = exp.options.batch_size
  most = exp.train_split.labels_per_image
  return {
    "image": jax.ShapeDtypeStruct((rows, *exp.options.input_shape), jnp.uint8),
    "label": jax.ShapeDtypeStruct((rows, most) if most > 1 else (rows,), jnp.int32),
    "mask": jax.ShapeDtypeStruct((rows,), jnp.float32),
  }


def argument_bytes(exp: Experiment) -> int:
  """Returns the bytes on one device of the state and a batch, without compiling anything."""
  batch = abstract_batch(exp)
  return sharding.bytes_per_device(
    exp.abstract_state, exp.shardings.state
  ) + sharding.bytes_per_device(batch, dict.fromkeys(batch, exp.shardings.batch))


def _memory(stats: Any) -> Memory:
  return Memory(
    arguments=stats.argument_size_in_bytes,
    outputs=max(stats.output_size_in_bytes - stats.alias_size_in_bytes, 0),
    temporaries=stats.temp_size_in_bytes,
    code=stats.generated_code_size_in_bytes,
  )


def memory_limit(device: Any) -> int | None:
  """Returns the bytes that a program may take on a device of this machine, or None if the device does not tell."""
  if device.platform == "cpu":  # its devices share the machine's
    return host.memory_bytes() // jax.local_device_count()
  return (device.memory_stats() or {}).get("bytes_limit")


def absent_memory_limit(device: Any) -> int | None:
  """Returns `memory_limit` of an absent device, from the compiler's refusal of a huge array."""
  place = jax.sharding.SingleDeviceSharding(device)
  too_large = jax.ShapeDtypeStruct((2**40,), jnp.uint8)
  try:
    jax.jit(lambda x: x + 1, in_shardings=place).lower(too_large).compile()
  except JaxRuntimeError as e:
    sizes = parse_overflow(str(e))
    return sizes[1] if sizes else None
  return None


def parse_overflow(message: str) -> tuple[int, int] | None:
  """Returns (bytes needed, bytes available) from the TPU compiler's message. None for another message."""
  if "RESOURCE_EXHAUSTED" not in message:
    return None
  for pattern in _OVERFLOWS:
    if match := pattern.search(message):
      wanted, unit, limit, limit_unit = match.groups()
      return int(float(wanted) * _UNITS[unit]), int(float(limit) * _UNITS[limit_unit])
  return None
