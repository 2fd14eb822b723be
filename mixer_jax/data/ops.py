"""Pure operations on examples, and the pipelines that they make: "decode|inception_crop|flip".

An operation is `(example, rng) -> example` on {"image": encoded bytes, then uint8 (h, w, 3), "label"};
randomness comes from the generator alone. Pixels follow the authors' TensorFlow pipeline (big_vision,
pp/ops_image.py) to the bit: JPEG by the fast integer DCT with EXIF orientation ignored, bilinear
resizing without antialiasing, and truncation to uint8 after every resize.
"""

import ast
import inspect
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Float, UInt8

from mixer_jax import configuration
from mixer_jax.data import permutations
from mixer_jax.data import randaugment as randaugment_lib
from mixer_jax.data.sources import BadRecordError
from mixer_jax.errors import InputError

Example = dict[str, Any]
Op = Callable[[Example, np.random.Generator], Example]
Image = UInt8[np.ndarray, "h w 3"]
Resized = UInt8[np.ndarray, "new_h new_w 3"]

EVAL_SCALE = 256 / 224  # the paper resizes to 256 and crops 224; other sizes keep that ratio


# --- decoding ---------------------------------------------------------------------------------------


def decode_image(data: bytes) -> Image:
  """Decodes JPEG or PNG to RGB; grey becomes three equal channels, CMYK JPEG becomes RGB.

  Raises:
    BadRecordError: empty, truncated, damaged, or of another format.
  """
  if data[:3] == b"\xff\xd8\xff":
    return _decode_jpeg(data)
  if data[:8] == b"\x89PNG\r\n\x1a\n":
    return _decode_png(data)
  raise BadRecordError(f"neither JPEG nor PNG: {len(data)} bytes that start with {data[:8]!r}")


def _decode_jpeg(data: bytes) -> Image:
  try:
    # These two flags give the bytes of TensorFlow's default decoder.
    return simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=True, fastupsample=False)
  except ValueError as e:
    raise BadRecordError(f"damaged JPEG: {e}") from e


def _decode_png(data: bytes) -> Image:
  # OpenCV returns what it could decode of a truncated file, so the end is looked for first.
  if b"IEND" not in data[-12:]:
    raise BadRecordError("truncated PNG: the end marker is missing")
  flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
  try:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
  except cv2.error as e:
    raise BadRecordError(f"damaged PNG: {e}") from e
  if image is None:
    raise BadRecordError("damaged PNG")
  return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


# --- geometry ---------------------------------------------------------------------------------------


def _truncate(image: Float[np.ndarray, "new_h new_w 3"]) -> Resized:
  return np.clip(image, 0.0, 255.0).astype(np.uint8)


