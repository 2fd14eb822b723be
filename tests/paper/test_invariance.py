"""Figure 4's claim as a test: patches and their pixels permuted, Mixer learns the same, step for step."""

import jax
import numpy as np
import pytest

from configs import common
from mixer_jax import experiment
from mixer_jax.data import permutations
from tests.configurations import small_config

SIZE, PATCH, GRID, STEPS = 16, 4, 4, 12


def make_experiment(model):
  config = small_config(total_steps=STEPS, learning_rate=0.01)
  if model == "resnet":
    config.model = common.get_config("resnet").model
    config.model.num_units, config.model.width, config.model.num_groups = (1, 1), 8, 4
  return experiment.build(config, experiment.make_mesh(config))


def batches():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (4, 16, SIZE, SIZE, 3), np.uint8)
  labels = rng.integers(0, 10, (4, 16), np.int32)
  return [
    {"image": images[i % 4], "label": labels[i % 4], "mask": np.ones(16, np.float32)}
    for i in range(STEPS)
  ]


def losses(exp, params, order=None):
  """Returns the loss of every step, on images whose pixels are in this order."""
  state = exp.init_state().replace(params=jax.tree.map(np.array, params))
  seen = []
  for batch in batches():
    if order is not None:
      batch["image"] = np.stack([permutations.apply(image, order) for image in batch["image"]])
    state, metrics = exp.train_step(state, batch)
    seen.append(float(metrics["loss"]))
  return np.array(seen)


def permuted(params, order):
  """Returns a Mixer's parameters for images in this order, derived from the order alone."""
  old = order.reshape(GRID, PATCH, GRID, PATCH).swapaxes(1, 2).reshape(GRID**2, PATCH**2)
  y, x = np.divmod(old, SIZE)
  patches = (y // PATCH * GRID + x // PATCH)[:, 0]
  pixels = (y % PATCH * PATCH + x % PATCH)[0]
  new = jax.tree.map(np.array, params)
  kernel = new["stem"]["kernel"]
  new["stem"]["kernel"] = kernel.reshape(PATCH**2, 3, -1)[pixels].reshape(kernel.shape)
  for name in [n for n in new if n.startswith("MixerBlock")]:
    mixing = new[name]["token_mixing"]
    mixing["Dense_0"]["kernel"] = mixing["Dense_0"]["kernel"][patches]
    mixing["Dense_1"]["kernel"] = mixing["Dense_1"]["kernel"][:, patches]
    mixing["Dense_1"]["bias"] = mixing["Dense_1"]["bias"][patches]
  return new


def test_mixer_learns_the_same_from_permuted_patches_and_their_pixels():
  exp = make_experiment("mixer")
  params, order = exp.init_state().params, permutations.order_of_patches(SIZE, PATCH, 7)
  original = losses(exp, params)
  assert original[-1] < original[0] - 0.05  # it learns
  np.testing.assert_allclose(losses(exp, permuted(params, order), order), original, atol=1e-5)
  # The same weights on other input, or other weights on the same input, are another run.
  assert np.abs(losses(exp, params, order) - original)[3:].min() > 1e-4
  assert np.abs(losses(exp, permuted(params, order)) - original)[3:].min() > 1e-4
  pixels = permutations.order_of_pixels(SIZE, 7)
  assert np.abs(losses(exp, permuted(params, order), pixels) - original)[3:].min() > 1e-4


@pytest.mark.parametrize("kind", ["patches", "pixels"])
def test_resnet_does_not(kind):
  exp = make_experiment("resnet")
  params = exp.init_state().params
  order = (
    permutations.order_of_patches(SIZE, PATCH, 7)
    if kind == "patches"
    else permutations.order_of_pixels(SIZE, 7)
  )
  difference = np.abs(losses(exp, params, order) - losses(exp, params))
  assert difference[3:].max() > 1e-3
