"""Small data sets for tests: a list in memory, and a real TFDS data set with damaged records."""

import cv2
import numpy as np
import tensorflow_datasets as tfds


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


class Damaged(tfds.core.GeneratorBasedBuilder):
  """40 training and 20 test images in 10 classes; test images 3 and 11 are no images."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = {
      "image": tfds.features.Image(shape=(None, None, 3)),
      "label": tfds.features.ClassLabel(num_classes=10),
    }
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    del dl_manager
    return {"train": self._generate_examples(40, ()), "test": self._generate_examples(20, (3, 11))}

  def _generate_examples(self, count, bad):
    for i in range(count):
      yield i, {"image": png(i)[:60] if i in bad else png(i), "label": i % 10}


def prepare(builder, data_dir):
  """Returns the directory of the prepared data set."""
  made = builder(data_dir=str(data_dir), file_format="array_record")
  tfds.disable_progress_bar()
  made.download_and_prepare()
  return str(made.data_dir)


class Varied(tfds.core.GeneratorBasedBuilder):
  """12 images of 0 and 1 with lists of labels, another label, and a second image."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    names = ["ant", "bee", "cow"]
    features = {
      "image": tfds.features.Image(shape=(4, 4, 1), encoding_format="png"),
      "outline": tfds.features.Image(shape=(4, 4, 1), encoding_format="png"),
      "labels": tfds.features.Sequence(tfds.features.ClassLabel(names=names)),
      "sex": tfds.features.ClassLabel(names=["female", "male"]),
    }
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    del dl_manager
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i in range(12):
      pixels = np.random.default_rng(i).integers(0, 2, (4, 4, 1), np.uint8)
      encoded = cv2.imencode(".png", pixels)[1].tobytes()
      yield i, {
        "image": encoded, "outline": encoded, "labels": list(range(i % 3)), "sex": i % 2,
      }  # fmt: skip
