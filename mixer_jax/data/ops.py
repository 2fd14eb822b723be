"""Pure operations on examples, by name; preprocess.py runs them in sequence.

An operation is `(example, rng) -> example` on {"image": encoded bytes, then uint8 (h, w, c), "label"};
randomness comes from the generator alone, and what it decided is added to the example: "drawn" holds
(operation, value) in order. Pixels follow the authors' TensorFlow pipeline (big_vision,
pp/ops_image.py) to the bit (decode.py, geometry.py, randaugment.py), but that a crop is cut from the whole decoded image:
TensorFlow's fused decode_and_crop_jpeg has other outermost columns (`decode_region`). Those of the DeiT recipe follow timm's
and torchvision's (deit_ops.py, deit_randaugment.py).
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import cv2
import numpy as np

from mixer_jax import configuration
from mixer_jax.data import deit_ops, deit_randaugment, permutations
from mixer_jax.data import randaugment as randaugment_lib
from mixer_jax.data.decode import (
  MAX_PIXELS,
  Box,
  Dct,
  Header,
  decode_image,
  decode_region,
  read_header,
)
from mixer_jax.data.geometry import (
  resize_area,
  resize_bilinear,
  resize_bilinear_fast,
  resize_small_shape,
  sample_box,
)
from mixer_jax.errors import BadRecordError, InputError

Example = dict[str, Any]
Op = Callable[[Example, np.random.Generator], Example]

Sides = tuple[int, int]  # height, width in pixels
Mode = Literal["exact", "fast", "pillow"]
Percent = Annotated[float, configuration.Range(0.1, 100)]
Side = Annotated[int, configuration.Range(1, 2**14)]

EVAL_SCALE = 256 / 224  # the paper resizes to 256 and crops 224; other sizes keep that ratio


def drew(example: Example, name: str, value: Any) -> Example:
  """Returns the example with what an operation drew for it, from which it can be replayed."""
  return example | {"drawn": (*example.get("drawn", ()), (name, value))}


# --- operations by name ---------------------------------------------------------------------------


def decode(image_channels: int, mode: Mode = "exact") -> Op:
  """Encoded bytes -> uint8 (h, w, image_channels).

  Args:
    image_channels: see decode_image.
    mode: "exact": a JPEG's pixels are TensorFlow's. "pillow": they are Pillow's, which PyTorch recipes decode
      with (its accurate DCT; on photos two thirds of the values differ, by one level on average and eight at most).
      "fast" needs inception_crop right after it, and is up to it: the crop is the same, of a JPEG decoded at ½, ¼ or
      ⅛ where it is large enough, and resized with rounding instead of truncation.
  """
  if mode == "fast":
    raise InputError("decode(mode='fast') decodes for a crop: put inception_crop right after it.")
  dct = _dct(mode)
  return lambda example, rng: (
    example | {"image": decode_image(example["image"], image_channels, dct=dct)}
  )


def _dct(mode: Mode) -> Dct:
  return "accurate" if mode == "pillow" else "fast"


class Encoded(NamedTuple):
  """An image of which a crop decodes no more than it needs, to the pixels of the decoded whole unless "fast"."""

  data: bytes
  header: Header
  channels: int
  mode: Mode

  @property
  def shape(self) -> Sides:
    return self.header.height, self.header.width


def decode_parts(image_channels: int, mode: Mode = "exact") -> Op:
  """What `decode` is before a crop: leaves the decoding to it."""
  return lambda example, rng: (
    example | {"image": Encoded(data := example["image"], read_header(data), image_channels, mode)}
  )


def _part(image: np.ndarray | Encoded, box: Box, at_least: Sides | None = None) -> np.ndarray:
  """Returns the pixels inside of a box; at_least: see decode_region."""
  if isinstance(image, Encoded):
    data, header, channels, mode = image
    return decode_region(data, header, box, channels, at_least=at_least, dct=_dct(mode))
  y, x, h, w = box
  return image[y : y + h, x : x + w]


def inception_crop(image_size: Sides, area_min: Percent = 5.0, area_max: Percent = 100.0) -> Op:
  """Random crop of `area_min`–`area_max` per cent of the area, aspect 0.75–1.33, resized (bilinear)."""
  area = _shares(area_min, area_max)

  def op(example: Example, rng: np.random.Generator) -> Example:
    image = example["image"]
    height, width = image.shape[:2]
    box = sample_box(rng, height, width, area)
    if isinstance(image, Encoded) and image.mode == "fast":
      image = resize_bilinear_fast(_part(image, box, image_size), *image_size)
    else:
      image = resize_bilinear(_part(image, box), *image_size)
    return drew(example, "inception_crop", box) | {"image": image}

  return op


def _shares(area_min: float, area_max: float) -> tuple[float, float]:
  if area_min > area_max:
    raise InputError(f"area_min is {area_min}, above area_max, {area_max} per cent.")
  return area_min / 100, area_max / 100


def random_resized_crop(
  image_size: Sides,
  area_min: Percent = 8.0,
  area_max: Percent = 100.0,
  interpolation: deit_ops.Interpolation = "bicubic",
) -> Op:
  """Random crop of `area_min`–`area_max` per cent of the area, aspect 3/4–4/3, resized by Pillow.

  Args:
    image_size: of the result.
    area_min, area_max: the area is uniform between them (deit_ops.sample_box).
    interpolation: "random": bilinear or bicubic, drawn for each image.
  """
  area = _shares(area_min, area_max)

  def op(example: Example, rng: np.random.Generator) -> Example:
    image = example["image"]
    height, width = image.shape[:2]
    box = deit_ops.sample_box(rng, height, width, area)
    used = deit_ops.draw_filter(rng, interpolation)
    image = deit_ops.resize(_part(image, box), image_size, used)
    return drew(example, "random_resized_crop", (box, used)) | {"image": image}

  return op


def flip() -> Op:
  """Mirrors left and right with probability ½."""

  def op(example: Example, rng: np.random.Generator) -> Example:
    mirrored = bool(rng.random() < 0.5)
    image = example["image"]
    if mirrored:  # A view would be copied value by value later, in ten times the time.
      image = cv2.flip(image, 1).reshape(image.shape)
    return drew(example, "flip", mirrored) | {"image": image}

  return op


def _enlarged(image_size: Sides) -> Sides:
  height, width = image_size
  return round(height * EVAL_SCALE), round(width * EVAL_SCALE)


def _refuse_huge(size: Sides) -> None:
  if size[0] * size[1] > MAX_PIXELS:
    raise InputError(f"images of {size[0]}x{size[1]} pixels are asked for; {MAX_PIXELS} at most.")


def resize_small(image_size: Sides, size_px: Side | None = None) -> Op:
  """Table 3's evaluation: the short side to `size_px`, area-averaged.

  Default: as small as covers image_size·256/224, the short side of a square.
  """
  size = _enlarged(image_size) if size_px is None else (size_px, size_px)
  _refuse_huge(size)

  def op(example: Example, rng: np.random.Generator) -> Example:
    image = example["image"]
    height, width = resize_small_shape(image.shape[0], image.shape[1], size)
    _check_size(image, height, width)
    return example | {"image": resize_area(image, height, width)}

  return op


def _check_size(image: np.ndarray, height: int, width: int) -> None:
  if height * width > MAX_PIXELS:
    raise BadRecordError(
      f"{image.shape[0]}×{image.shape[1]} pixels: resized to cover what is cropped it would have {height}×{width}"
    )


def resize_short(
  image_size: Sides,
  crop_pct: Annotated[float, configuration.Range(0.01, 1)] = 0.875,
  interpolation: deit_ops.Filter = "bicubic",
) -> Op:
  """The DeiT recipe's evaluation: the short side to image_size / crop_pct, by Pillow; the longer one is cut to whole pixels.

  Args:
    image_size: what central_crop(rounding='even') takes from the result. The result covers a rectangle's
      image_size / crop_pct as tightly as its shape allows.
    crop_pct: timm's: 0.875 resizes to 256 for 224 px.
    interpolation: Pillow's filter.
  """
  height, width = image_size
  size = math.floor(height / crop_pct), math.floor(width / crop_pct)
  _refuse_huge(size)

  def op(example: Example, rng: np.random.Generator) -> Example:
    image = example["image"]
    shape = deit_ops.covering_shape(image.shape[0], image.shape[1], size)
    _check_size(image, *shape)
    return example | {"image": deit_ops.resize(image, shape, interpolation)}

  return op


def resize(image_size: Sides, size_px: Side | None = None, width_px: Side | None = None) -> Op:
  """Table 2's evaluation: to `size_px` high and `width_px` wide, bilinear.

  Default: a square of `size_px`; without that, image_size·256/224.
  """
  if width_px and not size_px:
    raise InputError("width_px needs size_px, the height.")
  size = (size_px, width_px or size_px) if size_px else _enlarged(image_size)
  _refuse_huge(size)
  return lambda example, rng: example | {"image": resize_bilinear(example["image"], *size)}


def central_crop(image_size: Sides, rounding: Literal["down", "even"] = "down") -> Op:
  """The central part of `image_size`.

  Args:
    image_size: of the result.
    rounding: of an edge that lies between two pixels: "down", as TensorFlow's recipes, or to the "even" one, as
      torchvision's CenterCrop.
  """
  halved = {"down": lambda twice: twice // 2, "even": lambda twice: round(twice / 2)}[rounding]

  def op(example: Example, rng: np.random.Generator) -> Example:
    height, width = covering(example["image"], image_size)
    h, w = image_size
    y, x = halved(height - h), halved(width - w)
    return example | {"image": example["image"][y : y + h, x : x + w]}

  return op


def pad(image_size: Sides) -> Op:
  """Zeros around an image that is smaller than `image_size`, which stays in the middle."""

  def op(example: Example, rng: np.random.Generator) -> Example:
    image = example["image"]
    missing = [max(want - have, 0) for have, want in zip(image.shape, image_size, strict=False)]
    sides = [(n // 2, n - n // 2) for n in missing]
    return example | {"image": np.pad(image, [*sides, (0, 0)])}

  return op


def covering(image: np.ndarray, image_size: Sides) -> Sides:
  """Returns the image's height and width; raises InputError if a crop of `image_size` does not fit into them."""
  (height, width), (h, w) = image.shape[:2], image_size
  if height < h or width < w:
    raise InputError(
      f"an image of {height}x{width} pixels, before its crop, is smaller than the crop, {h}x{w}: resize it before."
    )
  return height, width


