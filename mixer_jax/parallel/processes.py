"""This process and its machine, without JAX: a supervisor does not load it."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with(parent: int, status: int) -> None:
  """Ends this process when its parent ends, however that happens (on Linux); with `status` where it has already."""
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  if os.getppid() != parent:
    os._exit(status)


def num_cores() -> int:
  """Returns how many processors this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stop_signals() -> list[signal.Signals]:
  """Returns the signals that ask a run to stop: SIGTERM, Ctrl-C, and those of a closed terminal and of schedulers.

  Without the last ones that the parent has ignored, as nohup does with SIGHUP.
  """
  more = (signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU)
  heard = [number for number in more if signal.getsignal(number) != signal.SIG_IGN]
  return [signal.SIGTERM, signal.SIGINT, *heard]
