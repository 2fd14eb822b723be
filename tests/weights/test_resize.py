"""Appendix C against its exact consequence, interpolation against an independent resampling and against functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer_jax import models, weights
from mixer_jax.errors import InputError
from mixer_jax.models import mixer, resizing
from mixer_jax.models.mixer import VARIANTS
from tests.weights import mixers


def fields_of(variant, **changes):
  return {**VARIANTS[variant], "num_classes": 3, **changes}


def tiles(image, k):
  """Returns the K×K tiles of an image, (K², height/K, width/K, 3), in raster order."""
  height, width = image.shape[0] // k, image.shape[1] // k
  return np.stack(
    [
      image[a * height : (a + 1) * height, b * width : (b + 1) * width]
      for a in range(k) for b in range(k)
    ]
  )  # fmt: skip


def deviation_from_tiles(fields, size, k):
  """Returns the largest |pre_logits of the enlarged model − mean over tiles of the original's|."""
  height, width = size
  grid = resizing.token_grid(size, fields["patch_size"])
  variables = mixers.random_variables(height, width, **fields)
  enlarged = paper(variables, grid, k)
  image = mixers.image(k * height, k * width, 3)
  have = mixers.headless(**weights.describe(enlarged).fields)(enlarged, image[None])[0]
  original = mixers.headless(**fields)  # tile by tile, which needs little memory
  want = np.mean([original(variables, tile[None])[0] for tile in tiles(image, k)], axis=0)
  assert np.abs(want).max() > 0.1
  return np.abs(have - want).max()


def paper(variables, grid, k):
  return weights.resize(variables, grid, (k * grid[0], k * grid[1]), "paper")


@pytest.mark.parametrize(
  ("fields", "size", "k"),
  [(mixers.TINY, (8, 12), 3), (fields_of("B/16"), (224, 224), 2)],
  ids=["tiny x3", "B/16 x2"],
)
def test_enlarged_by_appendix_c_a_model_is_the_mean_over_tiles(fields, size, k):
  assert deviation_from_tiles(fields, size, k) < 1e-5


@pytest.mark.campaign
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_enlarged_is_the_mean_over_tiles(variant, k):
  """All blocks; H/14 with K = 3 needs about 10 GB."""
  deviation = deviation_from_tiles(fields_of(variant), (224, 224), k)
  print(f"\n{variant} K={k}: {deviation:.1e}")
  assert deviation < 1e-5


def test_entries_are_those_of_the_formula():
  """Copied bit for bit where the formula says so, zero elsewhere."""
  (rows, columns), k, d = (2, 3), 2, mixers.TINY["tokens_mlp_dim"]
  variables = mixers.random_variables(8, 12, **mixers.TINY)
  new = paper(variables, (rows, columns), k)["params"]["MixerBlock_1"]["token_mixing"]
  old = variables["params"]["MixerBlock_1"]["token_mixing"]
  kernel0, kernel1 = np.zeros((24, 4 * d), np.float32), np.zeros((4 * d, 24), np.float32)
  bias0, bias1 = np.zeros(4 * d, np.float32), np.zeros(24, np.float32)
  for a, b, i, j, h in np.ndindex(k, k, rows, columns, d):
    r, s, t = (a * rows + i) * k * columns + b * columns + j, i * columns + j, a * k + b
    kernel0[r, t * d + h] = old["Dense_0"]["kernel"][s, h]
    kernel1[t * d + h, r] = old["Dense_1"]["kernel"][h, s]
    bias0[t * d + h] = old["Dense_0"]["bias"][h]
    bias1[r] = old["Dense_1"]["bias"][s]
  for have, want in (
    (new["Dense_0"]["kernel"], kernel0), (new["Dense_0"]["bias"], bias0),
    (new["Dense_1"]["kernel"], kernel1), (new["Dense_1"]["bias"], bias1),
  ):  # fmt: skip
    np.testing.assert_array_equal(have, want)


