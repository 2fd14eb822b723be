"""Pure operations on examples, and `Preprocess`, a sequence of them: "decode|inception_crop|flip".

An operation is `(example, rng) -> example` on {"image": encoded bytes, then uint8 (h, w, c), "label"};
randomness comes from the generator alone, and what it decided is added to the example: "drawn" holds
(operation, value) in order. Pixels follow the authors' TensorFlow pipeline (big_vision,
pp/ops_image.py) to the bit (decode.py, geometry.py, randaugment.py).
"""

import ast
import inspect
from collections.abc import Callable
from typing import Any, Literal

import cv2
import numpy as np

from mixer_jax import configuration
from mixer_jax.data import permutations
from mixer_jax.data import randaugment as randaugment_lib
from mixer_jax.data.decode import MAX_PIXELS, decode_image, decode_region, read_header
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

EVAL_SCALE = 256 / 224  # the paper resizes to 256 and crops 224; other sizes keep that ratio


def _drew(example: Example, name: str, value: Any) -> Example:
  """Returns the example with what an operation drew for it, from which it can be replayed."""
  return example | {"drawn": (*example.get("drawn", ()), (name, value))}


# --- operations by name ---------------------------------------------------------------------------


def decode(image_channels: int, mode: Literal["exact", "fast"] = "exact") -> Op:
  """Encoded bytes -> uint8 (h, w, image_channels).

  Args:
    image_channels: see decode_image.
    mode: "fast" needs inception_crop right after it, and is up to it (decode_and_crop).
  """
  if mode == "fast":
    raise InputError("decode(mode='fast') decodes for a crop: put inception_crop right after it.")
  return lambda example, rng: example | {"image": decode_image(example["image"], image_channels)}


def inception_crop(image_size: Sides, area_min: float = 5.0, area_max: float = 100.0) -> Op:
  """Random crop of `area_min`–`area_max` per cent of the area, aspect 0.75–1.33, resized (bilinear)."""
  area = (area_min / 100, area_max / 100)

  def op(example: Example, rng: np.random.Generator) -> Example:
    image = example["image"]
    y, x, h, w = box = sample_box(rng, image.shape[0], image.shape[1], area)
    image = resize_bilinear(image[y : y + h, x : x + w], *image_size)
    return _drew(example, "inception_crop", box) | {"image": image}

  return op


def decode_and_crop(
  image_size: Sides,
  image_channels: int,
  mode: Literal["exact", "fast"] = "exact",
  area_min: float = 5.0,
  area_max: float = 100.0,
) -> Op:
  """What "decode|inception_crop" does, decoding no more than the crop needs.

  Args:
    image_size, image_channels: of the result.
    mode: "exact": the same numbers drawn, the same pixels. "fast": the same crop, of a JPEG decoded
      at ½, ¼ or ⅛ where the crop is large enough, and resized with rounding instead of truncation.
    area_min, area_max: as for inception_crop.
  """
  area = (area_min / 100, area_max / 100)

  def op(example: Example, rng: np.random.Generator) -> Example:
    data = example["image"]
    header = read_header(data)
    box = sample_box(rng, header.height, header.width, area)
    if mode == "fast":
      part = decode_region(data, header, box, image_channels, at_least=image_size)
      image = resize_bilinear_fast(part, *image_size)
    else:
      image = resize_bilinear(decode_region(data, header, box, image_channels), *image_size)
    return _drew(example, "inception_crop", box) | {"image": image}

  return op


def flip() -> Op:
  """Mirrors left and right with probability ½."""

  def op(example: Example, rng: np.random.Generator) -> Example:
    mirrored = bool(rng.random() < 0.5)
    image = example["image"]
    if mirrored:  # A view would be copied value by value later, in ten times the time.
      image = cv2.flip(image, 1).reshape(image.shape)
    return _drew(example, "flip", mirrored) | {"image": image}

  return op


def _enlarged(image_size: Sides) -> Sides:
  height, width = image_size
  return round(height * EVAL_SCALE), round(width * EVAL_SCALE)


def resize_small(image_size: Sides, size_px: int | None = None) -> Op:
  """Table 3's evaluation: the short side to `size_px`, area-averaged.

  Default: as small as covers image_size·256/224, the short side of a square.
  """
  size = _enlarged(image_size) if size_px is None else (size_px, size_px)

  def op(example: Example, rng: np.random.Generator) -> Example:
    image = example["image"]
    height, width = resize_small_shape(image.shape[0], image.shape[1], size)
    if height * width > MAX_PIXELS:
      raise BadRecordError(
        f"{image.shape[0]}×{image.shape[1]} pixels: resized to cover {size[0]}×{size[1]} it would have "
        f"{height}×{width}"
      )
    return example | {"image": resize_area(image, height, width)}

  return op


def resize(image_size: Sides, size_px: int | None = None, width_px: int | None = None) -> Op:
  """Table 2's evaluation: to `size_px` high and `width_px` wide, bilinear.

  Default: a square of `size_px`; without that, image_size·256/224.
  """
  size = _enlarged(image_size) if size_px is None else (size_px, width_px or size_px)
  return lambda example, rng: example | {"image": resize_bilinear(example["image"], *size)}


