"""TFDS splits as random-access sources of encoded images or videos, read without TensorFlow.

A video is the feature "video", a sequence of encoded frames.

Data sets must be prepared as ArrayRecord; `python -m mixer_jax.tools.prepare NAME` does it. Only the
embedded digits are prepared on first use.
"""

import hashlib
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from absl import logging
from jaxtyping import Int

from mixer_jax import configuration
from mixer_jax.data import builders, datasets, decode
from mixer_jax.errors import BadRecordError, InputError

KEPT_BYTES = 1 << 28  # of a split's pixels, the most that each process keeps

_IMAGES = ("image", "video")  # features, the first that there is
_UNREADABLE = (OSError, RuntimeError, ValueError, TypeError, IndexError, KeyError, OverflowError)


class Source:
  """A split: `source[i]` is an encoded example; picklable, opened anew in each process.

  Attributes:
    name: for messages.
    num_classes: of the label. None if unknown.
    class_names: in the order of the labels that it gives. None if unknown.
  """

  def __init__(
    self,
    name: str,
    data_source: Any,
    *,
    num_classes: int | None = None,
    class_names: list[str] | None = None,
    label: str = "label",
    image: str = "image",
    image_scale: int = 1,
  ):
    self.name, self.num_classes, self.class_names = name, num_classes, class_names
    self._data_source, self._label, self._image_scale = data_source, label, image_scale
    self._image = image  # the feature that holds it
    # The data's number of a class -> the model's.
    self._numbers: Int[np.ndarray, " k"] | None = None
    self._kept: dict[int, dict[str, Any]] = {}
    self._kept_bytes = 0

  def __getstate__(self) -> dict[str, Any]:
    return vars(self) | {"_kept": {}, "_kept_bytes": 0}

  def __len__(self) -> int:
    return len(self._data_source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Returns {"image": bytes, of a video a list of bytes, "label": int32 (), or (n,) where images have several}.

    Raises:
      BadRecordError: the record or its label is damaged.
      InputError: the storage failed, which is no fault of the record.
    """
    try:
      example = self._read(index)
      if self._image_scale != 1:
        example["image"] = _rescale(example["image"], self._image_scale)
      return example | {"label": self._numbered(example["label"])}
    except _UNREADABLE as e:
      self._raise_if_storage(e)
      raise BadRecordError(f"unreadable: {builders.first_line(e)}") from e

  def decoded(self, index: int, decode: Callable[[bytes], np.ndarray]) -> dict[str, Any]:
    """Returns `self[index]` with its image's pixels, which are kept in this process up to KEPT_BYTES in all.

    Args:
      index: of the example.
      decode: the same in every call.
    """
    if example := self._kept.get(index):
      return example
    example = self[index]
    example["image"] = pixels = decode(example["image"])
    if self._kept_bytes + pixels.nbytes <= KEPT_BYTES:
      self._kept[index] = example
      self._kept_bytes += pixels.nbytes
    return example

  def number_classes_as(self, names: Sequence[str]) -> None:
    """Gives labels the numbers that a model has for the classes of these names, and says so if they are others.

    Nothing is done where data or model have no names.

    Raises:
      InputError: the data have a class that the model does not have.
    """
    own, wanted = self.class_names or [], list(names)
    if not own or not wanted or own == wanted:
      return
    if not set(own) <= set(wanted) or len(set(wanted)) < len(wanted):
      raise InputError(
        f"{self.name} has other classes than the model: {_listed(own)}; the model's are {_listed(wanted)}. Choose "
        "data of these classes, name them alike, or train a new head (docs/finetune.md)."
      )
    logging.warning("%s: its classes are in another order; labels are matched by name", self.name)
    self._numbers = np.array([wanted.index(name) for name in own])
    self._kept, self._kept_bytes = {}, 0
    self.class_names, self.num_classes = wanted, len(wanted)

  def _numbered(self, label: np.ndarray) -> np.ndarray:
    if self._numbers is None:
      return label
    known = (label >= 0) & (label < len(self._numbers))
    return np.where(known, self._numbers[np.where(known, label, 0)], -1).astype(np.int32)

  def _raise_if_storage(self, error: Exception) -> None:
    """Raises InputError for an error of the operating system; ArrayRecord's says which call failed, and why."""
    if isinstance(error, OSError) or re.match(r"\w+\(\) failed: ", str(error)):
      raise InputError(
        f"{self.name} cannot be read, for the storage fails: {error}. Mend that, and give the same command again."
      ) from error

  def _read(self, index: int) -> dict[str, Any]:
    record = self._data_source[int(index)]
    compute = datasets.LABELS.get(self._label)
    label = record[self._label] if compute is None else compute(record)
    image = record[self._image]
    image = image if isinstance(image, bytes) else list(image)
    return {"image": image, "label": np.asarray(label, np.int32)}

  def fingerprint(self) -> tuple[str, ...]:
    """Returns short hashes of the first, the middle, the last and four other examples, as they are stored."""
    size = len(self)
    others = np.random.default_rng(0).integers(size, size=4)
    return tuple(self._hash(int(i)) for i in (0, size // 2, size - 1, *others))

  def _hash(self, index: int) -> str:
    try:
      example = self._read(index)
    except _UNREADABLE as e:
      self._raise_if_storage(e)
      return "unreadable"
    image, label = example["image"], example["label"].astype("<i4").tobytes()
    content = image if isinstance(image, bytes) else b"".join(image)
    return hashlib.sha256(content + label).hexdigest()[:8]


def _listed(names: Sequence[str]) -> str:
  shown = ", ".join(names[:10])
  return f"{shown} … ({len(names)} in all)" if len(names) > 10 else shown


def _rescale(png: bytes, factor: int) -> bytes:
  """Returns the PNG with its pixels multiplied, for data sets whose white is not 255."""
  plain = np.frombuffer(decode.essential_png(png), np.uint8)
  pixels = cv2.imdecode(plain, cv2.IMREAD_UNCHANGED)
  if pixels is None:
    raise ValueError("damaged PNG")
  return cv2.imencode(".png", pixels * np.uint8(factor))[1].tobytes()


def open_source(*, dataset: str, data_dir: str | None, split: str, label: str | None) -> Source:
  """Opens a split of a prepared TFDS data set.

  Args:
    dataset: name of `datasets.DATASETS`, or TFDS's ("imagenet_v2/matched-frequency:3.0.0"), or the
      directory of a prepared version, which starts with / or . or ~ or a scheme.
    data_dir: where TFDS keeps its data. Default: $TFDS_DATA_DIR or ~/tensorflow_datasets.
    split: one of `describe`, or a split in TFDS's syntax, with sub-splits: "train[:99%]".
    label: feature of the label. Default: the table's, else "label" or "labels".

  Raises:
    InputError: unknown data set, not prepared or not as ArrayRecord, unknown split, or without an image
      or the label.
  """
  entry = datasets.find(dataset)
  builder = _open_builder(entry.tfds, data_dir)
  features = _features(builder, dataset)
  name = _label_name(label or entry.label, features, dataset)
  num_classes, class_names = entry.num_classes, None
  if name not in datasets.LABELS:
    num_classes, class_names = _classes(features[name])
  known = {k: s.tfds for k, s in entry.splits.items()} or datasets.splits_of(builder.info.splits)
  return Source(
    f"{dataset} {split}",
    _data_source(builder, dataset, known.get(split, split)),
    num_classes=num_classes,
    class_names=class_names,
    label=name,
    image=next(k for k in _IMAGES if k in set(features)),
    image_scale=entry.image_scale,
  )


def _open_builder(dataset: str, data_dir: str | None) -> Any:
  kept = data_dir or os.environ.get("TFDS_DATA_DIR", "")
  if "://" in kept and not builders.is_directory(dataset):
    raise InputError(
      f"data_dir {kept}: data sets in a bucket are not found by name. Give the data set's own directory, "
      f"{kept}/{dataset}/VERSION, as the data set (docs/data.md)."
    )
  try:
    if dataset in builders.EMBEDDED:
      builders.prepare(dataset, data_dir)
    builder = builders.find(dataset, data_dir)
  except OSError as e:
    raise InputError(f"data set {dataset!r} cannot be opened or prepared: {e}") from e
  if not builder.info.splits:
    where = builder.data_dir
    raise InputError(
      f"data set {dataset!r} is not prepared in {where}. Prepare it with\n"
      f"  python -m mixer_jax.tools.prepare {dataset}"
      + (f" {shlex.quote(f'--data_dir={data_dir}')}" if data_dir else "")
    )
  return builder


def _features(builder: Any, dataset: str) -> Any:
  features = builder.info.features
  if features is None or not set(features) & set(_IMAGES):
    raise InputError(f"data set {dataset!r} has no feature 'image' or 'video': {features}.")
  return features


def _label_name(wanted: str | None, features: Any, dataset: str) -> str:
  """Returns the name of the feature, or of the function, that gives the label."""
  if wanted in datasets.LABELS:
    return str(wanted)
  for name in [wanted] if wanted else ["label", "labels"]:
    if name in set(features):
      return name
  raise InputError(
    f"data set {dataset!r} has no feature {wanted or 'label'!r}."
    + configuration.nearest(wanted or "label", features)
    + " The configuration's key is label."
  )


def _classes(feature: Any) -> tuple[int | None, list[str] | None]:
  """Returns number and names of a label's classes; of a sequence, those of its elements."""
  feature = getattr(feature, "feature", feature)
  names = getattr(feature, "names", None)
  return getattr(feature, "num_classes", None), list(names) if names else None


def _data_source(builder: Any, dataset: str, split: str) -> Any:
  """Returns TFDS's data source, its images still encoded; raises InputError."""
  import tensorflow_datasets as tfds  # Takes seconds to import, and only opening a source needs it.

  raw = tfds.decode.DeserializeMethod.RAW_BYTES
  try:
    records = builder.as_data_source(split=split, deserialize_method=raw)
    return Records(records, builder.info.features.get_serialized_info())
  except NotImplementedError as e:
    raise InputError(
      f"data set {dataset!r} in {builder.data_dir} is not stored as ArrayRecord; prepare it anew with "
      f"python -m mixer_jax.tools.prepare {dataset} --data_dir=ANOTHER_DIRECTORY"
    ) from e
  except (RuntimeError, OSError) as e:
    raise InputError(
      f"data set {dataset!r} in {builder.data_dir} is damaged: {builders.first_line(e)}"
    ) from e
  except (ValueError, AssertionError) as e:
    known = configuration.nearest(split, builder.info.splits)
    raise InputError(f"split {split!r} of data set {dataset!r} cannot be read: {e}.{known}") from e


class Records:
  """A split's records as they are stored, their images encoded: TFDS's decoding of features takes longer than reading them.

  `records[i][name]` is the value of a feature, or its values in a row; names are as stored: "objects/size".

  Args:
    encoded: data source of serialized tf.train.Example.
    stored: name of a feature -> TFDS's description of what is stored of it.
  """

  def __init__(self, encoded: Any, stored: Mapping[str, Any]):
    self._encoded = encoded
    self._single = {name for name, info in stored.items() if getattr(info, "shape", None) == ()}

  def __len__(self) -> int:
    return len(self._encoded)

  def __getitem__(self, index: int) -> Mapping[str, Any]:
    from google.protobuf import message
    from tensorflow_datasets.proto import tf_example_pb2

    try:
      example = tf_example_pb2.Example.FromString(self._encoded[index])
    except message.DecodeError as e:
      raise ValueError("not a tf.train.Example") from e
    return {name: self._value(name, f) for name, f in example.features.feature.items()}

  def _value(self, name: str, feature: Any) -> Any:
    kind = feature.WhichOneof("kind")
    values = getattr(feature, kind).value if kind else []
    if name not in self._single:
      return values
    (value,) = values
    return value


def describe(dataset: str, data_dir: str | None = None) -> datasets.Dataset:
  """Returns the table's entry, or what a prepared data set's own description says (datasets.splits_of).

  Raises:
    InputError: not in the table and not prepared.
  """
  if dataset in datasets.DATASETS:
    return datasets.DATASETS[dataset]
  builder = _open_builder(dataset, data_dir)
  features = _features(builder, dataset)
  label = _label_name(None, features, dataset)
  found = builder.info.splits
  splits = {
    k: datasets.Split(v, found[v].num_examples) for k, v in datasets.splits_of(found).items()
  }
  num_classes, _ = _classes(features[label])
  several = hasattr(features[label], "feature")  # a sequence
  return datasets.Dataset(
    tfds=dataset,
    num_classes=num_classes,
    splits=splits,
    label=label,
    labels_per_image=datasets.MANY_LABELS if several else 1,
  )


def class_names(*, dataset: str, data_dir: str | None, label: str | None) -> list[str]:
  """Returns the names of a data set's classes, [] if it has none; the data need not be prepared.

  Args:
    dataset, data_dir, label: see open_source.

  Raises:
    InputError: unknown data set or label.
  """
  entry = datasets.find(dataset)
  features = _features(builders.find(entry.tfds, data_dir), dataset)
  name = _label_name(label or entry.label, features, dataset)
  return [] if name in datasets.LABELS else _classes(features[name])[1] or []
