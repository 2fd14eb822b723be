"""Leases: one process at a time writes a directory that several machines may share.

A lease is a file, or an object of a bucket, that exactly one process can create. Its owner renews it, and keeps a
file locked. The kernel ends the lock with the process, so on one machine a lease without a lock is a dead owner's,
whatever has that process id now. An owner on another machine counts as dead once the lease is not renewed.
"""

import contextlib
import datetime
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from typing import Any, NamedTuple, TextIO

from etils import epath

from mixer_jax import files
from mixer_jax.errors import InputError, SaveError
from mixer_jax.workdir import metrics

HEARTBEAT_SECS = 20.0
STALE_SECS = 300.0
POLL_SECS = 1.0


class HeldError(InputError):
  """Another process has the lease."""


class _Found(NamedTuple):
  """A lease that is there: its text, seconds since it was renewed, and what its lock says of its owner.

  `lives` is None where locks tell nothing: on another machine, or in a bucket.
  """

  text: str
  age: float
  lives: bool | None

  @property
  def dead(self) -> bool:
    """Whether the owner is known, or taken, to be dead."""
    return self.lives is False or (self.lives is None and self.age > STALE_SECS)


class Lease:
  """This process's lease of a directory, which ends with the `with` block."""

  def __init__(self, directory: str, place: "_File | _Object", text: str):
    self._directory, self._place, self._text = directory, place, text
    self._ended = threading.Event()
    self._beat = threading.Thread(target=self._renew, daemon=True)
    self._beat.start()

  def check(self) -> None:
    """Raises SaveError if this process has the lease no more, as when it stood still and another one took it over."""
    try:
      if self._place.text() == self._text:
        return
      found = self._place.find()
    except OSError:  # of the storage: what is to be written will meet it too
      return
    taken = f"is now in use by {_owner(found)}" if found else "has lost its lease"
    raise SaveError(
      f"workdir {self._directory} {taken}. This run, which had it, stops without saving."
    )

  def release(self) -> None:
    if not self._ended.is_set():
      self._ended.set()
      self._beat.join()
      with contextlib.suppress(OSError):
        self._place.remove(self._text)

  def __enter__(self) -> "Lease":
    return self

  def __exit__(self, *exc: object) -> None:
    self.release()

  def _renew(self) -> None:
    while not self._ended.wait(HEARTBEAT_SECS):
      with contextlib.suppress(OSError):
        self._place.renew(self._text)


def take(directory: epath.Path | pathlib.Path | str, *, wait: bool = False) -> Lease:
  """Takes the lease of a directory, which is created if need be.

  Args:
    directory: local, or the address of a bucket's folder.
    wait: for another process that has it; one line says so.

  Raises:
    HeldError: another process has it; its host, process id and start are named.
    InputError: the directory cannot be written.
  """
  url, mine = str(directory), _description()
  place = _Object(url) if "://" in url else _File(url)
  try:
    while not place.create(mine):
      found = place.find()
      if found is None:
        continue
      if found.text == mine:  # a bucket's answer was lost, and the request repeated
        break
      if found.dead:
        place.remove(found.text)
      elif not wait:
        raise HeldError(
          f"workdir {url} is in use by {_owner(found)}. End that run, choose another workdir, or wait for its end "
          "with --wait_for_workdir."
        )
      else:
        _wait(url, place, found)
  except OSError as e:
    raise InputError(f"workdir {url} is not writable: {e}") from e
  return Lease(url, place, mine)


def _wait(url: str, place: "_File | _Object", found: _Found) -> None:
  """Returns when the lease is another one, is gone or can be taken over."""
  limit = "" if found.lives else f", or {STALE_SECS:.0f} s after its last sign of life"
  metrics.log(f"waiting for workdir {url}, in use by {_owner(found)}, until that run ends{limit}")
  while (now := place.find()) and now.text == found.text:
    if now.dead:
      return
    time.sleep(POLL_SECS)