def random_crop(image_size: Sides) -> Op:
  """A random part of `image_size`, of the pixels as they are (fine-tuning: after a resize)."""

  def op(example: Example, rng: np.random.Generator) -> Example:
    image, (h, w) = example["image"], image_size
    height, width = covering(image, image_size)
    y, x = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    image = image[y : y + h, x : x + w]
    return drew(example, "random_crop", (y, x)) | {"image": image}

  return op


def randaugment(
  image_channels: int,
  num_layers: Annotated[int, configuration.Range(0, 100)],
  magnitude: Annotated[float, configuration.Range(0, 1000)],
) -> Op:
  """RandAugment as the authors used it (randaugment.py), on RGB or grey images."""
  _refuse_alpha("randaugment", image_channels)

  def op(example: Example, rng: np.random.Generator) -> Example:
    image = np.ascontiguousarray(example["image"])
    draws = randaugment_lib.draw(rng, *image.shape[:2], num_layers=num_layers)
    new = randaugment_lib.apply(image, draws, magnitude=magnitude)
    return drew(example, "randaugment", draws) | {"image": new}

  return op


def timm_randaugment(
  image_channels: int, policy: str, interpolation: deit_ops.Interpolation = "bicubic"
) -> Op:
  """RandAugment of the DeiT recipe, as timm applies it (deit_randaugment.py), on RGB or grey images.

  Args:
    image_channels: 1 or 3.
    policy: timm's text, such as 'rand-m9-mstd0.5-inc1'.
    interpolation: of rotated, sheared and shifted pixels; "random": drawn for each operation.
  """
  _refuse_alpha("timm_randaugment", image_channels)
  parsed = deit_randaugment.parse(policy)

  def op(example: Example, rng: np.random.Generator) -> Example:
    draws = deit_randaugment.draw(rng, parsed, interpolation)
    new = deit_ops.apply(example["image"], draws)
    return drew(example, "timm_randaugment", draws) | {"image": new}

  return op


