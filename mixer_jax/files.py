"""Files that appear whole or not at all, and locks between processes."""

import contextlib
import os
import pathlib
import stat
from collections.abc import Callable, Iterator
from typing import IO, Any, TextIO, TypeVar

from etils import epath

from mixer_jax.errors import SaveError

Path = TypeVar("Path", pathlib.Path, epath.Path)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
  """Yields the path of a file to write, which replaces `path` at the end of the block.

  After an error nothing is left of it, and `path` is as it was.

  Raises:
    SaveError: it could not be written.
  """
  partial = path.with_name(f"{path.name}.partial")
  try:
    yield partial
    partial.replace(path)
  except BaseException as e:
    with contextlib.suppress(OSError):
      partial.unlink(missing_ok=True)
    if isinstance(e, OSError):
      raise SaveError(f"could not write {path}: {e}") from e
    raise


@contextlib.contextmanager
def locked(path: pathlib.Path, busy: Callable[[], None] = lambda: None) -> Iterator[None]:
  """Lets one process at a time into the block; the lock ends with the process that holds it.

  Args:
    path: of the lock's file.
    busy: called where another process has the lock, before waiting for it; may raise instead.
  """
  import fcntl  # Not on every system.

  with path.open("w") as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      busy()
      fcntl.flock(f, fcntl.LOCK_EX)
    yield


def open_regular(path: pathlib.Path) -> TextIO:
  """Opens a file for reading; raises OSError for what is none, as a FIFO, whose opening would not end."""
  descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
  if not stat.S_ISREG(os.fstat(descriptor).st_mode):
    os.close(descriptor)
    raise OSError(f"{path} is not a regular file")
  return os.fdopen(descriptor)


def try_lock(file: IO[Any], *, shared: bool = False) -> bool | None:
  """Locks an open file until it is closed or this process ends; returns False if another one has it locked.

  Returns None where the system or the file system has no locks.
  """
  try:
    import fcntl  # Not on every system.

    fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except (ImportError, OSError):
    return None
  return True
