"""The fixed permutations of figure 4: the same for all images, a pure function of the seed.

Mixer learns the same under the first one (a permutation of its patches, and one inside the patch, are
permutations of its own weights), and neither Mixer nor a convolutional network under the second.
"""

import functools

import numpy as np
from jaxtyping import Int, UInt8

from mixer_jax.errors import InputError

Image = UInt8[np.ndarray, "h w c"]


def apply(image: Image, order: Int[np.ndarray, " n"]) -> Image:
  """Returns the image whose pixel n, in raster order, is the old one's pixel `order[n]`."""
  return image.reshape(-1, image.shape[2])[order].reshape(image.shape)


@functools.lru_cache(maxsize=8)
def order_of_patches(
  image_size: tuple[int, int], patch_size: int, seed: int
) -> Int[np.ndarray, " n"]:
  """Returns the order that permutes the patches, and the pixels inside each in one shared way.

  Args:
    image_size: (height, width) in pixels.
    patch_size: side of a patch in pixels.
    seed: of both permutations.

  Raises:
    InputError: the patch does not divide the image.
  """
  height, width = image_size
  if height % patch_size or width % patch_size:
    raise InputError(
      f"permute_patches: patch_size {patch_size} does not divide the image of {height}x{width} pixels."
    )
  rows, columns = height // patch_size, width // patch_size
  rng = np.random.default_rng(seed)
  patches, pixels = rng.permutation(rows * columns), rng.permutation(patch_size**2)
  raster = np.arange(height * width).reshape(rows, patch_size, columns, patch_size)
  by_patch = raster.swapaxes(1, 2).reshape(rows * columns, patch_size**2)[patches][:, pixels]
  return by_patch.reshape(rows, columns, patch_size, patch_size).swapaxes(1, 2).ravel()


@functools.lru_cache(maxsize=8)
def order_of_pixels(image_size: tuple[int, int], seed: int) -> Int[np.ndarray, " n"]:
  """Returns the order that permutes all pixels of an image of this (height, width)."""
  return np.random.default_rng(seed).permutation(image_size[0] * image_size[1])
