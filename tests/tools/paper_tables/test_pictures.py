"""Pictures of weights: the right weight at the right place, in the order of frequency, in opposite pairs."""

import numpy as np
import pytest

from mixer_jax.errors import InputError
from mixer_jax.figures import hidden_units
from mixer_jax.tools.paper_tables import weights_figures


def wave(cycles, phase=0.0, side=8, amplitude=1.0):
  x = np.arange(side) / side
  return amplitude * np.cos(2 * np.pi * cycles * x + phase)[None, :] * np.ones((side, 1))


def make_params(units, blocks=1):
  """Returns parameters whose token-mixing units are these pictures."""
  kernel = np.stack(units).reshape(len(units), -1).T.astype(np.float32)
  block = {"token_mixing": {"Dense_0": {"kernel": kernel}}}
  rng = np.random.default_rng(0)
  params = {f"MixerBlock_{i}": block for i in range(blocks)}
  return params | {"stem": {"kernel": rng.normal(size=(4, 4, 3, 9)).astype(np.float32)}}


def test_a_unit_is_a_picture_of_its_tokens_in_raster_order():
  kernel = np.arange(9 * 2, dtype=np.float32).reshape(9, 2)  # token s of unit d is 2s + d
  units = hidden_units.hidden_units(
    {"MixerBlock_0": {"token_mixing": {"Dense_0": {"kernel": kernel}}}}, 0
  )
  np.testing.assert_array_equal(units[1], [[1, 3, 5], [7, 9, 11], [13, 15, 17]])


def test_frequencies_are_those_of_waves():
  waves = np.stack([wave(c) for c in (3, 0, 1, 2)] + [wave(2, amplitude=5.0)])
  np.testing.assert_allclose(
    hidden_units.frequencies(waves), [3 / 8, 0, 1 / 8, 2 / 8, 2 / 8], atol=1e-12
  )
  rgb = np.stack([np.stack([wave(1), wave(1), wave(1)], -1), np.stack([wave(3)] * 3, -1)])
  np.testing.assert_allclose(hidden_units.frequencies(rgb), [1 / 8, 3 / 8], atol=1e-12)


def test_every_unit_is_in_one_pair_and_the_partner_is_the_most_negative_of_those_left():
  units = np.random.default_rng(1).normal(size=(11, 5, 5))
  pairs = hidden_units.opposite_pairs(units)
  assert pairs.shape == (5, 2)
  assert len(set(pairs.ravel().tolist())) == 10
  flat = units.reshape(11, -1) / np.linalg.norm(units.reshape(11, -1), axis=1, keepdims=True)
  left = set(range(11))
  for first, second in pairs.tolist():
    left.discard(first)
    assert flat[first] @ flat[second] == pytest.approx(min(flat[first] @ flat[i] for i in left))
    assert hidden_units.frequencies(units)[first] <= min(
      hidden_units.frequencies(units)[list(left)]
    )
    left.discard(second)


def test_units_of_a_rectangle_have_its_grid():
  """4×9 tokens, a square number of them."""
  kernel = np.random.default_rng(0).normal(size=(36, 5)).astype(np.float32)
  params = {"MixerBlock_0": {"token_mixing": {"Dense_0": {"kernel": kernel}}}}
  units = hidden_units.hidden_units(params, 0, (32, 72))
  np.testing.assert_array_equal(units.reshape(5, 36), kernel.T)
  assert units.shape == (5, 4, 9)
  assert hidden_units.hidden_units(params, 0).shape == (5, 6, 6)
  with pytest.raises(InputError, match="grid of 16:24"):
    hidden_units.hidden_units(params, 0, (16, 24))


def test_grey_filters_are_drawn_grey():
  kernel = np.random.default_rng(0).normal(size=(4, 4, 1, 6))
  mosaic = hidden_units.filter_mosaic({"stem": {"kernel": kernel}})
  np.testing.assert_array_equal(mosaic, mosaic[..., :1].repeat(3, 2))


def test_colours_show_the_sign_and_the_places():
  mosaic = hidden_units.grey_mosaic(
    np.array([[[1.0, 0.0], [-1.0, -0.5]], [[0.0, 0.0], [0.0, 2.0]]]), 2
  )
  assert mosaic.shape == (4, 7, 3)
  red, white, blue = mosaic[1, 1], mosaic[1, 2], mosaic[2, 1]
  assert red[0] > red[2] and blue[2] > blue[0]
  np.testing.assert_array_equal(white, 1.0)
  np.testing.assert_allclose(mosaic[2, 2], (white + blue) / 2)
  np.testing.assert_allclose(mosaic[2, 5], red)  # the second picture, by its own scale


@pytest.mark.parametrize("name", ["figure5", "figure6", "figure7"])
def test_weights_of_another_architecture_are_refused(name):
  with pytest.raises(InputError, match="only a Mixer's"):
    weights_figures.FIGURES[name]({"vit.npz": {"embedding": {}, "Transformer": {}}})


def test_figure5_names_and_counts_what_it_shows():
  units = [wave(2), wave(1), wave(3), wave(2, np.pi), wave(3, np.pi), wave(1, np.pi)]
  drawn = weights_figures.figure5({"mine": make_params(units, blocks=4)})
  assert [row[:4] for row in drawn.table.rows] == [
    [f"MixerBlock_{i}", "6", "8x8", "-1.000"] for i in range(3)
  ]
  *blocks, scale = drawn.figure.axes
  assert [axes.get_title() for axes in blocks] == [row[0] for row in drawn.table.rows]
  assert scale.get_xlim() == (-1, 1) and "weight" in scale.get_xlabel()
  shown = [axes.images[0].get_array() for axes in blocks]
  expected = hidden_units.grey_mosaic(np.stack(units)[[1, 5, 0, 3, 2, 4]], 2, gap_every=2)
  assert all(np.allclose(image, expected) for image in shown)
