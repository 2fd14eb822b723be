"""Examples and descriptions in TFDS's own format, without TensorFlow."""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from mixer_jax.tools.preparation import catalogue


def features(
  classes: Sequence[str], multi_label: bool, file_names: bool, of_videos: bool = False
) -> Any:
  """Returns {"image", or "video", its frames as JPEG, "label" or "labels", "file_name" if wanted}."""
  import tensorflow_datasets as tfds

  label = tfds.features.ClassLabel(names=classes)
  found: dict[str, Any] = {"image": tfds.features.Image()}
  if of_videos:  # TFDS's own Video needs TensorFlow.
    frame = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
    found = {"video": tfds.features.Sequence(frame)}
  found |= {"labels": tfds.features.Sequence(label)} if multi_label else {"label": label}
  if file_names:
    found["file_name"] = tfds.features.Text()
  return tfds.features.FeaturesDict(found)


def serializer(
  multi_label: bool, file_names: bool, of_videos: bool = False
) -> Callable[[bytes | list[bytes], catalogue.Entry], bytes]:
  """Returns a function (encoded image, or frames, entry) -> serialized tf.train.Example, as TFDS writes it."""
  from tensorflow_datasets.core import example_serializer

  info = features(["any"], multi_label, file_names, of_videos).get_serialized_info()
  write = example_serializer.ExampleSerializer(info).get_tf_example

  def serialize(image: bytes | list[bytes], entry: catalogue.Entry) -> bytes:
    example: dict[str, Any] = {"video" if of_videos else "image": image}
    example |= {"labels": entry.labels} if multi_label else {"label": entry.labels[0]}
    if file_names:
      example["file_name"] = entry.key
    # The bytes of an example depend on nothing else, so shards can be compared.
    return write(example).SerializeToString(deterministic=True)

  return serialize


def shard_name(name: str, split: str, index: int, count: int) -> str:
  return f"{name}-{split}.array_record-{index:05d}-of-{count:05d}"


def split_infos(
  directory: pathlib.Path, name: str, lengths: dict[str, list[int]], num_bytes: dict[str, int]
) -> Any:
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import naming

  template = naming.ShardedFileTemplate(
    data_dir=epath.Path(directory), dataset_name=name, filetype_suffix="array_record"
  )
  infos = [
    tfds.core.SplitInfo(
      name=s, shard_lengths=lengths[s], num_bytes=num_bytes[s],
      filename_template=template.replace(split=s),
    )
    for s in lengths
  ]  # fmt: skip
  return tfds.core.splits.SplitDict(infos)


def write(
  collection: catalogue.Collection, directory: pathlib.Path, lengths: dict[str, list[int]],
  num_bytes: dict[str, int],
) -> None:  # fmt: skip
  """Writes the files that TFDS describes a data set by; dataset_info.json last."""
  import tensorflow_datasets as tfds

  identity = tfds.core.dataset_info.DatasetIdentity(
    name=collection.name,
    version=tfds.core.Version(collection.version),
    data_dir=os.fspath(directory),
    module_name="",
  )
  label, of_videos = "labels" if collection.multi_label else "label", collection.videos is not None
  info = tfds.core.DatasetInfo(
    builder=identity,
    description=f"Prepared by mixer-jax: {len(collection.classes)} classes.",
    features=features(collection.classes, collection.multi_label, collection.file_names, of_videos),
    supervised_keys=("video" if of_videos else "image", label),
  )
  info.set_file_format("array_record")
  info.set_splits(split_infos(directory, collection.name, lengths, num_bytes))
  info.write_to_directory(directory)