def first_mlp(variables):
  """Returns the first block's token mixing: kernel0 (s, d), bias0, kernel1 (d, s), bias1."""
  mlp = variables["params"]["MixerBlock_0"]["token_mixing"]
  return [np.asarray(mlp[m][leaf], np.float64) for m in ("Dense_0", "Dense_1") for leaf in ("kernel", "bias")]  # fmt: skip


def mixer_for(grid, dtype=np.float32, **changes):
  fields = {**mixers.TINY, **changes}
  variables = mixers.random_variables(4 * grid[0], 4 * grid[1], **fields)
  return jax.tree.map(lambda x: x.astype(dtype), variables)


GRIDS = [
  ((14, 14), (16, 16)), ((14, 14), (8, 8)), ((14, 14), (28, 14)), ((14, 14), (24, 24)),
  ((14, 14), (28, 28)), ((7, 5), (4, 9)), ((5, 7), (7, 5)), ((3, 3), (1, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_interpolated_token_mixing_is_the_old_one_between_resamplings(old, new):
  """New first layer on x = old one on x resampled to the old grid; the output is resampled likewise."""
  variables = mixer_for(old)
  kernel0, bias0, kernel1, bias1 = first_mlp(variables)
  resized = weights.resize(variables, old, new, "interpolate")
  new0, new_bias0, new1, new_bias1 = first_mlp(resized)

  def resample(x, shape):
    """jax.image's antialiased linear resizing of (rows, columns, channels)."""
    return np.asarray(jax.image.resize(x, (*shape, x.shape[-1]), "linear", antialias=True))

  rng = np.random.default_rng(0)
  x = rng.normal(size=(*new, 6)).astype(np.float32)
  have = np.einsum("sd,sc->dc", new0, x.reshape(-1, 6))
  want = np.einsum("sd,sc->dc", kernel0, resample(x, old).reshape(-1, 6))
  np.testing.assert_allclose(have, want, atol=1e-5, rtol=0)
  np.testing.assert_array_equal(new_bias0, bias0)
  hidden = rng.normal(size=(mixers.TINY["tokens_mlp_dim"], 6)).astype(np.float32)
  out = (np.einsum("ds,dc->sc", kernel1, hidden) + bias1[:, None]).astype(np.float32)
  have = np.einsum("ds,dc->sc", new1, hidden) + new_bias1[:, None]
  want = resample(out.reshape(*old, 6), new).reshape(-1, 6)
  np.testing.assert_allclose(have, want, atol=1e-5, rtol=0)


def smooth(grid, waves):
  """Returns cosines sampled at the centres of a grid's tokens, (rows·columns, len(waves))."""
  u, v = (
    np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n for n in grid), indexing="ij"))
    .reshape(2, -1)[:, :, None]
  )  # fmt: skip
  up, across = np.asarray(waves).T
  return np.cos(np.pi * up * u) * np.cos(np.pi * across * v) + 0.5


WAVES = [(0, 0), (1, 0), (0, 1), (1, 1), (2, 1)]


@pytest.mark.parametrize("new", [(8, 8), (16, 16), (18, 18), (24, 24), (28, 14), (28, 28)])
def test_smooth_tokens_are_mixed_alike_on_either_grid(new):
  """Functions over the image, sampled by either grid: the same hidden units and the same output."""
  old = (14, 14)
  variables = mixer_for(old, np.float64)
  kernel1 = np.random.default_rng(2).normal(size=(12, len(WAVES))) @ smooth(old, WAVES).T
  second = variables["params"]["MixerBlock_0"]["token_mixing"]["Dense_1"]
  second["kernel"] = kernel1
  second["bias"] = smooth(old, WAVES[3:4])[:, 0]
  resized = weights.resize(variables, old, new, "interpolate")
  (old0, *_), (new0, _, new1, new_bias1) = first_mlp(variables), first_mlp(resized)
  want, have = (k.T @ smooth(g, WAVES) for k, g in ((old0, old), (new0, new)))
  scale = np.abs(want).max()
  assert np.abs(have - want).max() < 0.04 * scale
  # Without the scale by the density of tokens they would not be.
  density = new[0] * new[1] / 196
  assert np.abs(have * density - want).max() > 0.2 * scale
  exact = np.random.default_rng(2).normal(size=(12, len(WAVES))) @ smooth(new, WAVES).T
  assert np.abs(new1 - exact).max() < 0.04 * np.abs(exact).max()
  assert np.abs(new_bias1 - smooth(new, WAVES[3:4])[:, 0]).max() < 0.04 * 1.5