def central_crop(image_size: Sides) -> Op:
  """The central part of `image_size`."""

  def op(example: Example, rng: np.random.Generator) -> Example:
    height, width = example["image"].shape[:2]
    h, w = image_size
    y, x = (height - h) // 2, (width - w) // 2
    return example | {"image": example["image"][y : y + h, x : x + w]}

  return op


def random_crop(image_size: Sides) -> Op:
  """A random part of `image_size`, of the pixels as they are (fine-tuning: after a resize)."""

  def op(example: Example, rng: np.random.Generator) -> Example:
    image, (h, w) = example["image"], image_size
    y, x = (
      int(rng.integers(0, max(have - want, 0) + 1))
      for have, want in zip(image.shape, image_size, strict=False)
    )
    image = image[y : y + h, x : x + w]
    return _drew(example, "random_crop", (y, x)) | {"image": image}

  return op


def randaugment(image_channels: int, num_layers: int, magnitude: float) -> Op:
  """RandAugment as the authors used it (randaugment.py), on RGB or grey images."""
  if image_channels == 4:
    raise InputError("randaugment has no operations on alpha: image_channels must be 1 or 3.")

  def op(example: Example, rng: np.random.Generator) -> Example:
    image = np.ascontiguousarray(example["image"])
    draws = randaugment_lib.draw(rng, *image.shape[:2], num_layers=num_layers)
    new = randaugment_lib.apply(image, draws, magnitude=magnitude)
    return _drew(example, "randaugment", draws) | {"image": new}

  return op


def permute_patches(image_size: Sides, patch_size: int, seed: int = 0) -> Op:
  """Figure 4: permutes the patches, and the pixels inside each in one shared way."""
  return _permute(permutations.order_of_patches(image_size, patch_size, seed), image_size)


def permute_pixels(image_size: Sides, seed: int = 0) -> Op:
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
    decode,
    inception_crop,
    flip,
    resize_small,
    resize,
    central_crop,
    random_crop,
    randaugment,
    permute_patches,
    permute_pixels,
  )
}


class Preprocess:
  """Operations in sequence, from a text such as "decode|resize_small(256)|central_crop"; picklable."""

  def __init__(self, text: str, input_shape: tuple[int, int, int], where: str = "ops"):
    """Raises InputError: unknown operation, wrong arguments, or "decode" not first.

    Args:
      text: the operations.
      input_shape: of the result, (height, width, channels).
      where: the text's key, for messages.
    """
    self._arguments = (text, input_shape, where)
    calls = [_parse_call(part.strip(), where) for part in text.split("|")]
    if calls[0][0] != "decode":
      raise InputError(f"{where} must start with 'decode': {text!r}")
    self._ops = []
    if [name for name, _ in calls[:2]] == ["decode", "inception_crop"]:
      both = calls[0][1] | calls[1][1]
      self._ops = [_bind(decode_and_crop, both, input_shape, f"{where}: decode|inception_crop")]
      calls = calls[2:]
    self._ops += [
      _bind(OPS[name], kwargs, input_shape, f"{where}: {name}") for name, kwargs in calls
    ]
    self.input_shape = input_shape

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Raises BadRecordError: undecodable bytes; InputError: a result of another shape than input_shape."""
    for op in self._ops:
      example = op(example, rng)
    if example["image"].shape != self.input_shape:
      (height, width, _), (text, _, where) = self.input_shape, self._arguments
      raise InputError(
        f"{where} {text!r} leaves {example['image'].shape[:2]} instead of {height, width} pixels; end with a "
        f"crop or resize({height}{f', {width}' * (width != height)})"
      )
    return example

  def __reduce__(self) -> tuple[Any, ...]:
    return Preprocess, self._arguments  # closures do not pickle, the text does


def _parse_call(text: str, where: str) -> tuple[str, dict[str, Any]]:
  """Returns (name, keyword arguments) of "name" or "name(1, b=2)"; evaluates literals only."""
  try:
    node = ast.parse(text, mode="eval").body
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name):
      raise ValueError(text)
    name = call.func.id
    args = [ast.literal_eval(a) for a in call.args]
    kwargs = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
  except (SyntaxError, ValueError) as e:
    raise InputError(f"{where}: {text!r} is not an operation such as resize_small(256).") from e
  if name not in OPS:
    raise InputError(f"{where}: unknown operation {name!r}.{configuration.nearest(name, OPS)}")
  names = [p for p in inspect.signature(OPS[name]).parameters if p not in _GIVEN]
  if len(args) > len(names):
    raise InputError(f"{where}: {name} takes at most {len(names)} arguments: {', '.join(names)}")
  return name, dict(zip(names, args, strict=False)) | kwargs


_GIVEN = (
  "image_size",
  "image_channels",
)  # what the run gives to operations that have these parameters


def _bind(
  op: Callable[..., Op], kwargs: dict[str, Any], input_shape: tuple[int, int, int], where: str
) -> Op:
  given = dict(zip(_GIVEN, (input_shape[:2], input_shape[2]), strict=True))
  taken = inspect.signature(op).parameters
  return configuration.call(op, kwargs, where, **{k: v for k, v in given.items() if k in taken})
