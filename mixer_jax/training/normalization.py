"""What the model sees of an image: its 8-bit levels, normalised on the device.

Images come as uint8, a quarter of the bytes of float32.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from mixer_jax.errors import InputError

Normalize = Callable[[Any], Any]  # uint8 (…, c) -> float32 (…, c)

# Means, then deviations, of pixel / 255: one of each for all channels, or for each.
NORMALIZATIONS = {
  "unit": (0.5, 0.5),
  "zero_one": (0.0, 1.0),
  "imagenet": (0.485, 0.456, 0.406, 0.229, 0.224, 0.225),
}

# 2/255 as a sum: 8-bit levels times the first part are exact in float32, the second is the rest.
_RANGE_HIGH = np.float32(32897 / 2**22)
_RANGE_LOW = np.float32(2 / 255 - 32897 / 2**22)


def make_normalize(normalize: str | Sequence[float | int], channels: int) -> Normalize:
  """Returns image uint8 (…, c) -> float32 (…, c): (image / 255 − mean) / deviation.

  Args:
    normalize: a name in NORMALIZATIONS; or numbers, or a text of them with commas between: means, then
      deviations, one of each for all channels or for each.
    channels: c.

  Raises:
    InputError: neither, or not for so many channels, or a deviation that is not positive.
  """
  means, deviations = moments(normalize, channels)
  return unit if normalize == "unit" else _affine(1 / (255 * deviations), -means / deviations)


def formula(normalize: str | Sequence[float | int], channels: int) -> str:
  """Returns the normalisation as a formula, for those who must compute it themselves."""
  means, deviations = moments(normalize, channels)
  return f"(pixel / 255 - {means.tolist()}) / {deviations.tolist()}"


def moments(normalize: str | Sequence[float | int], channels: int) -> np.ndarray:
  """Returns means and deviations of pixel / 255: float64 (2, c)."""
  numbers: Any = normalize
  if isinstance(normalize, str):
    numbers = NORMALIZATIONS.get(normalize, normalize.split(","))
  try:
    moments = np.array([float(x) for x in numbers]).reshape(2, -1)
    moments = np.broadcast_to(moments, (2, channels))
  except ValueError:
    moments = np.full((2, channels), np.nan)
  if not (np.isfinite(moments).all() and (moments[1] > 0).all()):
    raise InputError(
      f"normalize is {normalize!r}; it must be one of {', '.join(NORMALIZATIONS)}, or means and then "
      f"positive deviations of pixel / 255: {2 * channels} numbers for {channels} channels, or 2 for all. "
      "imagenet has those of 3 channels."
    )
  return moments


def unit(image: UInt8[Array, "*b c"]) -> Float[Array, "*b c"]:
  """Maps 0..255 to −1..1: −1 + (x/255)·2 (big_vision, pp/ops_image.py: value_range), to the bit.

  Written as a division, XLA multiplies by the rounded 1/255 and 205 of the 256 levels are off.
  """
  x = image.astype(jnp.float32)
  return -1.0 + (x * _RANGE_HIGH + x * _RANGE_LOW)


def _affine(scale: np.ndarray, offset: np.ndarray) -> Normalize:
  """Returns x -> scale·x + offset, as exact as float32 holds it even where both terms cancel.

  Scale and offset are sums: the first parts are multiples of one power of two, so coarse that their
  arithmetic is exact for 8-bit levels; the second parts are the rest.
  """
  step = 2.0 ** np.ceil(np.log2(255 * scale + np.abs(offset)) - 23)
  scale_high, offset_high = np.round(scale / step) * step, np.round(offset / step) * step
  high = np.float32(scale_high), np.float32(offset_high)
  low = np.float32(scale - scale_high), np.float32(offset - offset_high)

  def normalize(image: UInt8[Array, "*b c"]) -> Float[Array, "*b c"]:
    x = image.astype(jnp.float32)
    return (x * high[0] + high[1]) + (x * low[0] + low[1])

  return normalize
