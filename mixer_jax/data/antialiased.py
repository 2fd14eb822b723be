"""Pillow's antialiasing resize as machine code: import this only where a photo is resized (see bilinear.py).

The whole numbers of Pillow 13 (Resample.c), in a sixth of its time. One side is resized after the other, with weights
of 22 binary places and values rounded to uint8 in between. The loops run along rows, where a processor works on
many values at once; for the width the image is transposed.
"""

import cv2
import numba
import numpy as np
from jaxtyping import Int, UInt8

Image = UInt8[np.ndarray, "h w c"]

_PLACES = 22
_HALF = 1 << (_PLACES - 1)


def resize(
  image: Image, height: int, width: int, *, cubic: bool
) -> UInt8[np.ndarray, "new_h new_w c"]:
  """Resizes bicubically (a = −0.5) or bilinearly; a side that keeps its length keeps its values.

  The width comes first, unless the height loses more than twice as many pixels: so Pillow from 13 on. Before,
  the width always came first, which may change a value by a level.
  """
  if image.shape[0] - height > max(0, 2 * (image.shape[1] - width)):
    return _resize_width(_resize_height(image, height, cubic), width, cubic)
  return _resize_height(_resize_width(image, width, cubic), height, cubic)


def _resize_width(image: Image, width: int, cubic: bool) -> UInt8[np.ndarray, "h new_w c"]:
  if image.shape[1] == width:
    return image
  turned = cv2.transpose(image).reshape(image.shape[1], image.shape[0], image.shape[2])
  return cv2.transpose(_resize_height(turned, width, cubic)).reshape(len(image), width, -1)


def _resize_height(image: Image, height: int, cubic: bool) -> UInt8[np.ndarray, "new_h w c"]:
  if image.shape[0] == height:
    return image
  rows = np.ascontiguousarray(image).reshape(len(image), -1)
  resized = np.empty((height, rows.shape[1]), np.uint8)
  _resize_rows(rows, resized, cubic)
  return resized.reshape(height, *image.shape[1:])


@numba.njit(nogil=True, error_model="numpy")
def _resize_rows(
  rows: UInt8[np.ndarray, "h wc"], resized: UInt8[np.ndarray, "new_h wc"], cubic: bool
) -> None:
  scale = len(rows) / len(resized)
  stretch = max(scale, 1.0)
  support = (2.0 if cubic else 1.0) * stretch
  weights = np.empty(int(np.ceil(support)) * 2 + 1, np.float64)
  sums = np.empty(rows.shape[1], np.int32)
  for i in range(len(resized)):
    centre = (i + 0.5) * scale
    first = max(int(centre - support + 0.5), 0)
    taps = min(int(centre + support + 0.5), len(rows)) - first
    _weigh(weights[:taps], first - centre + 0.5, stretch, cubic)
    sums[:] = _HALF
    for n in range(taps):
      _add(sums, rows[first + n], _whole(weights[n]))
    _round(sums, resized[i])


@numba.njit(nogil=True, error_model="numpy")
def _weigh(weights: np.ndarray, start: float, stretch: float, cubic: bool) -> None:
  total = 0.0
  for n in range(len(weights)):
    x = abs((n + start) * (1.0 / stretch))
    if not cubic:
      weights[n] = max(1.0 - x, 0.0)
    elif x < 1.0:
      weights[n] = (1.5 * x - 2.5) * x * x + 1
    elif x < 2.0:
      weights[n] = (((x - 5) * x + 8) * x - 4) * -0.5
    else:
      weights[n] = 0.0
    total += weights[n]
  for n in range(len(weights)):
    if total != 0.0:
      weights[n] /= total


@numba.njit(nogil=True, error_model="numpy")
def _whole(weight: float) -> np.int32:
  return np.int32(weight * (1 << _PLACES) + (0.5 if weight >= 0 else -0.5))


@numba.njit(nogil=True, error_model="numpy")
def _add(sums: Int[np.ndarray, "n"], row: UInt8[np.ndarray, "n"], weight: np.int32) -> None:
  for j in range(len(sums)):
    sums[j] += row[j] * weight


@numba.njit(nogil=True, error_model="numpy")
def _round(sums: Int[np.ndarray, "n"], row: UInt8[np.ndarray, "n"]) -> None:
  for j in range(len(sums)):
    row[j] = min(max(sums[j] >> _PLACES, 0), 255)
