"""Paths that users name, files of other programs, files that appear whole or not at all, and locks between processes."""

import contextlib
import errno
import fnmatch
import glob
import hashlib
import os
import pathlib
import posixpath
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, TextIO, TypeVar

from etils import epath

from mixer_jax.errors import InputError, SaveError

Path = TypeVar("Path", pathlib.Path, epath.Path)

CHECKSUMS = "SHA256SUMS"  # of a directory's files, in the format of `sha256sum --check`
FOREIGN = (
  # macOS, Windows, Synology, Linux's file managers and lost+found
  ".DS_Store", "._*", ".AppleDouble", "__MACOSX", ".Spotlight-V100", ".Trashes", ".fseventsd", ".apdisk", "Icon\r",
  "Thumbs.db", "desktop.ini", "@eaDir", "#recycle", ".directory", ".Trash-*", "lost+found",
  # network file systems, for what is deleted while it is open
  ".nfs*", ".fuse_hidden*", ".smbdelete*",
  # rsync, Dropbox, Google Drive, Syncthing, unison
  ".*.??????", ".~tmp~", ".rsync-partial", ".dropbox*", ".~*", ".tmp.drive*", ".st[fv]*", ".syncthing.*", "~syncthing~*",
  "*.sync-conflict-*", "*conflicted copy*", ".unison.*",
  # editors and notebooks
  ".*.sw?", "*~", "~$*", ".#*", ".ipynb_checkpoints",
)  # fmt: skip
"""Names, as fnmatch has them, of files and directories that other programs leave among a user's."""


def is_foreign(name: str) -> bool:
  """Returns whether another program left the file or directory of this name: it is ignored."""
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in FOREIGN)


class _LocalPath(type(epath.Path("/"))):
  """A path whose own characters are no pattern for `glob`, by which Orbax finds its files."""

  def glob(self, pattern: str) -> Iterator["_LocalPath"]:
    yield from super().glob(posixpath.join(glob.escape(str(self.absolute())), pattern))


def path_of(text: str, what: str) -> epath.Path:
  """Returns the path that a user names, `~` expanded.

  Args:
    text: the path, or gs://… .
    what: what names it, for messages: "--workdir".

  Raises:
    InputError: it is blank, or there is no home directory of that name.
  """
  if not text.strip():
    raise InputError(f"{what} is {text!r}, which names nothing; was a variable not set?")
  expanded = os.path.expanduser(text)
  if text.startswith("~") and (expanded.startswith("~") or os.environ.get("HOME") == ""):
    raise InputError(
      f"{what} is {text!r}, but {text.split('/')[0]} is no home directory that is known here; write the path in full."
    )
  return epath.Path(expanded) if "://" in text else _LocalPath(expanded)


def is_regular(path: epath.Path) -> bool:
  """Returns whether there is a file to read: no directory, FIFO or device, and no link that ends nowhere."""
  return path.is_file() if "://" in str(path) else os.path.isfile(path)


def read(path: epath.Path) -> bytes:
  """Returns a file's content; raises ValueError for what is no regular file, which might block or never end."""
  there = path.exists() if "://" in str(path) else os.path.lexists(path)
  if there and not is_regular(path):
    raise ValueError(f"{path} is no regular file")
  try:
    return path.read_bytes()
  except OSError as e:
    if e.errno == errno.ELOOP:
      raise ValueError(f"{path} is below a link to itself") from e
    raise


def list_checksums(directory: Path, names: Iterable[str]) -> None:
  """Lists the SHA-256 of small files in a directory, for `read_listed`; raises SaveError."""
  digests = {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in names}
  with replacing(directory / CHECKSUMS) as partial:
    partial.write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))


def listed_checksums(directory: epath.Path) -> dict[str, str]:
  """Returns {name: SHA-256}, {} without a list: earlier versions wrote none; raises ValueError if it is unreadable."""
  try:
    lines = read(directory / CHECKSUMS).decode().splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
  except (FileNotFoundError, NotADirectoryError):
    return {}
  except ValueError:
    raise ValueError(f"{CHECKSUMS} beside it is unreadable") from None


def read_listed(path: epath.Path) -> bytes:
  """Returns a file's content as `read`; raises ValueError, too, if the checksum that is listed beside it is another."""
  content = read(path)
  listed = listed_checksums(path.parent).get(path.name)
  if listed not in (None, hashlib.sha256(content).hexdigest()):
    raise ValueError(
      f"it does not match its SHA-256; if it was changed on purpose, delete {CHECKSUMS} beside it"
    )
  return content


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
