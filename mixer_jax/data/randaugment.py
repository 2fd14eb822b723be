"""RandAugment (arXiv:1909.13719) as used for MLP-Mixer (arXiv:2105.01601, table 4).

Every layer draws one of 16 operations uniformly and always applies it, all at one magnitude. Images
are RGB uint8, or grey, after crop and flip. Axes: h height, w width; a `curve` maps the 256 pixel values.

`level = magnitude / 10` is not clipped, so the paper's magnitudes 15 and 20 go beyond the range of
the original operations. The authors trained with the quirks of their code (big_vision,
`pp/archive/autoaugment.py`), hence they are kept here:

- Empty pixels, those warped in from outside and those cut out, become 128.
- Warps take the nearest pixel; halves round away from zero, so -0.5 is already outside.
- A positive rotation turns the content counterclockwise.
- Posterize keeps int(4 * level) bits: from magnitude 20 on it changes nothing.
- Solarize's threshold int(256 * level) wraps at 256: magnitudes 10 and 20 invert every pixel, 15
  solarizes at 128.
- Contrast's "mean" is the number of pixels / 256, at most 255: 196 at 224x224, whatever the image.
- Color, Contrast, Brightness and Sharpness use the factor 0.1 + 1.8 * level: magnitude 0 is not the
  identity, and above 5 they always exaggerate, never weaken.
- Whatever becomes uint8 is truncated, never rounded.
- Sharpness leaves the outermost pixels as they are.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Int, Int16, UInt8

Image = UInt8[np.ndarray, "h w c"]
Curve = UInt8[np.ndarray, "256"]
PixelMap = Int16[np.ndarray, "h w 2"]
Number = float | np.float32
Affine = tuple[tuple[Number, Number, Number], tuple[Number, Number, Number]]

_FILL = 128
_LEVELS = np.arange(256, dtype=np.uint8)
_UNIT_LEVELS = _LEVELS * np.float32(1 / 255)
_LUMA_CURVES = [_UNIT_LEVELS * np.float32(weight) for weight in (0.2989, 0.587, 0.114)]
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / np.float32(13)


class Draw(NamedTuple):
  """One drawn layer, enough to replay it at any magnitude.

  `argument` is `(sign,)` (+1 or -1) for Rotate, shears and translations, `(row, column)` of the centre for Cutout,
  and empty for the others.
  """

  name: str
  argument: tuple[int, ...] = ()


def draw(rng: np.random.Generator, height: int, width: int, *, num_layers: int) -> tuple[Draw, ...]:
  """Draws the layers for an image of `height` x `width` pixels, a pure function of `rng`'s state."""
  return tuple(_draw_layer(rng, height, width) for _ in range(num_layers))


def apply(image: Image, draws: Iterable[Draw], *, magnitude: float) -> Image:
  """Applies `draws` in order, never writing into `image`; without draws it returns `image` itself."""
  for name, argument in draws:
    # OpenCV drops the axis of one channel.
    image = _TABLE[name](image, magnitude / 10, *argument).reshape(image.shape)
  return image


def _draw_layer(rng: np.random.Generator, height: int, width: int) -> Draw:
  name = OPERATIONS[rng.integers(len(OPERATIONS))]
  if name in _SIGNED:
    return Draw(name, (1 - 2 * int(rng.integers(2)),))
  if name == "Cutout":
    return Draw(name, (int(rng.integers(height)), int(rng.integers(width))))
  return Draw(name)


# Operations that map every pixel value on its own: one curve, or one for each channel.


def _look_up(image: Image, *curves: Curve) -> Image:
  table = np.stack(curves, axis=-1)[np.newaxis]
  return cv2.LUT(image, table)


def _auto_contrast(image: Image, _level: float) -> Image:
  # One axis at a time: NumPy is much slower on both at once.
  darkest, brightest = image.min(axis=0).min(axis=0), image.max(axis=0).max(axis=0)
  return _look_up(image, *map(_stretching_curve, darkest, brightest))


def _stretching_curve(darkest: np.uint8, brightest: np.uint8) -> Curve:
  if darkest == brightest:
    return _LEVELS
  low, high = np.float32(darkest), np.float32(brightest)
  scale = np.float32(255) / (high - low)
  return np.clip(_LEVELS * scale - low * scale, 0, 255).astype(np.uint8)


def _equalize(image: Image, _level: float) -> Image:
  counts = [cv2.calcHist([image], [c], None, [256], [0, 256]) for c in range(image.shape[2])]
  return _look_up(image, *(_equalizing_curve(c.ravel().astype(np.int64)) for c in counts))


