"""The permutations of figure 4, by what they keep and what they destroy."""

import numpy as np
import pytest

from mixer_jax.data import permutations
from mixer_jax.data.preprocess import Preprocess
from tests.encoded import encode

SIZE, PATCH = 12, 4
IMAGE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def patches(image):
  """Returns the patches in raster order, each as the list of its pixels."""
  return [
    image[y : y + PATCH, x : x + PATCH].reshape(-1, 3)
    for y in range(0, SIZE, PATCH)
    for x in range(0, SIZE, PATCH)
  ]


def test_patches_move_as_wholes_with_one_order_of_pixels():
  order = permutations.order_of_patches((SIZE, SIZE), PATCH, 0)
  old, new = patches(IMAGE), patches(permutations.apply(IMAGE, order))

  def sort(patch):
    return sorted(map(tuple, patch.tolist()))

  origin = [next(i for i, p in enumerate(old) if sort(p) == sort(q)) for q in new]
  assert sorted(origin) == list(range(9))
  assert origin != list(range(9))
  pixel_orders = {
    tuple(next(j for j, pixel in enumerate(old[i]) if np.array_equal(pixel, want)) for want in q)
    for i, q in zip(origin, new, strict=True)
  }
  assert len(pixel_orders) == 1
  assert next(iter(pixel_orders)) != tuple(range(PATCH**2))


def test_pixels_leave_their_patches():
  order = permutations.order_of_pixels((SIZE, SIZE), 0)
  new = permutations.apply(IMAGE, order)
  assert sorted(map(tuple, new.reshape(-1, 3).tolist())) == sorted(
    map(tuple, IMAGE.reshape(-1, 3).tolist())
  )
  assert len(set(order[: PATCH**2] // (SIZE * PATCH))) > 1


def run(operation, image, seed):
  """Returns the pixels (n, 3) that the operation makes of an image, with a generator of this seed."""
  preprocess = Preprocess(f"decode|{operation}", (SIZE, SIZE, 3))
  example = {"image": encode(".png", image[..., ::-1]), "label": 0}
  return preprocess(example, np.random.default_rng(seed))["image"].reshape(-1, 3)


@pytest.mark.parametrize("name", ["permute_patches(4, seed={})", "permute_pixels(seed={})"])
def test_as_operations_they_are_the_same_for_every_image(name):
  positions = np.arange(SIZE**2, dtype=np.uint8).reshape(SIZE, SIZE, 1).repeat(3, 2)
  order = run(name.format(1), positions, 0)
  np.testing.assert_array_equal(order, run(name.format(1), positions, 5))
  np.testing.assert_array_equal(run(name.format(1), IMAGE, 3), IMAGE.reshape(-1, 3)[order[:, 0]])
  assert np.any(order != run(name.format(2), positions, 0))
