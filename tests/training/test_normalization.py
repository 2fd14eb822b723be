"""Normalisation against the authors' table and NumPy in double precision; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer_jax.errors import InputError
from mixer_jax.training import normalization
from tests.conftest import GOLDEN

LEVELS = np.arange(256, dtype=np.uint8)[:, None]


def test_unit_is_the_authors():
  got = jax.jit(normalization.make_normalize("unit", 3))(jnp.tile(LEVELS, (1, 3)))
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
  function = jax.jit(normalization.make_normalize(normalize, len(means)))
  got = np.asarray(function(jnp.tile(LEVELS, (1, len(means)))))
  wanted = (LEVELS / 255 - np.array(means)) / np.array(deviations)
  np.testing.assert_array_max_ulp(got, np.float32(wanted), maxulp=1)
  told = normalization.formula(normalize, len(means))  # in the description of an exported file
  np.testing.assert_array_equal(eval(told, {"pixel": LEVELS}), wanted)


@pytest.mark.parametrize(
  ("normalize", "channels"),
  [("imagenet", 1), ("unlt", 3), ((0.5, 0.5, 0.0), 3), ((0.5, 0.0), 3), ((0.5, float("nan")), 3), ((), 3)],
)  # fmt: skip
def test_a_normalisation_that_cannot_be_is_named(normalize, channels):
  with pytest.raises(InputError, match="normalize is") as error:
    normalization.make_normalize(normalize, channels)
  assert repr(normalize) in str(error.value)
