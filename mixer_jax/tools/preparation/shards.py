"""Plans and shards, and writing a shard: each is written whole or not at all."""

import collections
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mixer_jax import files
from mixer_jax.errors import BadRecordError, InputError

MAX_EXAMPLE_BYTES = 1 << 29  # of an encoded image or a record; larger ones are not read
_COUNT_EVERY = 16  # examples
OPTIONS = "group_size:1"  # as TFDS writes: each record can be read alone
# JPEG does not shrink, and decompressing megabytes takes as long as decoding a clip's frames.
OPTIONS_OF_VIDEOS = f"{OPTIONS},uncompressed"


class Example(NamedTuple):
  """An example that is ready to be written: its encoded image, if that is to be verified, class indices and serialized form."""

  image: bytes | None
  labels: list[int]
  serialized: bytes


@dataclass(frozen=True, kw_only=True)
class Shard:
  """A shard to be written; picklable.

  Attributes:
    file: its name.
    split, index: which it is.
    examples: yields (name, load); `load` returns the example or raises BadRecordError. It is given a function to call
      now and then while an example takes long.
    options: of ArrayRecord.
  """

  file: str
  split: str
  index: int
  examples: Callable[[Callable[[], None]], Iterator[tuple[str, Callable[[], Example]]]]
  options: str = OPTIONS


@dataclass(frozen=True, kw_only=True)
class Plan:
  """What is to be written.

  Attributes:
    name, version: of the data set; its directory is data_dir/name/version.
    classes: names by index; empty where the data set has none.
    labels_per_image: the most that an image has. If None, images have several, and nobody counted.
    num_examples: of each split, before bad ones are left out.
    num_bytes: of what is read, about.
    what: its examples are, "images" or "videos".
    ignored: (path, why) of files that are no images.
    fingerprint: equal for equal plans.
    shards: yields the shards, each with what it needs to read its examples.
    describe: (directory, {split: examples in each shard}, {split: bytes}) -> None. Writes the data
      set's description into the directory, dataset_info.json last.
  """

  name: str
  version: str
  classes: Sequence[str]
  labels_per_image: int | None
  num_examples: dict[str, int]
  num_bytes: int
  what: str = "images"
  ignored: Sequence[tuple[str, str]] = ()
  fingerprint: str
  shards: Callable[[], Iterator[Shard]]
  describe: Callable[[pathlib.Path, dict[str, list[int]], dict[str, int]], None]


def write(
  shard: Shard, directory: pathlib.Path, verify: bool, count: Callable[[int], None]
) -> dict[str, Any]:
  """Writes a shard into a directory, and what it holds into `finished/`, each atomically.

  Args:
    shard: what to write.
    directory: where to.
    verify: decode each image.
    count: called with the number of examples done since the last call.

  Returns:
    {"file", "split", "index", "num_examples", "num_bytes", "file_bytes", "classes", "bad"}: `classes`
    are counts by class index, `bad` a list of {"split", "record", "reason"}.

  Raises:
    InputError: the disk is full, or cannot be written.
  """
  try:
    with files.replacing(directory / shard.file) as partial:
      summary = _write_records(shard, partial, verify, count)
      summary["file_bytes"] = partial.stat().st_size
      _sync(partial)
    save_json(summary_path(directory, shard), summary)
  except (OSError, RuntimeError) as e:  # ArrayRecord and SaveError are RuntimeErrors
    raise InputError(
      f"{directory / shard.file} could not be written: {e}. Make room there and give the same command "
      "again: finished shards are kept."
    ) from e
  return summary


def _write_records(
  shard: Shard, path: pathlib.Path, verify: bool, count: Callable[[int], None]
) -> dict[str, Any]:
  from array_record.python import array_record_module

  from mixer_jax.data import decode

  writer = array_record_module.ArrayRecordWriter(str(path), shard.options)
  classes: collections.Counter[int] = collections.Counter()
  bad, num_examples, num_bytes = [], 0, 0
  for number, (name, load) in enumerate(shard.examples(lambda: count(0)), 1):
    if number % _COUNT_EVERY == 0:
      count(_COUNT_EVERY)
    try:
      example = load()
      if verify and example.image is not None:
        alpha = decode.read_header(example.image).alpha
        decode.decode_image(example.image, 4 if alpha else 3)
    except BadRecordError as e:
      bad.append({"split": shard.split, "record": name, "reason": str(e)})
      continue
    writer.write(example.serialized)
    classes.update(example.labels)
    num_examples += 1
    num_bytes += len(example.serialized)
  writer.close()
  count((num_examples + len(bad)) % _COUNT_EVERY)
  return {
    "file": shard.file, "split": shard.split, "index": shard.index, "num_examples": num_examples,
    "num_bytes": num_bytes, "classes": dict(classes), "bad": bad,
  }  # fmt: skip


def summary_path(directory: pathlib.Path, shard: Shard) -> pathlib.Path:
  return directory / "finished" / f"{shard.split}-{shard.index:05d}.json"


def finished(directory: pathlib.Path, shard: Shard) -> dict[str, Any] | None:
  """Returns the summary of a shard that an earlier run finished, or None if there is none."""
  summary, path = load_json(summary_path(directory, shard)), directory / shard.file
  whole = path.exists() and path.stat().st_size == summary.get("file_bytes")
  return summary if whole and summary["file"] == shard.file else None


def load_json(path: pathlib.Path) -> dict[str, Any]:
  """Returns what `save_json` wrote; {} if the file is absent or damaged."""
  try:
    return json.loads(path.read_text())
  except (FileNotFoundError, ValueError, RecursionError):
    return {}


def save_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON so that a killed run leaves the whole file or none."""
  path.parent.mkdir(exist_ok=True)
  with files.replacing(path) as partial:
    partial.write_text(json.dumps(value, indent=1) + "\n")
    _sync(partial)


def _sync(path: pathlib.Path) -> None:
  fd = os.open(path, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)
