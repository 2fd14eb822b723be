"""Small data sets for tests: a list in memory, and a real TFDS data set with damaged records."""

import cv2
import numpy as np
import tensorflow_datasets as tfds

from mixer_jax.data import pipeline


def png(number, size=12):
  """Returns a PNG of noise that depends on the number."""
  pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)
  return cv2.imencode(".png", pixels)[1].tobytes()


class Numbered:
  """Example i is a picture of its own with label i; some may hold other bytes."""

  def __init__(self, length, bad=None):
    self._length, self._bad = length, bad or {}

  def __len__(self):
    return self._length

  def __getitem__(self, i):
    return {"image": self._bad.get(i, None) or (b"" if i in self._bad else png(i)), "label": i}


def prepare(data_dir, name, features, splits):
  """Returns the directory of a data set that TFDS itself prepares from {split: (key, example) pairs}."""

  def info(builder):
    return tfds.core.DatasetInfo(builder=builder, features=tfds.features.FeaturesDict(features))

  members = {
    "VERSION": tfds.core.Version("1.0.0"),
    "_info": info,
    "_split_generators": lambda *_: splits,
    "_generate_examples": None,  # TFDS wants one
  }
  tfds.disable_progress_bar()
  with tfds.core.registered.skip_registration():  # a name may come again
    kind = type(name, (tfds.core.GeneratorBasedBuilder,), members)
  builder = kind(data_dir=str(data_dir), file_format="array_record")
  builder.download_and_prepare()
  return str(builder.data_dir)


def damaged(data_dir):
  """40 training and 20 test images in 10 classes; test images 3 and 11 are no images."""
  features = {
    "image": tfds.features.Image(shape=(None, None, 3)),
    "label": tfds.features.ClassLabel(num_classes=10),
  }
  train = [(i, {"image": png(i), "label": i % 10}) for i in range(40)]
  test = [
    (i, {"image": png(i)[: 60 if i in (3, 11) else None], "label": i % 10}) for i in range(20)
  ]
  return prepare(data_dir, "Damaged", features, {"train": train, "test": test})


def varied(data_dir):
  """12 images of 0 and 1 with lists of labels, another label, and a second image."""
  image = tfds.features.Image(shape=(4, 4, 1), encoding_format="png")
  features = {
    "image": image,
    "outline": image,
    "labels": tfds.features.Sequence(tfds.features.ClassLabel(names=["ant", "bee", "cow"])),
    "sex": tfds.features.ClassLabel(names=["female", "male"]),
  }
  examples = []
  for i in range(12):
    pixels = np.random.default_rng(i).integers(0, 2, (4, 4, 1), np.uint8)
    data = cv2.imencode(".png", pixels)[1].tobytes()
    example = {"image": data, "outline": data, "labels": list(range(i % 3)), "sex": i % 2}
    examples.append((i, example))
  return prepare(data_dir, "Varied", features, {"train": examples})


def split_of(directory, ops, **changes):
  """Returns the specification of a data set's training split with these operations."""
  fields = dict(
    dataset=str(directory), data_dir=None, split="train", label=None, num_classes=10, labels_per_image=1,
    on_bad_record="stop",
  )  # fmt: skip
  return pipeline.SplitSpec(**{**fields, "ops": ops, **changes})