def test_a_model_that_adds_the_same_to_every_token_keeps_its_logits_on_plain_images():
  """From end to end: second token-mixing layers constant over the grid, images of one colour."""
  variables = mixers.random_variables(16, 16, **mixers.TINY)
  for i in range(2):
    second = variables["params"][f"MixerBlock_{i}"]["token_mixing"]["Dense_1"]
    second["kernel"] = np.repeat(second["kernel"][:, :1], 16, 1)
    second["bias"] = np.repeat(second["bias"][:1], 16)
  resized = weights.resize(variables, (4, 4), (7, 3), "interpolate")
  colour = mixers.image(3, 1, 1, 3)
  model = mixers.headless(**mixers.TINY)
  want = model(variables, jnp.tile(colour, (1, 16, 16, 1)))
  have = model(resized, jnp.tile(colour, (1, 28, 12, 1)))
  np.testing.assert_allclose(have, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["auto", "paper", "interpolate"])
def test_the_same_grid_changes_nothing(method):
  variables = mixer_for((3, 4))
  same = weights.resize(variables, (3, 4), (3, 4), method)
  jax.tree.map(np.testing.assert_array_equal, same, variables)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("new", [(8, 8), (6, 4)])
def test_types_and_everything_but_token_mixing_stay(dtype, new):
  variables = mixer_for((4, 4), jnp.dtype(dtype))
  resized = weights.resize(variables, (4, 4), new)
  assert {x.dtype for x in jax.tree.leaves(resized)} == {jnp.dtype(dtype)}
  for tree in (resized, variables):
    for i in range(2):
      tree["params"][f"MixerBlock_{i}"].pop("token_mixing")
  jax.tree.map(np.testing.assert_array_equal, resized, variables)


@pytest.mark.parametrize(
  ("new", "method", "wanted"),
  [((8, 8), "auto", 48), ((12, 12), "auto", 108), ((8, 4), "auto", 12), ((6, 6), "auto", 12),
   ((2, 2), "auto", 12), ((8, 8), "interpolate", 12), ((8, 8), "paper", 48)],
)  # fmt: skip
def test_the_new_width_is_told_before_and_after(new, method, wanted):
  variables = mixer_for((4, 4))
  resized = weights.resize(variables, (4, 4), new, method)
  chosen = resizing.choose_method((4, 4), new, method, mixer.RESIZE_METHODS({}))
  fields = mixer.resize_fields(mixers.TINY, (4, 4), new, chosen)
  assert fields == {**mixers.TINY, "tokens_mlp_dim": wanted} == weights.describe(resized).fields
  model = models.build("mixer", **fields)
  shapes = models.abstract_variables(model, (4 * new[0], 4 * new[1], 3))
  weights.check_match(resized, shapes, "the resized model")


def test_what_does_not_fit_is_named():
  variables = mixer_for((3, 4))
  with pytest.raises(InputError, match="for 12 tokens, not for a grid of 4x4"):
    weights.resize(variables, (4, 4), (8, 8))
  with pytest.raises(InputError, match="9x8 tokens are no whole multiple of 3x4"):
    weights.resize(variables, (3, 4), (9, 8), "paper")
  with pytest.raises(InputError, match="'papr'"):
    weights.resize(variables, (3, 4), (9, 8), "papr")
  with pytest.raises(InputError, match="16 does not divide the image of 250x224"):
    resizing.token_grid((250, 224), 16)
  with pytest.raises(InputError, match="holds none of Mixer's"):
    weights.resize({"params": {"conv": {"kernel": np.zeros(3)}}}, (3, 4), (9, 8))
