"""Names of the shared memory of a process and its loader workers, by which the next start finds what was left.

Each process has a mark, a file that it keeps locked. The kernel ends the lock with the process, so what carries the
name of an unlocked mark belongs to nobody.
"""

import atexit
import contextlib
import functools
import multiprocessing
import pathlib
import secrets
import signal
from multiprocessing import resource_tracker
from typing import Any

from mixer_jax import files

PLACE = pathlib.Path("/dev/shm")  # noqa: S108  (where Linux has shared memory)
_PREFIX = "mixer_jax-"
_OPEN: list[Any] = []
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU)
"""What a terminal or a scheduler sends to a whole group of processes: for the run itself, not for its helpers."""


@functools.cache
def owned() -> str:
  """Returns the name of this process's mark, and removes what dead processes left. Linux only."""
  mark = f"{_PREFIX}{secrets.token_hex(8)}"
  if not PLACE.is_dir():
    return mark
  for name in {_mark_of(path.name) for path in PLACE.glob(f"*{_PREFIX}*")}:
    if _is_dead(name):
      remove(name)
  with contextlib.suppress(OSError):  # full: the workers will say so
    _keep_locked(mark)
  # Semaphores, which multiprocessing names in this process.
  config: Any = vars(multiprocessing.current_process())["_config"]
  config["semprefix"] = f"/{mark}"
  _start_tracker()
  return mark


def _start_tracker() -> None:
  """Starts Python's resource tracker deaf to these signals: it ignores only the first two by itself."""
  before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
  try:
    resource_tracker.ensure_running()
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def forget(mark: str) -> None:
  """Leaves this worker's segments to Python's resource tracker, and removes the mark of the parent, which has ended.

  The tracker outlives all workers and unlinks what was registered with it. A segment is registered an instant after
  it is created; death in between would leave it behind.
  """
  for link in pathlib.Path("/proc/self/fd").glob("*"):
    with contextlib.suppress(OSError):
      target = link.readlink()
      if target.name.startswith(mark) and target.exists():  # not "… (deleted)"
        resource_tracker.register(f"/{target.name}", "shared_memory")
  with contextlib.suppress(OSError):
    (PLACE / mark).unlink()


def remove(mark: str) -> None:
  """Removes a mark, and all shared memory of its name."""
  for path in [*PLACE.glob(f"*{mark}-*"), PLACE / mark]:
    # Another process of the user was faster, or it is another user's.
    with contextlib.suppress(OSError):
      path.unlink()


def _keep_locked(mark: str) -> None:
  """Makes the mark, which is locked from the moment that it has its name."""
  unnamed = PLACE / f".{mark.removeprefix(_PREFIX)}"
  file = unnamed.open("x")
  files.try_lock(file)
  unnamed.rename(PLACE / mark)
  _OPEN.append(file)
  atexit.register((PLACE / mark).unlink, missing_ok=True)


def _mark_of(name: str) -> str:
  """Returns the mark that the name of a segment or semaphore has."""
  begin = name.index(_PREFIX)
  return "-".join(name[begin:].split("-")[:2])


def _is_dead(mark: str) -> bool:
  try:
    with files.open_regular(PLACE / mark) as file:
      return files.try_lock(file, shared=True) is True
  except FileNotFoundError:
    return True  # the mark comes first and goes last
  except OSError:
    return False  # another user's
