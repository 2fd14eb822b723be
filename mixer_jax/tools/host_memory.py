"""Whether the process gives memory that it has freed back to the system."""

import ctypes
import importlib.metadata
import importlib.util
import os

# Parameters of glibc's mallopt(3). One arena, since those of other threads cannot grow beyond 64 MiB.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_SETTINGS = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 1 << 26))


def keep_on_cpu() -> None:
  """Lets glibc keep freed memory to the end of the process, if the CPU is all that JAX can find.

  A step's temporaries are then taken from malloc, anew at each step. So large a piece comes from the system and
  goes back to it otherwise, and every page costs a fault the first time it is touched: a tenth of a step of
  Mixer-S/16 (docs/results/speed.md). With an accelerator, the many threads of its host would share one arena for
  nothing. Does nothing with another C library than glibc.

  Must be called before threads are started, which choose their arenas once.
  """
  platforms = os.environ.get("JAX_PLATFORMS", "")
  plugins = importlib.metadata.entry_points(group="jax_plugins")
  none_found = not plugins and importlib.util.find_spec("libtpu") is None
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is not None and (platforms == "cpu" or (not platforms and none_found)):
    for parameter, value in _SETTINGS:
      mallopt(parameter, value)
