"""From a catalogue of images to shards: order, held-out split, sizes."""

import hashlib
import json
import os
import pathlib
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixer_jax.errors import BadRecordError, InputError
from mixer_jax.tools.preparation import catalogue, metadata, shards

SHARD_BYTES = 256 << 20
HELD_OUT = "validation"
_SAMPLE = 1000  # files whose sizes are looked at to choose the number of shards


class ImagePlan(shards.Plan):
  """Shards of a collection; see shards.Plan."""

  def __init__(
    self, collection: catalogue.Collection, *, held_out: float = 0.0, seed: int = 0,
    num_shards: int | None = None,
  ):  # fmt: skip
    """Raises InputError: no images, one given twice, a held-out split that is there, missing files.

    Args:
      collection: the images.
      held_out: share of the training images, of each class, that becomes the split "validation".
      seed: chooses which.
      num_shards: of the training split; others in proportion. None: shards of about 256 MiB.
    """
    self.collection = collection
    self.name, self.version = collection.name, collection.version
    self.classes, self.multi_label = collection.classes, collection.multi_label
    self.labels_per_image = collection.labels_per_image
    self.ignored = collection.ignored
    self._indices = _splits(collection, held_out, seed)
    self.num_examples = {split: len(indices) for split, (_, indices) in self._indices.items()}
    self.num_bytes = sum(_estimate(c, i, collection.root) for c, i in self._indices.values())
    self._num_shards = self._choose_shards(num_shards)
    self.fingerprint = self._fingerprint()

  def _choose_shards(self, num_shards: int | None) -> dict[str, int]:
    total = sum(self.num_examples.values())
    if num_shards is None:
      whole = self.num_bytes / SHARD_BYTES
    else:
      whole = num_shards * total / max(self.num_examples.values())
    return {s: min(n, max(1, round(whole * n / total))) for s, n in self.num_examples.items()}

  def _fingerprint(self) -> str:
    """Returns a hash of the names, labels and places of all images, and of what decides the files."""
    c = self.collection
    decides = [c.name, c.version, c.root, list(c.classes), c.multi_label, c.file_names]
    digest = hashlib.sha256(json.dumps([decides, self._num_shards]).encode())
    for entries, indices in self._indices.values():
      entries.update(digest)
      digest.update(indices.tobytes())
    return digest.hexdigest()

  def shards(self) -> Iterator[shards.Shard]:
    """Yields the shards one by one: each holds its entries."""
    c = self.collection
    for split, (entries, indices) in self._indices.items():
      count = self._num_shards[split]
      ends = [round(len(indices) * i / count) for i in range(count + 1)]
      for i in range(count):
        yield ImageShard(
          file=metadata.shard_name(c.name, split, i, count),
          split=split,
          index=i,
          root=c.root,
          entries=[entries.text(int(n)) for n in indices[ends[i] : ends[i + 1]]],
          multi_label=c.multi_label,
          file_names=c.file_names,
        )

  def describe(
    self, directory: pathlib.Path, lengths: dict[str, list[int]], num_bytes: dict[str, int]
  ) -> None:
    metadata.write(directory, self.collection, lengths, num_bytes)


def _splits(
  collection: catalogue.Collection, held_out: float, seed: int
) -> dict[str, tuple[catalogue.Catalogue, np.ndarray]]:
  """Returns each split's catalogue and the indices of its images, in the order of its files."""
  if empty := [split for split, entries in collection.splits.items() if not len(entries)]:
    raise InputError(f"{collection.root} has no images for the split {empty[0]!r}.")
  if not held_out:
    return {s: (entries, entries.order()) for s, entries in collection.splits.items()}
  if "train" not in collection.splits or HELD_OUT in collection.splits:
    raise InputError(
      f"--held_out takes the split {HELD_OUT!r} out of 'train'; {collection.root} has the splits "
      f"{', '.join(collection.splits)}."
    )
  entries = collection.splits["train"]
  kept, out = catalogue.hold_out(entries, held_out, seed)
  if not len(out) or not len(kept):
    raise InputError(f"--held_out leaves {len(kept)} images to train on and {len(out)} held out.")
  others = {s: (c, c.order()) for s, c in collection.splits.items() if s != "train"}
  return {"train": (entries, kept), HELD_OUT: (entries, out), **others}


def _estimate(entries: catalogue.Catalogue, indices: np.ndarray, root: str) -> int:
  """Returns the bytes of the images, estimated from every so many of them."""
  sample = indices[:: max(1, len(indices) // _SAMPLE)]
  sizes = []
  for index in sample:
    entry = entries[int(index)]
    try:
      size = entry.size if entry.archive else os.stat(os.path.join(root, entry.key)).st_size
      sizes.append(size)
    except OSError:
      continue  # reading it will say so
  if not sizes:
    first = os.path.join(root, entries[int(sample[0])].key)
    raise InputError(f"none of {len(sample)} images that were looked for is there: {first}, …")
  return int(np.mean(sizes) * len(indices))


@dataclass(frozen=True, kw_only=True)
class ImageShard(shards.Shard):
  """Images that become a shard; see shards.Shard."""

  root: str
  entries: list[bytes]
  multi_label: bool
  file_names: bool

  def examples(self) -> Iterator[tuple[str, Callable[[], shards.Example]]]:
    serialize = metadata.serializer(self.multi_label, self.file_names)
    for text in self.entries:
      entry = catalogue.parse(text)
      yield entry.key, lambda entry=entry: self._load(entry, serialize)

  def _load(self, entry: catalogue.Entry, serialize: Any) -> shards.Example:
    if entry.archive:
      image = read_bytes(entry.archive, entry.offset, entry.size)
    else:
      image = read_bytes(os.path.join(self.root, entry.key))
    return shards.Example(image, entry.labels, serialize(image, entry))


def read_bytes(path: str, offset: int = 0, size: int | None = None) -> bytes:
  """Reads a regular file, or a part of it; raises BadRecordError if it is none, or too large."""
  try:
    # Not to wait for the other end of a pipe.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as f:
      status = os.fstat(f.fileno())
      if not stat.S_ISREG(status.st_mode):
        raise BadRecordError("not a file")
      size = status.st_size if size is None else size
      if size > shards.MAX_EXAMPLE_BYTES:
        raise BadRecordError(f"{size:,} bytes are too many for an image")
      f.seek(offset)
      data = f.read(size)
  except OSError as e:
    raise BadRecordError(f"cannot be read: {e.strerror}") from e
  if len(data) != size:
    raise BadRecordError(f"cannot be read: it ends after {len(data)} of {size} bytes")
  return data
