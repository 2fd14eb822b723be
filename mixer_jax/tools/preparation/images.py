"""Plans the shards of a collection of images or videos: their order, the held-out split, their sizes."""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from mixer_jax.data import photos, videos
from mixer_jax.errors import BadRecordError, InputError
from mixer_jax.tools.preparation import catalogue, metadata, shards

SHARD_BYTES = 256 << 20
_GROWTH = 10  # frames as JPEG take about so many times the bytes of the video (docs/decisions)
HELD_OUT = "validation"
_SAMPLE = 1000  # files whose sizes are looked at to choose the number of shards
Splits = dict[str, tuple[catalogue.Catalogue, np.ndarray]]
"""{split: (its catalogue, indices of its images in the order of its files)}"""


def plan(
  collection: catalogue.Collection, *, held_out: float = 0.0, seed: int = 0,
  num_shards: int | None = None,
) -> shards.Plan:  # fmt: skip
  """Returns the plan of a collection of images.

  Args:
    collection: the images.
    held_out: share of the training images, of each class, that becomes the split "validation".
    seed: chooses which.
    num_shards: shards of the largest split. Other splits have fewer in proportion. If None, a shard has about 256 MiB.

  Raises:
    InputError: there are no images, an image is given twice, the held-out split exists already, or files are missing.
  """
  splits = _splits(collection, held_out, seed)
  num_bytes = sum(_estimate(c, i, collection) for c, i in splits.values())
  num_examples = {split: len(indices) for split, (_, indices) in splits.items()}
  growth = _GROWTH if collection.videos else 1
  counts = _count_shards(num_examples, num_bytes * growth, num_shards)
  return shards.Plan(
    name=collection.name,
    version=collection.version,
    classes=collection.classes,
    labels_per_image=collection.labels_per_image,
    num_examples=num_examples,
    num_bytes=num_bytes,
    what=collection.what,
    ignored=collection.ignored,
    fingerprint=_fingerprint(collection, splits, counts),
    shards=lambda: _shards(collection, splits, counts),
    describe=functools.partial(metadata.write, collection),
  )


def _count_shards(
  num_examples: dict[str, int], num_bytes: int, num_shards: int | None
) -> dict[str, int]:
  total = sum(num_examples.values())
  if num_shards is None:
    whole = num_bytes / SHARD_BYTES
  else:
    whole = num_shards * total / max(num_examples.values())
  return {s: min(n, max(1, round(whole * n / total))) for s, n in num_examples.items()}


def _fingerprint(c: catalogue.Collection, splits: Splits, counts: dict[str, int]) -> str:
  """Returns a hash of the names, labels and places of all images, and of what decides the files."""
  decides = [c.name, c.version, c.root, list(c.classes), c.multi_label, c.file_names]
  decides += [c.videos] if c.videos else []
  digest = hashlib.sha256(json.dumps([decides, counts]).encode())
  for entries, indices in splits.values():
    entries.update(digest)
    digest.update(indices.tobytes())
  return digest.hexdigest()


def _shards(
  c: catalogue.Collection, splits: Splits, counts: dict[str, int]
) -> Iterator[shards.Shard]:
  """Yields the shards one by one: each holds its entries."""
  for split, (entries, indices) in splits.items():
    count = counts[split]
    ends = [round(len(indices) * i / count) for i in range(count + 1)]
    for i in range(count):
      texts = [entries.text(int(n)) for n in indices[ends[i] : ends[i + 1]]]
      yield shards.Shard(
        file=metadata.shard_name(c.name, split, i, count),
        split=split,
        index=i,
        examples=functools.partial(_examples, c.root, texts, c.multi_label, c.file_names, c.videos),
        options=shards.OPTIONS_OF_VIDEOS if c.videos else shards.OPTIONS,
      )


def _splits(collection: catalogue.Collection, held_out: float, seed: int) -> Splits:
  if empty := [split for split, entries in collection.splits.items() if not len(entries)]:
    raise InputError(f"{collection.root} has nothing for the split {empty[0]!r}.")
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
    raise InputError(
      f"--held_out leaves {len(kept)} {collection.what} to train on and {len(out)} held out."
    )
  others = {s: (c, c.order()) for s, c in collection.splits.items() if s != "train"}
  return {"train": (entries, kept), HELD_OUT: (entries, out), **others}


def _estimate(
  entries: catalogue.Catalogue, indices: np.ndarray, collection: catalogue.Collection
) -> int:
  """Returns the bytes of the images, estimated from every so many of them."""
  sample = indices[:: max(1, len(indices) // _SAMPLE)]
  sizes = []
  for index in sample:
    entry = entries[int(index)]
    try:
      path = entry.archive or os.path.join(collection.root, entry.key)
      files = os.scandir(path) if os.path.isdir(path) else [pathlib.Path(path)]
      sizes.append(entry.size if entry.archive else sum(file.stat().st_size for file in files))
    except OSError:
      continue  # reading it will say so
  if not sizes:
    first = os.path.join(collection.root, entries[int(sample[0])].key)
    raise InputError(
      f"none of {len(sample)} {collection.what} that were looked for exists: {first}, …"
    )
  return int(np.mean(sizes) * len(indices))


def _examples(
  root: str, texts: list[bytes], multi_label: bool, file_names: bool,
  of_videos: catalogue.Videos | None, alive: Callable[[], None],
) -> Iterator[tuple[str, Callable[[], shards.Example]]]:  # fmt: skip
  serialize = metadata.serializer(multi_label, file_names, of_videos is not None)

  def load(entry: catalogue.Entry) -> shards.Example:
    if of_videos:
      frames = videos.read(os.path.join(root, entry.key), alive=alive, **of_videos._asdict())
      return shards.Example(None, entry.labels, serialize(frames, entry))
    if entry.archive:
      image = read_bytes(entry.archive, entry.offset, entry.size)
    else:
      image = read_bytes(os.path.join(root, entry.key))
    return shards.Example(image, entry.labels, serialize(image, entry))

  for text in texts:
    entry = catalogue.parse(text)
    yield entry.key, functools.partial(load, entry)


def read_bytes(path: str, offset: int = 0, size: int | None = None) -> bytes:
  """Reads a regular file or a part of it; raises BadRecordError if it is too large or not a regular file, InputError if the storage fails."""
  with photos.opened(path) as f:
    size = os.fstat(f.fileno()).st_size if size is None else size
    if size > shards.MAX_EXAMPLE_BYTES:
      raise BadRecordError(f"{size:,} bytes are too many for an image")
    f.seek(offset)
    data = f.read(size)
  if len(data) != size:
    raise BadRecordError(f"cannot be read: it ends after {len(data)} of {size} bytes")
  return data
