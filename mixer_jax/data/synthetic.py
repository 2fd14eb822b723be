"""A made-up data set of any size, for benchmarks and for trying a configuration without its data.

Its images are real JPEG files of 500×375 pixels and about 80 KB, so that decoding them costs what
decoding photos costs; there are 64 of them, and their labels are random. They are also the 64 frames of each of its
videos. Nothing is kept on a disk.
"""

import functools
from typing import Any

import cv2
import numpy as np

from mixer_jax.data import sources

NUM_IMAGES = 64
HEIGHT_PX, WIDTH_PX = 375, 500


@functools.lru_cache(maxsize=NUM_IMAGES)
def make_image(number: int) -> bytes:
  """Returns the JPEG of a scene of blurred and sharp noise, a function of its number."""
  rng = np.random.default_rng(number)
  scene = np.zeros((HEIGHT_PX, WIDTH_PX, 3), np.float32)
  for cells, amplitude in ((4, 90), (16, 40), (64, 20), (375, 14)):
    noise = rng.normal(scale=amplitude, size=(cells, cells * 4 // 3, 3)).astype(np.float32)
    scene += cv2.resize(noise, (WIDTH_PX, HEIGHT_PX), interpolation=cv2.INTER_CUBIC)
  pixels = np.clip(scene + 128, 0, 255).astype(np.uint8)
  return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()


class Photos:
  """Example i is image i mod 64, or the video that begins with it, with random labels that belong to i."""

  def __init__(self, num_examples: int, num_classes: int, labels_per_image: int, *, videos: bool):
    self._num_examples, self._videos = num_examples, videos
    self._num_classes, self._labels_per_image = num_classes, labels_per_image

  def __len__(self) -> int:
    return self._num_examples

  def __getitem__(self, index: int) -> dict[str, Any]:
    rng = np.random.default_rng([index, 0])
    if self._labels_per_image == 1:
      label = rng.integers(self._num_classes)
    else:
      count = rng.integers(1, self._labels_per_image + 1)
      label = rng.integers(self._num_classes, size=count)
    frames = [
      make_image((index + i) % NUM_IMAGES) for i in range(NUM_IMAGES if self._videos else 1)
    ]
    return {"image": frames if self._videos else frames[0], "label": label}


def open_source(
  num_examples: int, num_classes: int, labels_per_image: int, *, videos: bool = False
) -> sources.Source:
  """Returns the data set as a source; its split has no name."""
  photos = Photos(num_examples, num_classes, labels_per_image, videos=videos)
  return sources.Source("synthetic", photos, num_classes=num_classes)
