"""Resizing to the bit of TensorFlow's, and the random box of its Inception crop.

The authors (big_vision, pp/ops_image.py) resize with tf.image.resize, bilinear or "area", in float32,
and truncate to uint8. Neither antialiases.
"""

import functools
import math
import threading
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

Image = UInt8[np.ndarray, "h w 3"]
Resized = UInt8[np.ndarray, "new_h new_w 3"]

_ROUNDING = np.float32(3e-4)  # generous: a few units in the last place of 255

# Repairing a value costs about this share of computing all of them anew.
_MOST_REPAIRS = 1 / 8


class _Taps(NamedTuple):
  """For each new pixel along one axis its two source pixels and the weight of the second."""

  first: Int[np.ndarray, "n"]
  second: Int[np.ndarray, "n"]
  weight: Float[np.ndarray, "n"]
  error: float  # how far TensorFlow's float32 positions are from the true ones, in pixels


@functools.lru_cache(maxsize=1024)
def _bilinear_taps(size: int, new_size: int) -> _Taps:
  """Returns the taps in float32, as TensorFlow computes them."""
  grid = np.arange(new_size, dtype=np.float32) + np.float32(0.5)
  position = grid * (np.float32(size) / np.float32(new_size)) - np.float32(0.5)
  floor = np.floor(position)
  first = np.maximum(floor, 0).astype(np.int64)
  second = np.minimum(np.ceil(position), size - 1).astype(np.int64)
  true = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
  return _Taps(first, second, position - floor, float(np.abs(position - true).max()))


def resize_bilinear(image: Image, height: int, width: int) -> Resized:
  """Bilinear with half-pixel centres and no antialiasing, truncated: TensorFlow's tf.image.resize.

  OpenCV's result, four times faster, is within a known distance of TensorFlow's. Where that distance
  leaves the truncated value open, TensorFlow's arithmetic is repeated.
  """
  if image.shape[:2] == (height, width):
    return image.copy()
  y, x = _bilinear_taps(image.shape[0], height), _bilinear_taps(image.shape[1], width)
  pixels, close, distance = _resize_closely(image, y, x)
  close += distance
  resized = close.astype(np.uint8)
  close -= 2 * distance
  # Conversion truncates, so what is below 0 becomes 0; nothing can reach 256.
  unsure = np.flatnonzero(resized != close.astype(np.uint8))
  if len(unsure) > _MOST_REPAIRS * resized.size:
    return _resize_as_tensorflow(pixels, y, x)
  resized.reshape(-1)[unsure] = _values_as_tensorflow(pixels, y, x, unsure)
  return resized


def resize_bilinear_fast(image: Image, height: int, width: int) -> Resized:
  """As resize_bilinear, but about one value in a thousand may be one level off."""
  y, x = _bilinear_taps(image.shape[0], height), _bilinear_taps(image.shape[1], width)
  _, close, _ = _resize_closely(image, y, x)
  close += _ROUNDING  # a flat area of value v may have come out just below v
  return close.astype(np.uint8)


def _resize_closely(
  image: Image, y: _Taps, x: _Taps
) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "new_h new_w 3"], np.float32]:
  """Returns the pixels in float32, OpenCV's resized ones, and their distance from TensorFlow's.

  OpenCV takes the true positions, TensorFlow rounded ones; neighbours differ by at most 255 levels.
  Both arrays are this thread's scratch, overwritten by the next call.
  """
  height, width = len(y.first), len(x.first)
  pixels = _scratch("pixels", image.shape)
  np.copyto(pixels, image)
  close = _scratch("close", (height, width, 3))
  cv2.resize(pixels, (width, height), dst=close, interpolation=cv2.INTER_LINEAR)
  return pixels, close, np.float32(255 * (x.error + y.error)) + _ROUNDING


_local = threading.local()


def _scratch(name: str, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
  """Returns a float32 array of this thread: fresh memory would cost more than the arithmetic."""
  size = math.prod(shape)
  buffer = getattr(_local, name, None)
  if buffer is None or buffer.size < size:
    buffer = np.empty(size, np.float32)
    setattr(_local, name, buffer)
  return buffer[:size].reshape(shape)


def _values_as_tensorflow(
  pixels: Float[np.ndarray, "h w 3"], y: _Taps, x: _Taps, places: Int[np.ndarray, "n"]
) -> UInt8[np.ndarray, "n"]:
  """Returns the resized values at `places`, which count rows, columns and channels."""
  row, column = np.divmod(places, 3 * len(x.first))
  column, channel = np.divmod(column, 3)
  values, stride = pixels.reshape(-1), 3 * pixels.shape[1]
  left, right = 3 * x.first[column] + channel, 3 * x.second[column] + channel
  wx = x.weight[column]

  def across(source_row: np.ndarray) -> np.ndarray:
    start = source_row * stride
    return _between(values[start + left], values[start + right], wx)

  return _between(across(y.first[row]), across(y.second[row]), y.weight[row]).astype(np.uint8)


def _resize_as_tensorflow(pixels: Float[np.ndarray, "h w 3"], y: _Taps, x: _Taps) -> Resized:
  """Repeats TensorFlow's arithmetic for all values: across, then down, each a + (b − a)·weight."""
  source = pixels.reshape(pixels.shape[0], -1)
  channel = np.arange(3)
  left, right = ((3 * place[:, None] + channel).ravel() for place in (x.first, x.second))
  rows = _between(source.take(left, 1), source.take(right, 1), np.repeat(x.weight, 3))
  resized = _between(rows.take(y.first, 0), rows.take(y.second, 0), y.weight[:, None])
  return resized.astype(np.uint8).reshape(len(y.first), -1, 3)


def _between(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
  """Returns a + (b − a)·weight, in place of b."""
  b -= a
  b *= weight
  b += a
  return b


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
  across = np.zeros((image.shape[0], width, 3), np.float32)
  for source, weight in zip(columns, wx, strict=True):
    across += pixels[:, source] * weight[:, None]
  total = np.zeros((height, width, 3), np.float32)
  for source, weight in zip(rows, wy, strict=True):
    total += across[source] * weight[:, None, None]
  return np.clip(total * (np.float32(1.0) / (scale_y * scale_x)), 0.0, 255.0).astype(np.uint8)


def resize_small_shape(height: int, width: int, size_px: int) -> tuple[int, int]:
  """Returns the size whose short side is `size_px`, the factor taken in float32."""
  factor = np.float32(size_px) / np.float32(min(height, width))
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
