"""Normalisation against the authors' table and NumPy in double precision; mixup; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer_jax.errors import InputError
from mixer_jax.training import augment
from tests.conftest import GOLDEN

LEVELS = np.arange(256, dtype=np.uint8)[:, None]


def test_unit_is_the_authors():
  got = jax.jit(augment.normalization("unit", 3))(jnp.tile(LEVELS, (1, 3)))
  wanted = np.load(GOLDEN / "preprocess.npz")["value_range_lut"]
  np.testing.assert_array_equal(got, np.stack([wanted] * 3, axis=1))


@pytest.mark.parametrize(
  ("normalize", "means", "deviations"),
  [
    ("zero_one", [0.0] * 4, [1.0] * 4),
    ("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ((0.1, 0.21, 3, 0.004), [0.1, 0.21], [3, 0.004]),
    ("0.5,0.25", [0.5] * 2, [0.25] * 2),
  ],
)
def test_normalisations_are_numpys(normalize, means, deviations):
  """In double precision, rounded to the nearest or the next float32, close to zero too."""
  function = jax.jit(augment.normalization(normalize, len(means)))
  got = np.asarray(function(jnp.tile(LEVELS, (1, len(means)))))
  wanted = (LEVELS / 255 - np.array(means)) / np.array(deviations)
  np.testing.assert_array_max_ulp(got, np.float32(wanted), maxulp=1)
  told = augment.formula(normalize, len(means))  # in the description of an exported file
  np.testing.assert_array_equal(eval(told, {"pixel": LEVELS}), wanted)


@pytest.mark.parametrize(
  ("normalize", "channels"),
  [("imagenet", 1), ("unlt", 3), ((0.5, 0.5, 0.0), 3), ((0.5, 0.0), 3), ((0.5, float("nan")), 3), ((), 3)],
)  # fmt: skip
def test_a_normalisation_that_cannot_be_is_named(normalize, channels):
  with pytest.raises(InputError, match="normalize is") as error:
    augment.normalization(normalize, channels)
  assert repr(normalize) in str(error.value)


def test_mixup_mixes_neighbours_of_the_whole_batch():
  rng = np.random.default_rng(0)
  pixels, label = rng.integers(0, 256, size=(6, 2, 2, 3)), np.eye(6)
  image = pixels / 255 * 2 - 1
  mix = augment.make_augment(normalize=augment.unit, num_classes=6, mixup_p=0.5)
  shares = []
  for seed in range(200):
    mixed, labels = mix(jax.random.key(seed), jnp.uint8(pixels), jnp.arange(6))
    a = float(labels[0, 0])
    np.testing.assert_allclose(labels, a * label + (1 - a) * np.roll(label, 1, axis=0), atol=1e-6)
    np.testing.assert_allclose(mixed, a * image + (1 - a) * np.roll(image, 1, axis=0), atol=1e-5)
    shares.append(a)
  assert min(shares) >= 0.5
  # max(a, 1 − a) of Beta(½, ½), the arcsine law, has mean ½ + 1/π.
  assert abs(np.mean(shares) - (0.5 + 1 / np.pi)) < 0.03


def test_without_mixup_nothing_is_mixed():
  plain = augment.make_augment(normalize=augment.unit, num_classes=3, mixup_p=0.0)
  image = jnp.uint8(np.random.default_rng(0).integers(0, 256, (2, 2, 2, 1)))
  values, targets = plain(jax.random.key(0), image, jnp.array([[2, 0], [1, -1]]))
  np.testing.assert_array_equal(values, augment.unit(image))
  np.testing.assert_array_equal(targets > 0, [[True, False, True], [False, True, False]])
