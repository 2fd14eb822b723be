"""The embedded data set: scikit-learn's handwritten digits as a TFDS data set.

1 797 real grey images of 8×8 pixels in 10 classes (Alpaydin and Kaynak, 1998, UCI), which scikit-learn
ships in its wheel. Of all images sorted by (class, position), every fifth is a test image: a fixed,
stratified split of 1 437 training and 360 test images.
"""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds


class Digits(tfds.core.GeneratorBasedBuilder):
  """TFDS builder of the digits, stored as 8×8 PNG."""

  name = "digits"
  VERSION = tfds.core.Version("1.0.0")
  CLASSES = range(10)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Handwritten digits of scikit-learn: 1 797 grey images of 8x8 pixels.",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
          "label": tfds.features.ClassLabel(names=[str(c) for c in self.CLASSES]),
        }
      ),
      supervised_keys=("image", "label"),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    del dl_manager  # nothing to download
    from sklearn import datasets  # takes two seconds, and is needed once

    images, labels = datasets.load_digits(return_X_y=True)
    order = np.argsort(labels, kind="stable")
    test = np.zeros(len(labels), bool)
    test[order[::5]] = True
    return {
      "train": self._generate_examples(images, labels, np.flatnonzero(~test)),
      "test": self._generate_examples(images, labels, np.flatnonzero(test)),
    }

  def _generate_examples(
    self, images: np.ndarray, labels: np.ndarray, chosen: np.ndarray
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (position, example); the data set's values 0..16 become 0..255."""
    for i in chosen[np.isin(labels[chosen], self.CLASSES)]:
      pixels = np.round(images[i].reshape(8, 8) * (255 / 16)).astype(np.uint8)
      yield int(i), {"image": cv2.imencode(".png", pixels)[1].tobytes(), "label": str(labels[i])}


class Digits0To4(Digits):
  """The digits 0 to 4 of both splits: what the small transfer experiment pre-trains on."""

  name = "digits_0_4"
  CLASSES = range(5)


class Digits5To9(Digits):
  """The digits 5 to 9 of both splits: what the small transfer experiment transfers to."""

  name = "digits_5_9"
  CLASSES = range(5, 10)


BUILDERS = {b.name: b for b in (Digits, Digits0To4, Digits5To9)}
