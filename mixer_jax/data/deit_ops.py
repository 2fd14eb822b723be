"""Operations of the DeiT recipe on pixels: the bytes of Pillow as torchvision and timm call it.

Resizing antialiases, unlike that of the authors of MLP-Mixer (geometry.py). A sequence of `Draw`, in the order of
application, replays what RandAugment or the colour jitter drew.
"""

import math
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import numpy as np
import PIL.Image
from jaxtyping import UInt8
from PIL import ImageEnhance, ImageOps

from mixer_jax.data.decode import Box

Image = UInt8[np.ndarray, "h w c"]
Resized = UInt8[np.ndarray, "new_h new_w c"]
Filter = Literal["bilinear", "bicubic"]
Interpolation = Literal["bilinear", "bicubic", "random"]  # "random": either filter, drawn anew

FILTERS: tuple[Filter, Filter] = ("bilinear", "bicubic")
_NARROWEST, _WIDEST = 3 / 4, 4 / 3  # crops, width / height
_LOG_RATIOS = (math.log(_NARROWEST), math.log(_WIDEST))
_FILL = {1: 117, 3: (124, 116, 104)}  # ImageNet's mean colour, and its luma for grey images


class Draw(NamedTuple):
  """One operation as it was drawn.

  `arguments` follow the image in the operation's call. AutoContrast, Equalize and Invert have none. Rotate takes
  degrees, counterclockwise, shears a slope, and translations a share of the side, each with the filter. Posterize
  takes the bits to keep, Solarize the threshold, SolarizeAdd what is added, and the others a factor.
  """

  name: str
  arguments: tuple[float | str, ...] = ()


def apply(image: Image, draws: Iterable[Draw]) -> Image:
  """Applies `draws` to an RGB or grey image, in order, without writing into it."""
  picture = _to_pillow(image)
  for name, arguments in draws:
    picture = _TABLE[name](picture, *arguments)
  return _from_pillow(picture)


def draw_filter(rng: np.random.Generator, interpolation: Interpolation) -> Filter:
  """Returns the filter, which only "random" draws."""
  return FILTERS[rng.integers(2)] if interpolation == "random" else interpolation


def draw_jitter(rng: np.random.Generator, strength: float) -> tuple[Draw, ...]:
  """Draws torchvision's ColorJitter without hue: three factors in max(0, 1 − strength) … 1 + strength, in random order."""
  order = rng.permutation(3)
  factors = rng.uniform(max(0.0, 1 - strength), 1 + strength, 3)
  names = ("Brightness", "Contrast", "Color")
  return tuple(Draw(names[i], (float(factors[i]),)) for i in order)


def sample_box(rng: np.random.Generator, height: int, width: int, area: tuple[float, float]) -> Box:
  """Draws a crop as timm's RandomResizedCropAndInterpolation (data/transforms.py) and torchvision's.

  The area is uniform, the logarithm of the aspect ratio is uniform in 3/4 … 4/3. After ten misses: the largest central
  crop of an admissible ratio.

  Args:
    area: smallest and largest share of the image's area.
  """
  for _ in range(10):
    target = rng.uniform(*area) * (height * width)
    ratio = math.exp(rng.uniform(*_LOG_RATIOS))
    h, w = round(math.sqrt(target / ratio)), round(math.sqrt(target * ratio))
    if 0 < h <= height and 0 < w <= width:
      return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
  h, w = min(height, round(width / _NARROWEST)), min(width, round(height * _WIDEST))
  return (height - h) // 2, (width - w) // 2, h, w


def covering_shape(height: int, width: int, at_least: tuple[int, int]) -> tuple[int, int]:
  """Returns the smallest size of this shape that is `at_least` as high and wide, the longer side cut to whole pixels.

  Source: torchvision's Resize of the short side, for squares.
  """
  high, wide = at_least
  if height * wide <= width * high:
    return high, int(high * width / height)
  return int(wide * height / width), wide


def resize(image: Image, size: tuple[int, int], filter_name: Filter) -> Resized:
  """Resizes to `size` (height, width) as Pillow, each channel on its own: alpha is not premultiplied.

  Pillow itself would premultiply an image of its mode RGBA; nothing else in this package does.
  """
  from mixer_jax.data import antialiased  # costs a second or two, which other runs need not pay

  return antialiased.resize(image, *size, cubic=filter_name == "bicubic")


# --- Pillow's images --------------------------------------------------------------------------------

_FILTERS = {"bilinear": PIL.Image.Resampling.BILINEAR, "bicubic": PIL.Image.Resampling.BICUBIC}


def _to_pillow(image: Image) -> PIL.Image.Image:
  return PIL.Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def _from_pillow(picture: PIL.Image.Image) -> Image:
  return np.asarray(picture).reshape(picture.height, picture.width, -1)


def _rotate(picture: PIL.Image.Image, degrees: float, filter_name: Filter) -> PIL.Image.Image:
  return picture.rotate(degrees, _FILTERS[filter_name], fillcolor=_FILL[len(picture.getbands())])


def _affine(
  picture: PIL.Image.Image,
  filter_name: Filter,
  *,
  x: tuple[float, float] = (0, 0),
  y: tuple[float, float] = (0, 0),
) -> PIL.Image.Image:
  """Pixel (i, j) shows the input at (i + x[0]·j + x[1], j + y[0]·i + y[1])."""
  return picture.transform(
    picture.size, PIL.Image.Transform.AFFINE, (1, x[0], x[1], y[0], 1, y[1]),
    _FILTERS[filter_name], fillcolor=_FILL[len(picture.getbands())],
  )  # fmt: skip


def _posterize(picture: PIL.Image.Image, bits: int) -> PIL.Image.Image:
  # Without bits the image is black, as in the Pillow of 2021; the one of today refuses.
  return picture.point([v & -(1 << max(8 - bits, 0)) for v in range(256)] * len(picture.getbands()))


def _solarize_add(picture: PIL.Image.Image, added: int) -> PIL.Image.Image:
  curve = [min(v + added, 255) if v < 128 else v for v in range(256)]
  return picture.point(curve * len(picture.getbands()))


_TABLE: dict[str, Callable[..., PIL.Image.Image]] = {
  "AutoContrast": ImageOps.autocontrast,
  "Equalize": ImageOps.equalize,
  "Invert": ImageOps.invert,
  "Rotate": _rotate,
  "Posterize": _posterize,
  "Solarize": ImageOps.solarize,
  "SolarizeAdd": _solarize_add,
  "Color": lambda picture, factor: ImageEnhance.Color(picture).enhance(factor),
  "Contrast": lambda picture, factor: ImageEnhance.Contrast(picture).enhance(factor),
  "Brightness": lambda picture, factor: ImageEnhance.Brightness(picture).enhance(factor),
  "Sharpness": lambda picture, factor: ImageEnhance.Sharpness(picture).enhance(factor),
  "ShearX": lambda picture, slope, used: _affine(picture, used, x=(slope, 0)),
  "ShearY": lambda picture, slope, used: _affine(picture, used, y=(slope, 0)),
  "TranslateXRel": lambda picture, share, used: _affine(picture, used, x=(0, share * picture.width)),
  "TranslateYRel": lambda picture, share, used: _affine(picture, used, y=(0, share * picture.height)),
}  # fmt: skip
"""timm's names, in its order."""
OPERATIONS = tuple(_TABLE)