def _bilinear_taps(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns for each new pixel its two source pixels and the weight of the second, in float32."""
  scale = np.float32(size) / np.float32(new_size)
  position = (np.arange(new_size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
  floor = np.floor(position)
  first = np.maximum(floor, 0).astype(np.int64)
  second = np.minimum(np.ceil(position), size - 1).astype(np.int64)
  return first, second, position - floor


def resize_bilinear(image: Image, height: int, width: int) -> Resized:
  """Bilinear with half-pixel centres and no antialiasing, truncated: TensorFlow's tf.image.resize."""
  left, right, wx = _bilinear_taps(image.shape[1], width)
  top, bottom, wy = _bilinear_taps(image.shape[0], height)
  pixels = image.astype(np.float32)
  a, b = pixels[:, left], pixels[:, right]
  rows = a + (b - a) * wx[:, None]
  a, b = rows[top], rows[bottom]
  return _truncate(a + (b - a) * wy[:, None, None])


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
  return _truncate(total * (np.float32(1.0) / (scale_y * scale_x)))


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
    low, high = (round(np.sqrt(a / ratio)) for a in (smallest, largest))
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


# --- operations by name ---------------------------------------------------------------------------


def decode(image_size: int) -> Op:
  """Encoded bytes -> uint8 (h, w, 3)."""
  del image_size
  return lambda example, rng: example | {"image": decode_image(example["image"])}


def inception_crop(image_size: int, area_min: float = 5.0, area_max: float = 100.0) -> Op:
  """Random crop of `area_min`–`area_max` per cent of the area, aspect 0.75–1.33, resized (bilinear)."""
  area = (area_min / 100, area_max / 100)

  def op(example: Example, rng: np.random.Generator) -> Example:
    image = example["image"]
    y, x, h, w = sample_box(rng, image.shape[0], image.shape[1], area)
    return example | {"image": resize_bilinear(image[y : y + h, x : x + w], image_size, image_size)}

  return op


def flip(image_size: int) -> Op:
  """Mirrors left and right with probability ½."""
  del image_size

  def op(example: Example, rng: np.random.Generator) -> Example:
    return example | {"image": example["image"][:, ::-1]} if rng.random() < 0.5 else example

  return op


def resize_small(image_size: int, size_px: int | None = None) -> Op:
  """Table 3's evaluation: the short side to `size_px` (default image_size·256/224), area-averaged."""
  size = round(image_size * EVAL_SCALE) if size_px is None else size_px

  def op(example: Example, rng: np.random.Generator) -> Example:
    image = example["image"]
    height, width = resize_small_shape(image.shape[0], image.shape[1], size)
    return example | {"image": resize_area(image, height, width)}

  return op


def resize(image_size: int, size_px: int | None = None) -> Op:
  """Table 2's evaluation: a square of `size_px` (default image_size·256/224), bilinear."""
  size = round(image_size * EVAL_SCALE) if size_px is None else size_px
  return lambda example, rng: example | {"image": resize_bilinear(example["image"], size, size)}


def central_crop(image_size: int) -> Op:
  """The central square of `image_size`."""

  def op(example: Example, rng: np.random.Generator) -> Example:
    height, width = example["image"].shape[:2]
    y, x = (height - image_size) // 2, (width - image_size) // 2
    return example | {"image": example["image"][y : y + image_size, x : x + image_size]}

  return op


def randaugment(image_size: int, num_layers: int, magnitude: float) -> Op:
  """RandAugment as the authors used it (randaugment.py)."""
  del image_size

  def op(example: Example, rng: np.random.Generator) -> Example:
    image = np.ascontiguousarray(example["image"])
    new = randaugment_lib.rand_augment(image, rng, num_layers=num_layers, magnitude=magnitude)
    return example | {"image": new}

  return op


def permute_patches(image_size: int, patch_size: int, seed: int = 0) -> Op:
  """Figure 4: permutes the patches, and the pixels inside each in one shared way."""
  order = permutations.order_of_patches(image_size, patch_size, seed)
  return lambda example, rng: example | {"image": permutations.apply(example["image"], order)}


def permute_pixels(image_size: int, seed: int = 0) -> Op:
  """Figure 4: permutes all pixels of the image."""
  order = permutations.order_of_pixels(image_size, seed)
  return lambda example, rng: example | {"image": permutations.apply(example["image"], order)}


OPS: dict[str, Callable[..., Op]] = {
  f.__name__: f
  for f in (
    decode,
    inception_crop,
    flip,
    resize_small,
    resize,
    central_crop,
    randaugment,
    permute_patches,
    permute_pixels,
  )
}


class Pipeline:
  """Operations in sequence, from a text such as "decode|resize_small(256)|central_crop"; picklable."""

  def __init__(self, text: str, image_size: int, where: str = "ops"):
    """Raises InputError: unknown operation, wrong arguments, or "decode" not first."""
    self._arguments = (text, image_size, where)
    calls = [_parse_call(part.strip(), where) for part in text.split("|")]
    if calls[0][0] != "decode":
      raise InputError(f"{where} must start with 'decode': {text!r}")
    self._ops = [_bind(name, kwargs, image_size, where) for name, kwargs in calls]
    self.image_size = image_size

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Raises BadRecordError: undecodable bytes; InputError: a result not image_size × image_size."""
    for op in self._ops:
      example = op(example, rng)
    if example["image"].shape[:2] != (self.image_size, self.image_size):
      raise InputError(
        f"{self._arguments[2]} {self._arguments[0]!r} leaves {example['image'].shape[:2]} instead of a square of "
        f"{self.image_size}; end with a crop or resize({self.image_size})"
      )
    return example

  def __reduce__(self) -> tuple[Any, ...]:
    return Pipeline, self._arguments  # closures do not pickle, the text does


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
  names = [p for p in inspect.signature(OPS[name]).parameters if p != "image_size"]
  if len(args) > len(names):
    raise InputError(f"{where}: {name} takes at most {len(names)} arguments: {', '.join(names)}")
  return name, dict(zip(names, args, strict=False)) | kwargs


def _bind(name: str, kwargs: dict[str, Any], image_size: int, where: str) -> Op:
  return configuration.call(OPS[name], kwargs, f"{where}: {name}", image_size=image_size)