def color_jitter(
  image_channels: int, strength: Annotated[float, configuration.Range(0, 100)] = 0.4
) -> Op:
  """Brightness, contrast and saturation changed by up to `strength`, in random order, on RGB or grey images.

  The DeiT recipe uses it where there is no RandAugment. Source: torchvision, ColorJitter.
  """
  _refuse_alpha("color_jitter", image_channels)

  def op(example: Example, rng: np.random.Generator) -> Example:
    draws = deit_ops.draw_jitter(rng, strength)
    new = deit_ops.apply(example["image"], draws)
    return drew(example, "color_jitter", draws) | {"image": new}

  return op


def _refuse_alpha(name: str, image_channels: int) -> None:
  if image_channels == 4:
    raise InputError(f"{name} has no operations on alpha: image_channels must be 1 or 3.")


def permute_patches(
  image_size: Sides, patch_size: configuration.PositiveInt, seed: configuration.Seed = 0
) -> Op:
  """Figure 4: permutes the patches, and the pixels inside each in one shared way."""
  return _permute(permutations.order_of_patches(image_size, patch_size, seed), image_size)


def permute_pixels(image_size: Sides, seed: configuration.Seed = 0) -> Op:
  """Figure 4: permutes all pixels of the image."""
  return _permute(permutations.order_of_pixels(image_size, seed), image_size)


def _permute(order: np.ndarray, image_size: Sides) -> Op:
  def op(example: Example, rng: np.random.Generator) -> Example:
    if example["image"].shape[:2] != image_size:
      height, width = image_size
      raise InputError(f"permutations come last, when the image has {height}x{width} pixels.")
    return example | {"image": permutations.apply(example["image"], order)}

  return op


OPS: dict[str, Callable[..., Op]] = {
  f.__name__: f
  for f in (
    decode, inception_crop, random_resized_crop, flip, resize_small, resize_short, resize, central_crop, pad, random_crop,
    randaugment, timm_randaugment, color_jitter, permute_patches, permute_pixels,
  )
}  # fmt: skip

# Modes of `decode` in which an operation right behind it decodes what it needs.
CROPS: dict[str, tuple[Mode, ...]] = {
  "inception_crop": ("exact", "pillow", "fast"),
  "random_resized_crop": ("exact", "pillow"),
}
