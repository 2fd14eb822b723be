"""How the process keeps its memory where the CPU is the only device."""

import ctypes
import importlib.metadata
import importlib.util
import os

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep() -> None:
  """Lets glibc keep freed memory to the end of the process, if JAX can find no accelerator.

  XLA takes a step's temporaries anew at each step, on a CPU from malloc. glibc gets so large a piece from
  the system and gives it back, and every page costs a fault the first time it is touched: a tenth of a step of
  Mixer-S/16 (docs/speed.md). The process then holds its largest size to its end.

  Must be called before JAX starts its threads, which choose their arenas once. Does nothing where the C
  library has no mallopt (macOS, musl), or a plugin for an accelerator is installed and JAX_PLATFORMS does not
  exclude it: many threads of a large host would share one arena for nothing.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is None or not _only_cpu():
    return
  # One arena, since those of other threads cannot grow beyond 64 MiB.
  for parameter, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 1 << 26)):  # fmt: skip
    mallopt(parameter, value)


def _only_cpu() -> bool:
  platforms = os.environ.get("JAX_PLATFORMS", "")
  if platforms:
    return platforms == "cpu"
  plugins = importlib.metadata.entry_points(group="jax_plugins")
  return not plugins and importlib.util.find_spec("libtpu") is None
