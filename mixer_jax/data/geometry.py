"""Resizing to the bit of TensorFlow's, and the random box of its Inception crop.

The authors (big_vision, pp/ops_image.py) resize with tf.image.resize, bilinear or "area", in float32,
and truncate to uint8. Neither antialiases.
"""

import functools
import math

import cv2
import numpy as np
from jaxtyping import Float, UInt8, UInt32

Image = UInt8[np.ndarray, "h w c"]
Resized = UInt8[np.ndarray, "new_h new_w c"]


def resize_bilinear(image: Image, height: int, width: int) -> Resized:
  """Bilinear with half-pixel centres and no antialiasing, truncated: TensorFlow's tf.image.resize."""
  if image.shape[:2] == (height, width):
    return image.copy()
  from mixer_jax.data import bilinear  # costs a second, which a run on small images need not pay

  channels = image.shape[2]
  resized = np.empty((height, width, channels), np.uint8)
  y = bilinear.Taps(*_bilinear_taps(image.shape[0], height, 1))
  x = bilinear.Taps(*_bilinear_taps(image.shape[1], width, channels))
  rows = np.ascontiguousarray(image).reshape(image.shape[0], -1)
  bilinear.resize_rows(rows, y, x, resized.reshape(height, -1))
  return resized


@functools.lru_cache(maxsize=512)
def _bilinear_taps(
  size: int, new_size: int, channels: int
) -> tuple[UInt32[np.ndarray, "n"], UInt32[np.ndarray, "n"], Float[np.ndarray, "n"]]:
  """Returns the fields of bilinear.Taps, positions and weights in float32, as TensorFlow computes them."""
  grid = np.arange(new_size, dtype=np.float32) + np.float32(0.5)
  position = grid * (np.float32(size) / np.float32(new_size)) - np.float32(0.5)
  floor = np.floor(position)
  first = np.maximum(floor, 0).astype(np.uint32)
  second = np.minimum(np.ceil(position), size - 1).astype(np.uint32)
  channel = np.arange(channels, dtype=np.uint32)
  first, second = ((channels * n[:, None] + channel).ravel() for n in (first, second))
  return first, second, np.repeat(position - floor, channels)


def resize_bilinear_fast(image: Image, height: int, width: int) -> Resized:
  """OpenCV's in whole numbers: rounded where the exact one truncates, so that a third is a level higher."""
  resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
  return resized.reshape(height, width, -1)  # OpenCV drops the axis of one channel


def _area_taps(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.float32]:
  """Returns (taps, new_size) source pixels and their float32 weights, and the footprint's length."""
  scale = np.float32(size) / np.float32(new_size)
  start = np.arange(new_size, dtype=np.float32) * scale
  end = (np.arange(new_size, dtype=np.float32) + np.float32(1)) * scale
  first = np.floor(start).astype(np.int64)
  taps = int(np.max(np.ceil(end).astype(np.int64) - first))
  source = first + np.arange(taps)[:, None]
  low, high = source.astype(np.float32), (source + 1).astype(np.float32)
  # A pixel that covers the whole footprint weighs `scale`: end − start would round otherwise.
  covered = np.where(high > end, scale, high - start)
  weight = np.where(low < start, covered, np.where(high > end, end - low, np.float32(1)))
  weight = np.maximum(weight, np.float32(0))  # taps past the end of a footprint
  return np.minimum(source, size - 1), weight, scale


def resize_area(image: Image, height: int, width: int) -> Resized:
  """Averages over each new pixel's exact footprint, also when enlarging, truncated.

  Sums tap by tap in float32 and normalises last, in the order of TensorFlow's ResizeArea.
  """
  columns, wx, scale_x = _area_taps(image.shape[1], width)
  rows, wy, scale_y = _area_taps(image.shape[0], height)
  pixels = image.astype(np.float32)
  across = np.zeros((image.shape[0], width, image.shape[2]), np.float32)
  for source, weight in zip(columns, wx, strict=True):
    across += pixels[:, source] * weight[:, None]
  total = np.zeros((height, width, image.shape[2]), np.float32)
  for source, weight in zip(rows, wy, strict=True):
    total += across[source] * weight[:, None, None]
  return np.clip(total * (np.float32(1.0) / (scale_y * scale_x)), 0.0, 255.0).astype(np.uint8)


def resize_small_shape(height: int, width: int, at_least: tuple[int, int]) -> tuple[int, int]:
  """Returns the smallest size of this shape that is `at_least` as high and wide, the factor taken in float32."""
  factor = max(
    np.float32(least) / np.float32(n) for least, n in zip(at_least, (height, width), strict=True)
  )
  return int(np.round(np.float32(height) * factor)), int(np.round(np.float32(width) * factor))


def sample_box(
  rng: np.random.Generator, height: int, width: int, area: tuple[float, float]
) -> tuple[int, int, int, int]:
  """Draws an Inception crop (y, x, height, width), as TensorFlow's sample_distorted_bounding_box.

  The aspect ratio is uniform in 0.75–1.33; the height is uniform among those whose box has an
  admissible area and fits, so areas are not uniform. After 100 misses: the whole image.

  Args:
    area: smallest and largest share of the image's area.
  """
  smallest, largest = (a * height * width for a in area)
  for _ in range(100):
    ratio = rng.uniform(0.75, 1.33)
    low, high = (round(math.sqrt(a / ratio)) for a in (smallest, largest))
    if round(high * ratio) > width:
      high = int((width + 0.5 - 1e-7) / ratio)
      high -= round(high * ratio) > width
    high = min(high, height)
    h = int(rng.integers(low, high + 1)) if low < high else high
    w = round(h * ratio)
    h += w * h < smallest
    h -= w * h > largest
    w = round(h * ratio)
    if smallest <= w * h <= largest and 0 < w <= width and 0 < h <= height:
      y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
      return int(y), int(x), h, w
  return 0, 0, height, width
