"""A TFDS data set stored as TFRecord: the same examples, splits and names, without TensorFlow.

TFDS stores the same serialized tf.train.Example in either format, so records are copied. A TFRecord is
its length (8 bytes, little-endian), the masked CRC-32C of that, the data, and the data's masked CRC.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from mixer_jax.errors import BadRecordError, InputError
from mixer_jax.tools.preparation import metadata, shards

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)


class TFRecordPlan(shards.Plan):
  """Shards of a TFRecord data set, one for one; see shards.Plan."""

  def __init__(self, directory: str):
    """Raises InputError: no TFDS data set stored as TFRecord, without images, or files missing."""
    import tensorflow_datasets as tfds

    self._source = pathlib.Path(directory).absolute()
    if not (self._source / "dataset_info.json").is_file():
      raise InputError(f"{directory} is not the directory of a prepared TFDS data set.")
    try:
      self._builder = tfds.builder_from_directory(self._source)
      info = self._builder.info
      self._proto = tfds.core.dataset_info.read_from_json(self._source / "dataset_info.json")
    except Exception as e:  # whatever TFDS makes of a damaged description
      raise InputError(f"{directory} is damaged: {type(e).__name__}: {e}") from e
    file_format = self._proto.file_format or "tfrecord"
    if file_format != "tfrecord":
      raise InputError(f"{directory} is stored as {file_format}, not as tfrecord.")
    features: Any = info.features
    if "image" not in features:
      raise InputError(f"{directory} has no feature 'image': {features}")
    self.multi_label = "labels" in features
    self.labels_per_image = None if self.multi_label else 1
    found = [features[key] for key in ("labels", "label") if key in features]
    label: Any = (
      getattr(found[0], "feature", found[0]) if found else None
    )  # "feature": of a sequence
    self.classes = label.names if getattr(label, "num_classes", None) else []
    self.name, self.version = info.name, os.path.join(info.config_name, str(info.version))
    self.ignored = ()
    self._files = self._find_files(info)
    self.num_examples = {s: sum(lengths) for s, (_, lengths) in self._files.items()}
    self.num_bytes = sum(p.stat().st_size for files, _ in self._files.values() for p in files)
    self.fingerprint = self._fingerprint()

  def _find_files(self, info: Any) -> dict[str, tuple[list[pathlib.Path], list[int]]]:
    """Returns the files of each split, and how many records each should hold."""
    for part in (info.name, *self.version.split(os.sep), *info.splits):
      if not _NAME.fullmatch(part):
        raise InputError(f"{self._source}: {part!r} is no name that TFDS would give.")
    files = {}
    for split, split_info in info.splits.items():
      paths = [pathlib.Path(p) for p in split_info.filepaths]
      for path in paths:
        if path.parent != self._source or not path.is_file():
          raise InputError(f"{path} is missing; dataset_info.json names it.")
      if paths:
        files[split] = (paths, list(split_info.shard_lengths))
    if not files:
      raise InputError(f"{self._source} has no splits.")
    return files

  def _fingerprint(self) -> str:
    sizes = {str(p): p.stat().st_size for files, _ in self._files.values() for p in files}
    return hashlib.sha256(json.dumps([self.name, self.version, sizes]).encode()).hexdigest()

  def shards(self) -> Iterator[shards.Shard]:
    for split, (paths, lengths) in self._files.items():
      for i, (path, length) in enumerate(zip(paths, lengths, strict=True)):
        file = metadata.shard_name(self.name, split, i, len(paths))
        yield TFRecordShard(file=file, split=split, index=i, path=str(path), length=length)

  def describe(
    self, directory: pathlib.Path, lengths: dict[str, list[int]], num_bytes: dict[str, int]
  ) -> None:
    """Carries the description over; only the format and the lengths are new."""
    import tensorflow_datasets as tfds

    shutil.copyfile(self._source / "features.json", directory / "features.json")
    for path in self._source.iterdir():  # names of classes, metadata, license
      if path.suffix in (".txt", ".md") or path.name in ("metadata.json", "LICENSE"):
        shutil.copyfile(path, directory / path.name)
    self._proto.file_format = "array_record"
    del self._proto.splits[:]
    infos = metadata.split_infos(directory, self.name, lengths, num_bytes)
    self._proto.splits.extend(info.to_proto() for info in infos.values())
    tfds.core.dataset_info.write_dataset_info_proto(self._proto, directory)


@dataclass(frozen=True, kw_only=True)
class TFRecordShard(shards.Shard):
  """A TFRecord file that becomes a shard; see shards.Shard."""

  path: str
  length: int

  def examples(self) -> Iterator[tuple[str, Callable[[], shards.Example]]]:
    name, number = pathlib.Path(self.path).name, -1
    for number, record in enumerate(records(self.path)):
      yield f"{name}:{number}", lambda record=record: _example(record)
    if number + 1 != self.length:
      message = f"holds {number + 1} records, dataset_info.json says {self.length}"
      yield name, lambda: _raise(BadRecordError(message))


def _raise(error: Exception) -> Any:
  raise error


def _example(record: bytes | BadRecordError) -> shards.Example:
  from google.protobuf.message import DecodeError
  from tensorflow_datasets.proto import tf_example_pb2

  if isinstance(record, BadRecordError):
    raise record
  try:
    found = tf_example_pb2.Example.FromString(record).features.feature
  except DecodeError as e:
    raise BadRecordError(f"not a tf.train.Example: {e}") from e
  images = found["image"].bytes_list.value if "image" in found else ()
  if len(images) != 1:
    raise BadRecordError(f"{len(images)} images in the feature 'image'")
  key = "labels" if "labels" in found else "label"
  labels = list(found[key].int64_list.value) if key in found else []
  return shards.Example(images[0], labels, record)


def records(path: str) -> Iterator[bytes | BadRecordError]:
  """Yields the records of a TFRecord file, an error in the place of one that is damaged.

  After a damaged length the rest of the file cannot be read.
  """
  with open(path, "rb") as f:
    left = os.fstat(f.fileno()).st_size
    while left:
      length, problem = _length(f, left)
      if problem is not None:
        yield BadRecordError(f"{problem}; the rest of the file, {left:,} bytes, is lost")
        return
      data, crc = f.read(length), f.read(4)
      left -= 16 + length
      good = crc == _masked_crc(data)
      yield data if good else BadRecordError(f"its checksum does not fit its {length:,} bytes")


def _length(file: BinaryIO, left: int) -> tuple[int, str | None]:
  """Returns the length of the next record, and what is wrong with it."""
  header = file.read(12)
  if len(header) < 12:
    return 0, "it ends within a record"
  length = struct.unpack("<Q", header[:8])[0]
  if header[8:] != _masked_crc(header[:8]):
    return 0, "the checksum of its length does not fit"
  if length + 16 > left:
    return 0, "it ends within a record"
  if length > shards.MAX_EXAMPLE_BYTES:
    return 0, f"a record of {length:,} bytes is no image"
  return length, None


def _masked_crc(data: bytes) -> bytes:
  import google_crc32c

  crc = google_crc32c.value(data)
  return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
