"""Leases of runs in a directory that several machines share.

A lease is a file that exactly one process can create. Its owner renews the file's time. Another process may take over
a lease that is not renewed, or whose owner on this machine has ended.
"""

import contextlib
import os
import pathlib
import socket
import threading
import uuid
from collections.abc import Iterator

HEARTBEAT_SECS = 20.0
STALE_SECS = 300.0


@contextlib.contextmanager
def leased(directory: pathlib.Path) -> Iterator[bool]:
  """Creates the directory and yields whether this process has its lease while in the block."""
  directory.mkdir(parents=True, exist_ok=True)
  path = directory / "lease"
  mine = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4()}\n"
  _remove_if_dead(path)
  try:
    with path.open("x") as f:
      f.write(mine)
  except FileExistsError:
    yield False
    return
  ended = threading.Event()
  beat = threading.Thread(target=_beat, args=(path, ended), daemon=True)
  beat.start()
  try:
    yield True
  finally:
    ended.set()
    beat.join()
    with contextlib.suppress(OSError):
      if path.read_text() == mine:
        path.unlink()


def _beat(path: pathlib.Path, ended: threading.Event) -> None:
  while not ended.wait(HEARTBEAT_SECS):
    with contextlib.suppress(OSError):  # never creates the file anew
      os.utime(path)


def _remove_if_dead(path: pathlib.Path) -> None:
  try:
    owner, renewed = path.read_text(), path.stat().st_mtime
  except FileNotFoundError:
    return
  if not _is_gone(owner) and _now(path.parent) - renewed < STALE_SECS:
    return
  aside = path.with_name(f"lease.{uuid.uuid4()}")
  with contextlib.suppress(FileNotFoundError):
    path.rename(aside)
    # Another process may have taken over in between: then this is its lease, and goes back.
    if aside.read_text() != owner:
      with contextlib.suppress(FileExistsError):
        path.hardlink_to(aside)
    aside.unlink()


def _is_gone(owner: str) -> bool:
  """True if the owner was a process of this machine that has ended."""
  host, pid, *_ = [*owner.split(), "", ""]
  if host != socket.gethostname() or not pid.isdigit():
    return False
  try:
    os.kill(int(pid), 0)
  except ProcessLookupError:
    return True
  except PermissionError:
    pass
  return False


def _now(directory: pathlib.Path) -> float:
  """Returns the time by the clock of the file system, which may not be this machine's."""
  probe = directory / f"clock.{uuid.uuid4()}"
  probe.touch()
  try:
    return probe.stat().st_mtime
  finally:
    probe.unlink()
