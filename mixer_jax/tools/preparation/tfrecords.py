"""Copies a TFDS data set stored as TFRecord to ArrayRecord, without TensorFlow.

TFDS stores the same serialized tf.train.Example in both formats. A TFRecord is the length of the data
(8 bytes, little-endian), the masked CRC-32C of the length, the data, and the data's masked CRC-32C.
"""

import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from mixer_jax.data import builders
from mixer_jax.errors import BadRecordError, InputError
from mixer_jax.tools.preparation import metadata, shards

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)
Files = dict[str, tuple[list[pathlib.Path], list[int]]]
"""{split: (its files, how many records each should hold)}"""


def plan(directory: str) -> shards.Plan:
  """Returns the plan of copying a TFRecord data set, shard for shard.

  Raises:
    InputError: no TFDS data set stored as TFRecord, without images, or files missing.
  """
  import tensorflow_datasets as tfds

  source = pathlib.Path(directory).absolute()
  if not (source / "dataset_info.json").is_file():
    raise InputError(f"{directory} is not the directory of a prepared TFDS data set.")
  info: Any = builders.from_directory(str(source)).info
  try:
    proto = tfds.core.dataset_info.read_from_json(source / "dataset_info.json")
  except Exception as e:  # whatever TFDS makes of a damaged description
    raise InputError(f"{directory} is damaged: {type(e).__name__}: {e}") from e
  if proto.file_format not in ("", "tfrecord"):
    raise InputError(f"{directory} is stored as {proto.file_format}, not as tfrecord.")
  if "image" not in info.features:
    raise InputError(f"{directory} has no feature 'image': {info.features}")
  version = os.path.join(info.config_name, str(info.version))
  files = _find_files(source, info, version)
  sizes = {str(p): p.stat().st_size for paths, _ in files.values() for p in paths}
  identity = json.dumps([info.name, version, sizes]).encode()
  return shards.Plan(
    name=info.name,
    version=version,
    classes=_classes(info.features),
    labels_per_image=None if "labels" in info.features else 1,
    num_examples={split: sum(lengths) for split, (_, lengths) in files.items()},
    num_bytes=sum(sizes.values()),
    fingerprint=hashlib.sha256(identity).hexdigest(),
    shards=lambda: _shards(info.name, files),
    describe=functools.partial(_describe, source, proto, info.name),
  )


def _classes(features: Any) -> list[str]:
  label: Any = next((features[key] for key in ("labels", "label") if key in features), None)
  label = getattr(label, "feature", label)  # of a sequence
  return label.names if getattr(label, "num_classes", None) else []


def _find_files(source: pathlib.Path, info: Any, version: str) -> Files:
  for part in (info.name, *version.split(os.sep), *info.splits):
    if not _NAME.fullmatch(part):
      raise InputError(f"{source}: {part!r} is no name that TFDS would give.")
  files: Files = {}
  for split, split_info in info.splits.items():
    paths = [pathlib.Path(p) for p in split_info.filepaths]
    for path in paths:
      if path.parent != source or not path.is_file():
        raise InputError(f"{path} is missing; dataset_info.json names it.")
    if paths:
      files[split] = (paths, list(split_info.shard_lengths))
  if not files:
    raise InputError(f"{source} has no splits.")
  return files


def _shards(name: str, files: Files) -> Iterator[shards.Shard]:
  for split, (paths, lengths) in files.items():
    for i, (path, length) in enumerate(zip(paths, lengths, strict=True)):
      file = metadata.shard_name(name, split, i, len(paths))
      examples = functools.partial(_examples, path, length)
      yield shards.Shard(file=file, split=split, index=i, examples=examples)


def _describe(
  source: pathlib.Path, proto: Any, name: str,
  directory: pathlib.Path, lengths: dict[str, list[int]], num_bytes: dict[str, int],
) -> None:  # fmt: skip
  """Copies the description; only the format and the lengths of the shards are new."""
  import tensorflow_datasets as tfds

  shutil.copyfile(source / "features.json", directory / "features.json")
  for path in source.iterdir():  # names of classes, metadata, license
    if path.suffix in (".txt", ".md") or path.name in ("metadata.json", "LICENSE"):
      shutil.copyfile(path, directory / path.name)
  proto.file_format = "array_record"
  del proto.splits[:]
  infos = metadata.split_infos(directory, name, lengths, num_bytes)
  proto.splits.extend(info.to_proto() for info in infos.values())
  tfds.core.dataset_info.write_dataset_info_proto(proto, directory)


def _examples(
  path: pathlib.Path, length: int, alive: Callable[[], None]
) -> Iterator[tuple[str, Callable[[], shards.Example]]]:
  del alive  # a record takes no time
  number = -1
  for number, record in enumerate(_records(path)):
    yield f"{path.name}:{number}", functools.partial(_example, record)
  if number + 1 != length:
    error = BadRecordError(f"holds {number + 1} records, dataset_info.json says {length}")
    yield path.name, functools.partial(_example, error)


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


def _records(path: pathlib.Path) -> Iterator[bytes | BadRecordError]:
  """Yields the records of a TFRecord file, an error in the place of one that is damaged.

  After a damaged length the rest of the file cannot be read. Raises InputError if the storage fails.
  """
  try:
    with path.open("rb") as f:
      left = os.fstat(f.fileno()).st_size
      while left:
        try:
          length = _length(f, left)
        except BadRecordError as e:
          yield BadRecordError(f"{e}; the rest of the file, {left:,} bytes, is lost")
          return
        data, crc = f.read(length), f.read(4)
        left -= 16 + length
        good = crc == _masked_crc(data)
        yield data if good else BadRecordError(f"its checksum does not fit its {length:,} bytes")
  except OSError as e:
    raise InputError(f"{path} cannot be read, for the storage fails: {e.strerror or e}.") from e


def _length(file: BinaryIO, left: int) -> int:
  """Returns the length of the next record; raises BadRecordError if it cannot be right."""
  header = file.read(12)
  length = int.from_bytes(header[:8], "little")
  if len(header) == 12 and header[8:] != _masked_crc(header[:8]):
    raise BadRecordError("the checksum of its length does not fit")
  if length + 16 > left:
    raise BadRecordError("it ends within a record")
  if length > shards.MAX_EXAMPLE_BYTES:
    raise BadRecordError(f"a record of {length:,} bytes is no image")
  return length


def _masked_crc(data: bytes) -> bytes:
  import google_crc32c

  crc = google_crc32c.value(data)
  return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
