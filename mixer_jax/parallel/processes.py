"""This process and its machine, without JAX: a supervisor does not load it."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with(parent: int, status: int) -> None:
  """Ends this process when its parent ends, however that happens (on Linux).

  Args:
    parent: its process id.
    status: exit status where the parent has ended already.
  """
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  if os.getppid() != parent:
    os._exit(status)


def num_cores() -> int:
  """Returns how many processors this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
