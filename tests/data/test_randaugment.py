"""RandAugment against results recorded from the authors' public code, and its contract."""

import json
from collections import Counter

import numpy as np
import pytest

from mixer_jax.data import randaugment
from mixer_jax.data.randaugment import OPERATIONS, Draw
from tests.conftest import GOLDEN

INDEX = json.loads((GOLDEN / "randaugment_index.json").read_text())
SIGNED = {"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"}


@pytest.fixture(scope="module")
def recorded():
  with np.load(GOLDEN / "randaugment.npz") as file:
    return dict(file)


def recorded_draw(entry):
  if entry["sign"] is not None:
    return Draw(entry["op"], (entry["sign"],))
  return Draw(entry["op"], tuple(entry["center_hw"] or ()))


def one_of_each():
  """Every operation once, with some argument."""
  arguments = dict.fromkeys(SIGNED, (-1,)) | {"Cutout": (3, 5)}
  return [Draw(name, arguments.get(name, ())) for name in OPERATIONS]


def noise(height, width, channels=3):
  return np.random.default_rng(7).integers(0, 256, (height, width, channels), np.uint8)


def test_operations_are_in_the_recorded_order():
  assert list(OPERATIONS) == INDEX["ops_in_order"]


@pytest.mark.parametrize("entry", INDEX["entries"], ids=lambda e: f"{e['key']}@{e['magnitude']}")
def test_operation_matches_the_recorded_result(recorded, entry):
  got = randaugment.apply(recorded["image"], [recorded_draw(entry)], magnitude=entry["magnitude"])
  want = recorded[entry["key"]]
  assert got.dtype == np.uint8
  if entry["op"] != "Sharpness":
    np.testing.assert_array_equal(got, want)
    return
  # Rounding before the truncation differs between CPUs, as it does for the authors' own code.
  difference = np.abs(got.astype(int) - want)
  assert difference.max() <= {10: 1, 15: 2, 20: 3}[entry["magnitude"]]
  assert np.mean(difference > 0) <= 0.03


@pytest.mark.parametrize("step", one_of_each(), ids=lambda step: step.name)
def test_operation_takes_views_and_leaves_its_input_alone(step):
  flipped = noise(24, 31)[:, ::-1]
  flipped.flags.writeable = False
  got = randaugment.apply(flipped, [step], magnitude=15)
  want = randaugment.apply(np.ascontiguousarray(flipped), [step], magnitude=15)
  np.testing.assert_array_equal(got, want)
  assert not np.shares_memory(got, flipped)


@pytest.mark.parametrize("magnitude", [0, 3, 15, 20, 1000])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (33, 20)])
def test_any_size_and_magnitude_keeps_shape_and_dtype(size, magnitude):
  for step in one_of_each():
    got = randaugment.apply(noise(*size), [step], magnitude=magnitude)
    assert (got.shape, got.dtype) == ((*size, 3), np.uint8)


@pytest.mark.parametrize("step", one_of_each(), ids=lambda step: step.name)
def test_a_grey_image_is_changed_as_three_equal_channels(step):
  grey = noise(24, 31, 1)
  got = randaugment.apply(grey, [step], magnitude=15)
  want = randaugment.apply(np.repeat(grey, 3, 2), [step], magnitude=15)[..., :1]
  assert got.shape == want.shape
  # As in the recorded results, rounding before Sharpness's truncation depends on how OpenCV is compiled.
  differs = got != want
  assert differs.mean() <= (0.03 if step.name == "Sharpness" else 0)


@pytest.mark.parametrize("name", ["AutoContrast", "Equalize"])
def test_constant_channels_stay_as_they_are(name):
  image = np.tile(np.array([0, 90, 255], np.uint8), (8, 9, 1))
  np.testing.assert_array_equal(randaugment.apply(image, [Draw(name)], magnitude=15), image)


def test_warps_of_an_oblong_image():
  image = noise(20, 40)
  moved = randaugment.apply(image, [Draw("TranslateX", (1,))], magnitude=3)
  np.testing.assert_array_equal(moved[:, :10], image[:, 30:])
  assert (moved[:, 10:] == 128).all()
  turned = randaugment.apply(image, [Draw("Rotate", (1,))], magnitude=60)
  np.testing.assert_array_equal(turned, image[::-1, ::-1])


def test_layers_are_applied_in_order():
  image = noise(24, 31)
  cut, invert = Draw("Cutout", (3, 5)), Draw("Invert")
  got = randaugment.apply(image, [cut, invert], magnitude=1)
  np.testing.assert_array_equal(got, 255 - randaugment.apply(image, [cut], magnitude=1))
  assert (got[:7, 1:9] == 127).all()


def test_operations_and_signs_are_drawn_uniformly():
  draws = randaugment.draw(np.random.default_rng(0), 24, 31, num_layers=16_000)
  counts = Counter(step.name for step in draws)
  chi_square = sum((counts[name] - 1000) ** 2 / 1000 for name in OPERATIONS)
  assert chi_square < 37.7  # exceeded with probability 0.001 at 15 degrees of freedom
  for name in OPERATIONS:
    arguments = [step.argument for step in draws if step.name == name]
    if name in SIGNED:
      assert set(arguments) == {(1,), (-1,)}
      assert abs(np.mean(arguments)) < 0.15  # more than four standard deviations
    elif name != "Cutout":
      assert set(arguments) == {()}


def test_cutout_centres_cover_the_image():
  draws = randaugment.draw(np.random.default_rng(0), 3, 4, num_layers=5_000)
  centres = {step.argument for step in draws if step.name == "Cutout"}
  assert centres == {(row, column) for row in range(3) for column in range(4)}