def _description() -> str:
  """Returns the text of a new lease: who has it, since when, and a number of its own."""
  now = datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="seconds")
  who = {"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine(), "since": now}
  return json.dumps({**who, "id": str(uuid.uuid4())}) + "\n"


def _parsed(text: str) -> dict[str, Any]:
  """Returns what a lease says; {} if it is still being written, or not of this format."""
  with contextlib.suppress(ValueError):
    found = json.loads(text)
    return found if isinstance(found, dict) else {}
  return {}


def _owner(found: _Found) -> str:
  who = _parsed(found.text)
  names = {k: ascii(who.get(k, "unknown"))[:64].strip("'") for k in ("pid", "host", "since")}
  return f"process {names['pid']} on {names['host']} since {names['since']} (last sign of life {found.age:.0f} s ago)"


def _machine() -> str:
  """Returns what all processes share whose locks one kernel keeps, in whatever container they run."""
  try:
    return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
  except OSError:
    return socket.gethostname()


class _File:
  """A lease on a file system.

  `create` returns False if there is one, `text` None if there is none; `renew` and `remove` leave another's text alone.
  """

  def __init__(self, directory: str):
    self._path = pathlib.Path(directory) / "lease"
    self._made = not self._path.parent.exists()
    self._locked: TextIO | None = None

  def create(self, text: str) -> bool:
    self._path.parent.mkdir(parents=True, exist_ok=True)
    try:
      self._locked = self._path.open("x")
    except FileExistsError:
      return False
    while files.try_lock(self._locked) is False:  # another process looks at it
      time.sleep(0.01)
    self._locked.write(text)
    self._locked.flush()
    return True

  def find(self) -> _Found | None:
    try:
      with files.open_regular(self._path) as f:
        text = f.read()
        here = _parsed(text).get("machine") == _machine()
        free = files.try_lock(f, shared=True) if here else None
        age = self._now() - os.fstat(f.fileno()).st_mtime
    except FileNotFoundError:
      return None
    return _Found(text, age, None if free is None else not free)

  def text(self) -> str | None:
    try:
      with files.open_regular(self._path) as f:
        return f.read()
    except FileNotFoundError:
      return None

  def renew(self, text: str) -> None:
    if self.text() == text:
      os.utime(self._path)

  def remove(self, text: str) -> None:
    if self.text() == text:
      self._path.unlink(missing_ok=True)
    if self._locked is not None:
      self._locked.close()
    if self._made:
      with contextlib.suppress(OSError):  # holds files, as it should
        self._path.parent.rmdir()

  def _now(self) -> float:
    """Returns the time by the clock of the file system, which may not be this machine's."""
    probe = self._path.with_name(f"clock.{uuid.uuid4()}")
    probe.touch()
    try:
      return probe.stat().st_mtime
    finally:
      probe.unlink()


class _Object:
  """A lease in a bucket, whose server creates an object only if there is none; as `_File`."""

  def __init__(self, directory: str):
    import fsspec

    self._fs: Any
    self._fs, folder = fsspec.core.url_to_fs(directory)
    self._path = f"{folder.rstrip('/')}/lease"

  def create(self, text: str) -> bool:
    try:
      self._fs.pipe_file(self._path, text.encode(), mode="create")
    except FileExistsError:
      return False
    return True

  def find(self) -> _Found | None:
    probe = f"{self._path}.{uuid.uuid4()}"
    self._fs.pipe_file(probe, b"clock")
    try:
      self._fs.invalidate_cache()
      text = self._fs.cat_file(self._path).decode()
      age = self._fs.modified(probe) - self._fs.modified(self._path)
    except FileNotFoundError:
      return None
    finally:
      self._fs.rm_file(probe)
    return _Found(text, age.total_seconds(), None)

  def renew(self, text: str) -> None:
    if self.text() == text:
      self._fs.pipe_file(self._path, text.encode())

  def remove(self, text: str) -> None:
    if self.text() == text:
      self._fs.rm_file(self._path)

  def text(self) -> str | None:
    with contextlib.suppress(FileNotFoundError):
      return self._fs.cat_file(self._path).decode()
    return None
