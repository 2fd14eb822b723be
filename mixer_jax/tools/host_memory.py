"""Keeps freed memory in the process instead of giving it back to the system."""

import ctypes
import importlib.metadata
import importlib.util
import os

# Parameters of glibc's mallopt(3). One arena, since those of other threads cannot grow beyond 64 MiB.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_SETTINGS = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 1 << 26))


def keep_on_cpu() -> None:
  """Makes glibc keep freed memory until the process ends, if the CPU is the only device that JAX can find.

  On a CPU, malloc allocates a step's temporaries anew at each step. By default such large pieces come from the system
  and go back to it, and every page costs a fault when it is first touched: a tenth of a step of Mixer-S/16
  (docs/results/speed.md). With an accelerator this would only make the host's many threads share one arena. With
  another C library than glibc it does nothing.

  Call it before threads are started, because each thread chooses its arena once.
  """
  platforms = os.environ.get("JAX_PLATFORMS", "")
  plugins = importlib.metadata.entry_points(group="jax_plugins")
  none_found = not plugins and importlib.util.find_spec("libtpu") is None
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is not None and (platforms == "cpu" or (not platforms and none_found)):
    for parameter, value in _SETTINGS:
      mallopt(parameter, value)
