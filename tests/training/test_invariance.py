"""Figure 4 as a test: permuting patches and pixels is nothing to a Mixer whose weights are permuted with them.

Whole runs: read, cropped, permuted, trained and evaluated by the loop.
"""

import json

import jax
import numpy as np
import pytest

from configs import common
from mixer_jax import schema, weights
from mixer_jax.data import permutations
from mixer_jax.training import experiment, loop
from tests.configurations import small_config
from tests.marks import long
from tests.training.steps import batches, stepped

SIZE, PATCH, SEED, STEPS = 16, 4, 3, 30
GRID = SIZE // PATCH
PERMUTE = f"permute_patches({PATCH}, seed={SEED})"


def config_of(family):
  config = small_config(total_steps=STEPS, batch_size=64, learning_rate=0.01)
  config.log.every_steps = 1
  config.evaluators.val.every_steps = config.checkpoint.every_steps = STEPS
  config.init.new_head = False
  if family == "resnet":
    config.model = common.get_config("resnet").model
    config.model.num_units, config.model.width, config.model.num_groups = (1,), 8, 4
  return config


def initial_params(config):
  exp = experiment.build(config)
  return jax.device_get(exp.init_state().params)


def losses(config, params, directory, *, permuted):
  """Returns the losses of all steps and the evaluation's of a run from these parameters."""
  weights.save_npz(directory / "start.npz", {"params": params})
  config.init.weights = str(directory / "start.npz")
  if permuted:
    config.data.ops += f"|{PERMUTE}"
    config.evaluators.val.ops += f"|{PERMUTE}"
  loop.train(config, str(directory / "run"))
  records = map(json.loads, (directory / "run/metrics.jsonl").read_text().splitlines())
  found = [r[key] for r in records for key in ("loss", "val/loss") if key in r]
  assert len(found) == STEPS + 1
  assert found[0] - found[-1] > 0.1  # it learns
  return np.array(found)


def permute_weights(params):
  """Returns the parameters that see in the permuted image what the given ones see in the original."""
  # New pixel -> old pixel, in raster order.
  order = permutations.order_of_patches((SIZE, SIZE), PATCH, SEED)
  raster = order.reshape(GRID, PATCH, GRID, PATCH).swapaxes(1, 2).reshape(GRID**2, PATCH**2)
  y, x = raster // SIZE, raster % SIZE
  tokens = (y // PATCH * GRID + x // PATCH)[:, 0]  # new token -> old token
  pixels = (y % PATCH * PATCH + x % PATCH)[0]  # new pixel of a patch -> old
  kernel = params["stem"]["kernel"]
  new = {**params, "stem": dict(params["stem"])}
  new["stem"]["kernel"] = kernel.reshape(PATCH**2, *kernel.shape[2:])[pixels].reshape(kernel.shape)
  for name in [n for n in params if n.startswith("MixerBlock_")]:
    first, second = (params[name]["token_mixing"][f"Dense_{i}"] for i in (0, 1))
    new[name] = {**params[name], "token_mixing": {
      "Dense_0": {**first, "kernel": first["kernel"][tokens]},
      "Dense_1": {"kernel": second["kernel"][:, tokens], "bias": second["bias"][tokens]},
    }}  # fmt: skip
  return new


@pytest.fixture(scope="module")
def mixer(tmp_path_factory):
  """The parameters of a Mixer and the losses of its run on the images as they are."""
  params = initial_params(config_of("mixer"))
  directory = tmp_path_factory.mktemp("plain")
  return params, losses(config_of("mixer"), params, directory, permuted=False)


def test_a_mixer_learns_the_same_from_permuted_patches_and_pixels(mixer, tmp_path):
  params, plain = mixer
  permuted = losses(config_of("mixer"), permute_weights(params), tmp_path, permuted=True)
  np.testing.assert_allclose(permuted, plain, atol=1e-5, rtol=0)


@pytest.mark.campaign
def test_it_is_the_weights_that_have_to_be_permuted(mixer, tmp_path):
  params, plain = mixer
  assert np.abs(losses(config_of("mixer"), params, tmp_path, permuted=True) - plain).max() > 1e-2


@pytest.mark.campaign
def test_a_resnet_does_not(tmp_path):
  params = initial_params(config_of("resnet"))
  (tmp_path / "a").mkdir()
  (tmp_path / "b").mkdir()
  plain = losses(config_of("resnet"), params, tmp_path / "a", permuted=False)
  permuted = losses(config_of("resnet"), params, tmp_path / "b", permuted=True)
  assert np.abs(permuted - plain).max() > 1e-2


def learned(params, image, **changes):
  """Returns the parameters after a step on these images, and the loss."""
  exp = experiment.build(small_config(**changes))
  return stepped(exp, params, {**next(batches(1)), "image": image})


@pytest.mark.parametrize("image_size", ["8x32", long((32, 8))])
def test_a_mixer_learns_from_a_rectangle_what_it_learns_from_a_square_of_the_same_patches(
  image_size,
):
  height, width = schema.sides(image_size)
  params = initial_params(small_config())
  square = np.random.default_rng(0).integers(0, 256, (16, SIZE, SIZE, 3), np.uint8)
  patches = square.reshape(16, GRID, PATCH, GRID, PATCH, 3).swapaxes(2, 3)
  image = patches.reshape(16, height // PATCH, width // PATCH, PATCH, PATCH, 3).swapaxes(2, 3)
  wanted, got = (
    learned(params, square),
    learned(params, image.reshape(16, height, width, 3), image_size=image_size),
  )
  assert got[1] == pytest.approx(wanted[1], rel=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got[0], wanted[0])


def test_a_grey_model_sees_what_one_of_three_equal_channels_sees():
  params = initial_params(small_config())
  grey = np.random.default_rng(0).integers(0, 256, (16, SIZE, SIZE, 1), np.uint8)
  summed = {**params, "stem": dict(params["stem"])}
  summed["stem"]["kernel"] = params["stem"]["kernel"].sum(2, keepdims=True)
  _, wanted = learned(params, grey.repeat(3, 3))
  _, got = learned(summed, grey, image_channels=1)
  assert got == pytest.approx(wanted, rel=1e-6)
