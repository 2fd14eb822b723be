"""sMLPNet against the authors' code, its operator's known answer, and what its ties to the resolution mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer_jax import models, weights
from mixer_jax.errors import InputError
from mixer_jax.models import smlp_net
from tests import families
from tests.models.test_relatives import TINY


@pytest.fixture(scope="module")
def golden():
  return families.golden("family/smlpnet", nchw=True)


@pytest.mark.parametrize("train", [False, True])
def test_it_is_the_authors_with_maps_gradients_and_statistics(golden, train):
  stage_of_block = (0, 1, 2, 2, 3)

  def positions(name):
    block = name.split(".")[1]
    return (16 >> stage_of_block[int(block) if block.isdigit() else 4]) ** 2

  families.assert_is_recorded(*golden, train=train, positions=positions)


def mix_tokens(residuals="one"):
  """Returns the mixing of tokens of a block without its residual, in float64, with the known answer's values."""
  c, n = 6, 5

  def fill(number, *shape):
    k = np.arange(np.prod(shape))
    return (0.2 * np.sin(1 + 0.7 * k + 1.3 * number)).reshape(shape)

  params = {
    "BatchNorm_0": {"scale": fill(0, c), "bias": fill(1, c)},
    "depthwise": {"kernel": fill(2, c, 1, 3, 3).transpose(2, 3, 1, 0)},
    "BatchNorm_1": {"scale": fill(3, c), "bias": fill(4, c)},
    "width": {"kernel": fill(5, n, n).T, "bias": fill(6, n)},
    "height": {"kernel": fill(7, n, n).T, "bias": fill(8, n)},
    "fusion": {"kernel": fill(9, c, 3 * c).T},
    "LayerNorm_0": {"scale": np.ones(c), "bias": np.zeros(c)},
    "channel_mixing": {
      "Dense_0": {"kernel": np.zeros((c, 4)), "bias": np.zeros(4)},
      "Dense_1": {"kernel": np.zeros((4, c)), "bias": np.zeros(c)},
    },
  }
  stats = {f"BatchNorm_{i}": {"mean": np.zeros(c), "var": np.ones(c)} for i in range(2)}
  h, w, channel = np.meshgrid(np.arange(n), np.arange(n), np.arange(c), indexing="ij")
  x = np.sin(0.5 + 0.3 * h + 0.7 * w + 1.1 * channel)[None]
  with jax.enable_x64():
    block = smlp_net.SmlpBlock(4, residuals, dtype=jnp.float64, param_dtype=jnp.float64)
    variables = {"params": params, "batch_stats": stats}
    y = block.apply(variables, jnp.asarray(x), jnp.zeros(1, int), None, None, False)
    return np.asarray(y - x)[0], params, x[0]


def test_mixing_of_tokens_has_the_known_answer():
  """The authors' module, printed to nine digits."""
  y, _, _ = mix_tokens()
  have = [y.sum(), (y**2).sum(), *y[0, 0, :3], *y[-1, -1, -3:]]
  want = [
    6.893602116, 0.962914453, 0.122236730, 0.126961777, 0.131543252, -0.026603915, -0.032859751,
    -0.039078427,
  ]  # fmt: skip
  np.testing.assert_allclose(have, want, atol=6e-10, rtol=0)


def test_the_papers_two_residuals():
  """x + depthwise(norm(x)), then with z = norm(x) of that x + fusion[z, width(z), height(z)]."""
  y, p, x = mix_tokens("two")

  def norm(x, p):
    return x / np.sqrt(1 + 1e-5) * p["scale"] + p["bias"]

  padded = np.pad(norm(x, p["BatchNorm_0"]), ((1, 1), (1, 1), (0, 0)))
  kernel = p["depthwise"]["kernel"][:, :, 0]
  middle = x + sum(kernel[i, j] * padded[i : i + 5, j : j + 5] for i in range(3) for j in range(3))
  z = norm(middle, p["BatchNorm_1"])
  width = np.einsum("hwc,wv->hvc", z, p["width"]["kernel"]) + p["width"]["bias"][:, None]
  height = np.einsum("hwc,hg->gwc", z, p["height"]["kernel"]) + p["height"]["bias"][:, None, None]
  want = middle + np.concatenate([z, width, height], -1) @ p["fusion"]["kernel"] - x
  np.testing.assert_allclose(y, want, atol=1e-12, rtol=0)


def test_training_multiplies_by_the_same_matrices():
  """Which takes another order of the axes, whose gradients are fast."""
  x = families.image(2, 4, 6, 3)
  for axis in (1, 2):
    mixing = smlp_net.AxisMixing(axis)
    params = mixing.init(jax.random.key(axis), x, False)
    np.testing.assert_allclose(
      mixing.apply(params, x, True), mixing.apply(params, x, False), atol=1e-6
    )


def test_another_resolution_is_refused_without_resizing():
  model, tree = families.random_variables("smlp_net", 16, 24, **TINY["smlp_net"])
  assert weights.describe(tree).input_shape == (16, 24, 3)
  wanted = models.abstract_variables(model, (24, 16, 3))
  with pytest.raises(
    InputError, match=r"SmlpBlock_0/height/bias is \(8,\), the model's is \(12,\)"
  ):
    weights.check_match(tree, wanted, "x.npz")
  weights.check_match(weights.resize(tree, (8, 12), (12, 8)), wanted, "x.npz")
  with pytest.raises(InputError, match="multiples of 8"):
    models.abstract_variables(model, (16, 20, 3))
  with pytest.raises(InputError, match="multiples of 4 patches"):
    weights.resize(tree, (8, 12), (12, 6))
  with pytest.raises(InputError, match="num_blocks"):
    models.abstract_variables(model.clone(num_blocks=(1, 0)), (16, 16, 3))


def test_resizing_frames_both_maps_by_resampling():
  """The new map = the old one on a line resampled to the old length, its output resampled back."""
  _, tree = families.random_variables("smlp_net", 16, 24, **TINY["smlp_net"])
  resized = weights.resize(tree, (8, 12), (16, 8))
  for name, old, new in (("height", 4, 8), ("width", 6, 4)):  # of the second stage
    before, after = (t["params"]["SmlpBlock_1"][name] for t in (tree, resized))
    x = np.random.default_rng(0).normal(size=(new, 3)).astype(np.float32)
    at_old = jax.image.resize(x, (old, 3), "linear", antialias=True)
    want = before["kernel"].T @ at_old + before["bias"][:, None]
    want = jax.image.resize(want, (new, 3), "linear", antialias=True)
    have = after["kernel"].T @ x + after["bias"][:, None]
    np.testing.assert_allclose(have, want, atol=1e-5, rtol=0)
