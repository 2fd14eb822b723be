"""Names, labels and places of the images to prepare, in about 90 bytes each.

The order in the files is TFDS's own, by the md5 of split and key: shuffled, the same on every run, and
`train[99%:]` of ImageNet holds the same images as with TFDS's builder.
"""

import array
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mixer_jax import printing
from mixer_jax.errors import InputError

MAX_NAME_BYTES = 4096  # of a key or a class: what Linux allows a path


class Entry(NamedTuple):
  """An image.

  Attributes:
    key: its name, unique in the split: a path, relative to the collection's root where it can be.
    labels: class indices; one, unless the collection has several labels an image.
    archive: the file that holds it among others, or "" if it is a file of its own.
    offset, size: bytes of the archive.
  """

  key: str
  labels: list[int]
  archive: str = ""
  offset: int = 0
  size: int = 0


class Catalogue:
  """The entries of a split, as text and numbers: Python objects would take five times the memory."""

  def __init__(self, split: str):
    self._salt = hashlib.md5(split.encode(), usedforsecurity=False)
    self._text = bytearray()
    self._ends = array.array("Q", [0])
    self._hashes = array.array("Q")
    self._first_labels = array.array("i")

  def append(self, entry: Entry) -> None:
    self._text += json.dumps(entry[: 2 if not entry.archive else 5], separators=(",", ":")).encode()
    self._ends.append(len(self._text))
    md5 = self._salt.copy()
    md5.update(entry.key.replace("\\", "/").encode("utf-8", "surrogateescape"))
    self._hashes.append(int.from_bytes(md5.digest()[:8], "big"))
    self._first_labels.append(entry.labels[0])

  def __len__(self) -> int:
    return len(self._hashes)

  def text(self, index: int) -> bytes:
    return bytes(self._text[self._ends[index] : self._ends[index + 1]])

  def __getitem__(self, index: int) -> Entry:
    return parse(self.text(index))

  def first_labels(self) -> np.ndarray:
    return np.frombuffer(self._first_labels, np.int32)

  def order(self) -> np.ndarray:
    """Returns the indices in the order of the files; raises InputError if a key is there twice."""
    hashes = np.frombuffer(self._hashes, np.uint64)
    order = np.argsort(hashes, kind="stable")
    for i in np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]]):
      key = self[int(order[i])].key
      if key == self[int(order[i + 1])].key:
        raise InputError(f"{key} is given twice; leave one of them out.")
    return order

  def update(self, digest: "hashlib._Hash") -> None:
    digest.update(self._text)
    digest.update(self._ends.tobytes())


def parse(text: bytes) -> Entry:
  return Entry(*json.loads(text))


class Videos(NamedTuple):
  """What becomes of videos (data.videos.read): the side to reduce frames to, in pixels, and frames a second."""

  short_side: int
  fps: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collection:
  """What a reader found.

  Attributes:
    name: of the data set.
    version: of the data set.
    root: directory that keys are relative to.
    classes: names by index.
    labels_per_image: the most that an image has.
    file_names: keys are stored with the images, as feature "file_name".
    splits: entries by split.
    ignored: (path, why) of what was found and is no image.
    videos: set if the entries are videos, each a file.
  """

  name: str
  version: str = "1.0.0"
  root: str
  classes: Sequence[str]
  labels_per_image: int = 1
  file_names: bool = False
  splits: dict[str, Catalogue]
  ignored: Sequence[tuple[str, str]] = ()
  videos: Videos | None = None

  @property
  def what(self) -> str:
    """What the entries are, for people."""
    return "videos" if self.videos else "images"

  @property
  def multi_label(self) -> bool:
    """Whether images have several labels."""
    return self.labels_per_image > 1


def check_classes(classes: Iterable[str], where: str) -> None:
  """Raises InputError if TFDS could not keep the names: one a line, stripped, in UTF-8, unique."""
  seen = set()
  for name in classes:
    if not name or name != name.strip() or len(name.splitlines()) != 1:
      raise InputError(
        f"{where}: class {name!r} is empty or has blanks around it or a line break; rename it."
      )
    if not printing.is_printable(name) or len(os.fsencode(name)) > MAX_NAME_BYTES:
      raise InputError(f"{where}: class {name!r} is no printable UTF-8 text; rename it.")
    if name in seen:
      raise InputError(f"{where}: class {name!r} is there twice.")
    seen.add(name)


def hold_out(catalogue: Catalogue, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Splits the indices into (kept, held out), by class and in the catalogue's order of files.

  Of each class (of its first label, where there are several) that share is held out whose keys have
  the smallest hashes with the seed: the same images on every run.
  """
  order = catalogue.order()
  salt = hashlib.blake2b(str(seed).encode(), digest_size=8)
  hashes = np.empty(len(catalogue), np.uint64)
  for i in range(len(catalogue)):
    hashed = salt.copy()
    hashed.update(catalogue[i].key.encode("utf-8", "surrogateescape"))
    hashes[i] = int.from_bytes(hashed.digest(), "big")
  labels = catalogue.first_labels()
  by_class = np.lexsort((hashes, labels))
  starts = np.searchsorted(labels[by_class], labels, side="left")
  rank = np.empty(len(catalogue), np.int64)
  rank[by_class] = np.arange(len(catalogue)) - starts[by_class]
  held_out = rank < np.round(np.bincount(labels)[labels] * fraction)
  return order[~held_out[order]], order[held_out[order]]
