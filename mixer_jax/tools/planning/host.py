"""This machine's processors as a chip, with measured rates."""

import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mixer_jax.parallel import processes
from mixer_jax.tools.planning import chips

_SIDE = 2048  # of the matrices of the product
_VALUES = 2**26  # that are copied, far more than caches hold
_REPEATS = 3


def measured_chip(num_devices: int) -> chips.Chip:
  """Returns the processors that this process may use, of which JAX makes `num_devices`, together; takes seconds."""
  square = jax.random.normal(jax.random.key(0), (_SIDE, _SIDE))
  product = _seconds(jax.jit(lambda x: x @ x), square)
  copy = _seconds(jax.jit(lambda x: x + 1), jnp.zeros(_VALUES))
  return chips.Chip(
    name="cpu",
    device_kinds=("cpu",),
    peak_flops=2 * _SIDE**3 / product,
    hbm_bytes=memory_bytes(),
    hbm_bytes_per_sec=2 * 4 * _VALUES / copy,
    link_bytes_per_sec=None,
    cores=processes.num_cores(),
    devices=num_devices,
    rates="measured here",
  )


def memory_bytes() -> int:
  """Returns the machine's memory."""
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _seconds(call: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
  """Returns the least time of some calls."""
  call(x).block_until_ready()
  times = []
  for _ in range(_REPEATS):
    begin = time.perf_counter()
    call(x).block_until_ready()
    times.append(time.perf_counter() - begin)
  return min(times)
