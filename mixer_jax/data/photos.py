"""What counts as a photo, or a video, below a directory: one table, for preparation and prediction."""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from mixer_jax import files
from mixer_jax.errors import BadRecordError, InputError


class Kind(NamedTuple):
  """What is looked for: its name, in the singular, without and with an article, and the suffixes of its files."""

  name: str
  with_article: str
  suffixes: tuple[str, ...]


# A file counts as one by its name; whether it is one is found when it is decoded. Formats that are not
# supported are here too, so that such files are reported as bad and not passed over as others.
IMAGES = Kind("image", "an image", (
  ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif",
  ".jp2", ".ppm", ".pgm",
))  # fmt: skip
VIDEOS = Kind("video", "a video", (
  ".mp4", ".webm", ".avi", ".gif", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp", ".ogv",
))  # fmt: skip
_FRAME = re.compile(r"(.*?)(\d+)(\.(?:jpe?g|png|webp))", re.IGNORECASE)

Ignored = list[tuple[str, str]]
"""(path, why) of what was found and is none."""

# The path is at fault: nothing is there, or no file. All other errors are the storage's.
_OF_A_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)  # fmt: skip


def unreadable(path: str, error: OSError) -> BadRecordError | InputError:
  """Returns what to raise for a photo that the system does not read: a bad record, or trouble with the storage."""
  if error.errno in _OF_A_PATH:
    return BadRecordError(f"cannot be read: {error.strerror}")
  return InputError(
    f"{path} cannot be read, for the storage fails: {error.strerror or error}. Mend that, and give the same command again."
  )


@contextlib.contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
  """Opens a regular file, and waits for none of another kind; raises in the block, too, what `unreadable` returns."""
  try:
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as f:
      if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):
        raise BadRecordError("not a file")
      yield f
  except OSError as e:
    raise unreadable(path, e) from e


def find(directory: str, ignored: Ignored, kind: Kind = IMAGES) -> Iterator[str]:
  """Yields the paths of the photos, or of another kind, below a directory, however deep, each directory in the bytewise order of its names.

  Args:
    directory: where to look.
    ignored: what else there is is added to it.
    kind: what is looked for.

  Raises:
    InputError: a directory cannot be read, or is a link.
  """
  left = _entries(directory, ignored)[::-1]
  while left:
    entry = left.pop()
    if _is_folder(entry) and find_frames(entry.path, kind):
      yield entry.path
    elif _is_folder(entry):
      left += _entries(entry.path, ignored)[::-1]
    elif os.path.splitext(entry.name)[1].lower() in kind.suffixes:
      yield entry.path
    else:
      ignored.append((entry.path, f"not {kind.with_article}, by its name"))


def find_frames(path: str, kind: Kind = VIDEOS) -> list[tuple[int, str]]:
  """Returns (number, name) of the images of a folder that is a video, in order; [] of what is none.

  Such a folder has nothing but images, whose names are alike but for a number: "img_00001.jpg", ….
  """
  entries = _entries(path, []) if kind == VIDEOS and os.path.isdir(path) else []
  found = [m for entry in entries if (m := _FRAME.fullmatch(entry.name))]
  alike = len(found) == len(entries) and len({m.group(1, 3) for m in found}) == 1
  return sorted((int(m[2]), m[0]) for m in found) if alike else []


def folders(directory: str, ignored: Ignored) -> list[str]:
  """Returns the names of the folders in a directory; what else there is is added to `ignored`."""
  names = []
  for entry in _entries(directory, ignored):
    if _is_folder(entry):
      names.append(entry.name)
    else:
      ignored.append((entry.path, "not in the folder of a class"))
  return names


def _entries(directory: str, ignored: Ignored) -> list[os.DirEntry[str]]:
  """Returns what is in a directory, without what other programs left and what is hidden."""
  try:
    with os.scandir(directory) as found:
      entries = sorted(found, key=lambda e: os.fsencode(e.name))
  except OSError as e:
    raise InputError(f"{directory} cannot be read: {e.strerror}") from e
  kept = []
  for entry in entries:
    if files.is_foreign(entry.name):
      ignored.append((entry.path, "of another program, by its name"))
    elif entry.name.startswith("."):
      ignored.append((entry.path, "hidden"))
    else:
      kept.append(entry)
  return kept


def _is_folder(entry: os.DirEntry[str]) -> bool:
  """Returns whether an entry is a folder; raises InputError for a link to one."""
  if entry.is_dir(follow_symlinks=False):
    return True
  try:
    linked = entry.is_symlink() and entry.is_dir()
  except OSError:  # a link to itself: reading it as a file says so
    linked = False
  if linked:
    raise InputError(
      f"{entry.path} is a link to a directory, which could lead in circles; put the directory itself there."
    )
  return False
