"""Photos for benchmarks: crops and resizes of the real ones that scikit-learn and scikit-image ship."""

import pathlib

import cv2
import numpy as np

NAMES = (
  "china.jpg", "flower.jpg", "astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg",
  "motorcycle_left.png", "motorcycle_right.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip

# Width, height, bytes: a photo of ImageNet, and a photo straight from the web.
KINDS = {"500x375": (500, 375, 80_000), "1280x960": (1280, 960, 220_000)}


def make(kind: str, count: int, directories: list[pathlib.Path]) -> list[bytes]:
  """Returns `count` JPEG photos of a kind, the same ones each time, with 4:2:0 chroma.

  Args:
    kind: key of KINDS; every fourth photo is upright.
    count: number of photos.
    directories: where the images of NAMES are looked for.
  """
  paths = [d / name for name in NAMES for d in directories if (d / name).exists()]
  originals = [cv2.imread(str(path)) for path in paths]
  rng = np.random.default_rng(0)
  width, height, size = KINDS[kind]
  photos = []
  for i in range(count):
    shape = (height, width) if i % 4 == 0 else (width, height)
    photos.append(_encode(_cut(originals[i % len(originals)], shape, rng), size))
  return photos


def _cut(image: np.ndarray, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
  """Returns a random cut of the shape's aspect ratio, 60–100 % of what fits, resized to (w, h)."""
  factor = min(image.shape[1] / shape[0], image.shape[0] / shape[1]) * rng.uniform(0.6, 1)
  w, h = int(shape[0] * factor), int(shape[1] * factor)
  x, y = rng.integers(0, image.shape[1] - w + 1), rng.integers(0, image.shape[0] - h + 1)
  return cv2.resize(image[y : y + h, x : x + w], shape, interpolation=cv2.INTER_LANCZOS4)


def _encode(image: np.ndarray, size: int) -> bytes:
  """Returns the JPEG of the lowest quality, up to 98, that needs `size` bytes."""
  low, high = 30, 98
  while high - low > 1:
    quality = (low + high) // 2
    if len(_jpeg(image, quality)) < size:
      low = quality
    else:
      high = quality
  return _jpeg(image, high)


def _jpeg(image: np.ndarray, quality: int) -> bytes:
  return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