def _equalizing_curve(counts: Int[np.ndarray, "256"]) -> Curve:
  # The brightest value present is left out of the step, so that it lands on 255.
  step = (counts.sum() - counts[counts > 0][-1]) // 255
  if step == 0:
    return _LEVELS
  darker = np.cumsum(counts) - counts
  return np.minimum((darker + step // 2) // step, 255).astype(np.uint8)


def _posterize(image: Image, level: float) -> Image:
  # TensorFlow limits a uint8's shift to 0..7: at least one bit is kept and at most all.
  shift = min(max(8 - int(level * 4), 0), 7)
  return image & np.uint8(256 - (1 << shift))


def _solarize(image: Image, level: float) -> Image:
  threshold = int(level * 256) % 256
  curve = 255 - _LEVELS
  curve[:threshold] = _LEVELS[:threshold]
  return _look_up(image, curve)


def _solarize_add(image: Image, level: float) -> Image:
  curve = _LEVELS.copy()
  curve[:128] = np.minimum(np.arange(128) + int(level * 110), 255)
  return _look_up(image, curve)


def _contrast(image: Image, level: float) -> Image:
  height, width, _ = image.shape
  mean = min(height * width // 256, 255)
  return _look_up(image, _blend(np.uint8(mean), _LEVELS, level))


# Operations that look at the whole pixel or at its neighbours.


def _blend(
  poor: UInt8[np.ndarray, "..."] | np.uint8, rich: UInt8[np.ndarray, "..."], level: float
) -> UInt8[np.ndarray, "..."]:
  """`poor + factor * (rich - poor)`: weaker than `rich` below factor 1, exaggerated above."""
  start = poor.astype(np.float32)
  blended = rich - start
  blended *= np.float32(level * 1.8 + 0.1)
  blended += start
  return np.clip(blended, 0, 255, out=blended).astype(np.uint8)


def _color(image: Image, level: float) -> Image:
  if image.shape[2] == 1:  # as of three equal channels, whose luma is not exactly theirs
    return _color(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), level)[..., :1]
  red, green, blue = map(cv2.LUT, cv2.split(image), _LUMA_CURVES)
  # The half above 255 is the authors' way back from the unit interval to uint8.
  gray = ((red + green + blue) * np.float32(255.5)).astype(np.uint8)
  return _blend(cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB), image, level)


def _sharpness(image: Image, level: float) -> Image:
  smooth = image.copy()
  # In float32: its rounding errors decide the truncation wherever the exact mean is an integer.
  mean = cv2.filter2D(image.astype(np.float32), -1, _SMOOTH).reshape(image.shape)
  smooth[1:-1, 1:-1] = mean[1:-1, 1:-1]
  return _blend(smooth, image, level)


def _cutout(image: Image, level: float, row: int, column: int) -> Image:
  half = int(level * 40)
  cut = image.copy()
  cut[max(row - half, 0) : row + half, max(column - half, 0) : column + half] = _FILL
  return cut


# Operations that move pixels: output pixel (x, y) shows the input at affine @ (x, y, 1).


def _warp(image: Image, affine: Affine) -> Image:
  height, width, _ = image.shape
  source, no_fractions = _source_pixels(height, width, affine), np.empty(0)
  return cv2.remap(image, source, no_fractions, cv2.INTER_NEAREST, borderValue=(_FILL,) * 3)


# A run has one image size and one magnitude, hence at most ten maps: five operations, two signs.
@functools.lru_cache(maxsize=20)
def _source_pixels(height: int, width: int, affine: Affine) -> PixelMap:
  x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, np.newaxis]
  rows = np.array(affine, np.float32)
  exact = np.stack([a * x + b * y + c for a, b, c in rows], axis=-1).astype(np.float64)
  nearest = np.trunc(exact + np.copysign(0.5, exact))
  # The clip keeps far coordinates within int16; they stay outside of the image.
  return np.clip(nearest, -1, (width, height)).astype(np.int16)


def _rotate(image: Image, level: float, sign: int) -> Image:
  height, width, _ = image.shape
  angle = np.float32(sign * level * 30) * np.float32(math.pi / 180)
  cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
  right, bottom = np.float32(width - 1), np.float32(height - 1)
  # The offsets hold the middle of the image in place.
  x_offset = (right - (cos * right - sin * bottom)) / 2
  y_offset = (bottom - (sin * right + cos * bottom)) / 2
  return _warp(image, ((cos, -sin, x_offset), (sin, cos, y_offset)))


_SIGNED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
# (image, level, *argument) -> image. The order is the authors'.
_TABLE: dict[str, Callable[..., Image]] = {
  "AutoContrast": _auto_contrast,
  "Equalize": _equalize,
  "Invert": lambda image, _level: 255 - image,
  "Rotate": _rotate,
  "Posterize": _posterize,
  "Solarize": _solarize,
  "Color": _color,
  "Contrast": _contrast,
  "Brightness": lambda image, level: _look_up(image, _blend(np.uint8(0), _LEVELS, level)),
  "Sharpness": _sharpness,
  "ShearX": lambda image, level, sign: _warp(image, ((1.0, sign * level * 0.3, 0.0), (0.0, 1.0, 0.0))),
  "ShearY": lambda image, level, sign: _warp(image, ((1.0, 0.0, 0.0), (sign * level * 0.3, 1.0, 0.0))),
  "TranslateX": lambda image, level, sign: _warp(image, ((1.0, 0.0, sign * level * 100), (0.0, 1.0, 0.0))),
  "TranslateY": lambda image, level, sign: _warp(image, ((1.0, 0.0, 0.0), (0.0, 1.0, sign * level * 100))),
  "Cutout": _cutout,
  "SolarizeAdd": _solarize_add,
}  # fmt: skip
OPERATIONS = tuple(_TABLE)
