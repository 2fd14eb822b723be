"""SPACH against the authors' code, its block's known answers, and the shared and the tied forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer_jax import models, weights
from mixer_jax.errors import InputError
from mixer_jax.models import spach
from mixer_jax.weights import torch_layout
from tests import families
from tests.conftest import GOLDEN
from tests.marks import long

GOLDENS = {
  "spach_pass": ("conv2",),
  "spach_attn": ("attn2",),
  "spach_mlp": ("mlp2",),
  "spach_mlpshared": ("mlp2",),
  "spach_ms_pass": ("conv1", "conv1", "conv2", "conv1"),
  "spach_ms_attn": ("conv1", "attn1", "attn2", "attn1"),
  "spach_ms_mlp": ("conv1", "mlp1", "mlp2", "mlp1"),
  "spach_ms_hybrid": ("conv1", "conv1+attn1", "conv1+attn1", "attn1"),
}


# The hybrid and the MLPs have all that these have.
LONG = ("spach_ms_pass", "spach_ms_attn")


@pytest.mark.parametrize("name", [long(name) if name in LONG else name for name in GOLDENS])
def test_it_is_the_authors_with_maps_and_gradients(name):
  model, found, recorded = families.golden(f"family/{name}", nchw=True)
  assert model.stages == GOLDENS[name]
  assert model.shared_mixing == (name == "spach_mlpshared")
  single = len(model.stages) == 1
  model = model.clone(num_heads=4 if single else 2)
  families.assert_is_recorded(model, found, recorded, {"stage_1": "block2"} if single else None)


def test_the_stems_statistics_are_the_authors():
  model, found, recorded = families.golden("family/spach_ms_hybrid", nchw=True)
  families.assert_is_recorded(
    model.clone(num_heads=2), found, recorded, train=True, positions=lambda _: 32**2
  )


@pytest.mark.parametrize("name", GOLDENS)
def test_a_state_dictionary_of_theirs_comes_back_to_the_bit(name):
  """A shared mixing lies under every block there, and once here."""
  state = torch_layout.load_safetensors(GOLDEN / "family" / f"{name}.safetensors")
  again = torch_layout.to_torch(torch_layout.from_torch(state))
  again = {k: v for k, v in again.items() if not k.endswith("num_batches_tracked")}
  jax.tree.map(np.testing.assert_array_equal, again, dict(state))


KNOWN = {
  "mlp": (
    -1.294528985, 123.388128032, 0.688971818, 1.335449789, 0.764896125, -0.862115950, -1.526496155,
    -0.690594287,
  ),
  "attn": (
    -2.094934762, 121.904962066, 0.663827029, 1.325109569, 0.772595711, -0.915539541, -1.556649431,
    -0.695870267,
  ),
  "conv": (
    8.229692584, 119.058397189, 0.276076144, 1.036147221, 0.316233372, -0.049308283, -0.220112617,
    -0.094723330,
  ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KNOWN)
def test_blocks_have_the_known_answers(kind):
  """The authors' blocks in float64, printed to nine digits: the sum, that of squares, six values."""
  c, n = 8, 5
  double = dict(dtype=jnp.float64, param_dtype=jnp.float64)
  mixing = {
    "mlp": lambda name: spach.TokenMlp(12, name=name, **double),
    "attn": lambda name: spach.Attention(2, name=name, **double),
    "conv": None,
  }[kind]
  theirs = {
    "mlp": [("mixing/mlp/Dense_0", (12, 25)), ("mixing/mlp/Dense_1", (25, 12))],
    "attn": [("mixing/qkv", (24, 8)), ("mixing/out", (8, 8))],
    "conv": [],
  }[kind]
  order = [("scale", (c,))] * bool(theirs) + theirs + [("norm_tokens", (c,))] * bool(theirs)
  order += [("channel_mixing/Dense_0", (16, c)), ("channel_mixing/Dense_1", (c, 16))]
  order += [("norm_channels", (c,)), ("depthwise", (c, 1, 3, 3))]
  flat, number = {}, 0

  def fill(shape):
    nonlocal number
    k = np.arange(np.prod(shape))
    number += 1
    return (0.2 * np.sin(1 + 0.7 * k + 1.3 * (number - 1))).reshape(shape)

  for name, shape in order:
    weight = fill(shape)
    if name == "scale":
      flat[f"{name}/gamma"] = weight
      continue
    weight = np.moveaxis(weight, (1, 0), (-2, -1)) if len(shape) > 1 else weight
    flat[f"{name}/{'kernel' if len(shape) > 1 else 'scale'}"] = weight
    flat[f"{name}/bias"] = fill(shape[:1])
  params = weights.variables.unflatten(flat)
  h, w, channel = np.meshgrid(np.arange(n), np.arange(n), np.arange(c), indexing="ij")
  x = np.sin(0.5 + 0.3 * h + 0.7 * w + 1.1 * channel)[None]
  with jax.enable_x64():
    block = spach.SpachBlock(16, mixing, **double)
    y = np.asarray(block.apply(params, jnp.asarray(x), jnp.zeros(1, int), None, None, False))[0]
  have = [y.sum(), (y**2).sum(), *y[0, 0, :3], *y[-1, -1, -3:]]
  np.testing.assert_allclose(have, KNOWN[kind], atol=6e-10, rtol=0)


TIED = dict(
  num_classes=5, patch_size=4, hidden_dim=8, stages=("conv1", "mlp2"), mlp_ratio=2,
  shared_mixing=False, stem_channels=0,
)  # fmt: skip


def test_an_mlp_over_tokens_ties_the_resolution():
  model, tree = families.random_variables("spach", 16, 24, **TIED)
  wanted = models.abstract_variables(model, (32, 24, 3))
  with pytest.raises(InputError, match=r"Dense_0/bias is \(3,\), the model's is \(6,\)"):
    weights.check_match(tree, wanted, "x.npz")
  with pytest.raises(InputError, match="multiples of 8"):
    models.abstract_variables(model, (16, 20, 3))
  with pytest.raises(InputError, match="multiples of 2 patches"):
    weights.resize(tree, (4, 6), (5, 6))
  spec = weights.describe(tree)
  assert not spec.knows_sides and spec.input_shape == (48, 8, 3)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("old", "new"), [((4, 4), (6, 8)), ((4, 6), (2, 4))])
def test_resizing_frames_the_mlp_by_resampling(shared, old, new):
  """The new MLP on tokens = the old one on tokens resampled to the old grid, its output resampled back."""
  fields = {**TIED, "shared_mixing": shared}
  model, tree = families.random_variables("spach", 4 * old[0], 4 * old[1], **fields)
  resized = weights.resize(tree, old, new)
  told = weights.describe(resized).fields
  wanted = {**fields, "num_classes": 5, "num_heads": None}
  assert told == spach.resize_fields(wanted, old, new, "interpolate")
  place = ("SharedMixing_1",) if shared else ("SpachBlock_1_1", "mixing")

  def mix(tree, x):
    params = tree["params"]
    for name in place:
      params = params[name]
    mlp = spach.TokenMlp(told["token_mlp_dims"][1])
    y = mlp.apply({"params": params}, x.reshape(1, -1, 3), jnp.zeros(1, int), False)
    return y.reshape(x.shape)

  def resample(x, grid):
    return jax.image.resize(x, (*(side // 2 for side in grid), 3), "linear", antialias=True)

  x = families.image(new[0] // 2, new[1] // 2, 3)
  want = resample(mix(tree, resample(x, old)), new)
  np.testing.assert_allclose(mix(resized, x), want, atol=1e-5, rtol=0)
  models.build("spach", **told).apply(resized, families.image(1, 4 * new[0], 4 * new[1], 3))


def test_others_take_every_size():
  """What fills no patch at the border is left out, in the image and between stages; there is nothing to resize."""
  fields = {**TIED, "stages": ("conv1", "conv1+attn1")}
  model, tree = families.random_variables("spach", 16, 16, **fields)
  image = families.image(1, 23, 31, 3)
  same = model.apply(tree, image[:, :20, :28])
  np.testing.assert_allclose(model.apply(tree, image), same, atol=1e-6)
  assert weights.describe(tree).resize_methods == ()
  with pytest.raises(InputError, match="every image size"):
    weights.resize(tree, (4, 4), (6, 6))


def test_the_convolution_reads_the_blocks_input():
  """And not what mixing makes of it: their derivatives add up."""
  block = spach.SpachBlock(4, lambda name: spach.TokenMlp(8, name=name))
  u = families.image(1, 4, 4, 2)
  rest = jnp.zeros(1, int), None, None, False
  params = block.init(jax.random.key(0), u, *rest)["params"]
  params["channel_mixing"] = jax.tree.map(jnp.zeros_like, params["channel_mixing"])
  params["scale"]["gamma"] = jnp.array([2.0, 3.0])

  def run(**changed):
    return block.apply({"params": {**params, **changed}}, u, *rest) - u

  no_convolution = run(depthwise=jax.tree.map(jnp.zeros_like, params["depthwise"]))
  no_mixing = run(scale={"gamma": jnp.zeros(2)})
  np.testing.assert_allclose(run(), no_convolution + no_mixing, atol=1e-6)
  assert np.abs(no_convolution).max() > 0.01 and np.abs(no_mixing).max() > 0.01


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(stages=("conv2", "mpl2")), "stages has 'mpl2'"),
    (dict(stages=()), "stages is empty"),
    (dict(stages=("attn1",), num_heads=3), "num_heads 3 does not divide hidden_dim 8"),
    (dict(token_mlp_dims=(0, 0)), "token_mlp_dims"),
    (dict(token_mlp_dims=(8,)), "token_mlp_dims"),
    (dict(stages=("attn1+mlp1",), shared_mixing=True), "shared_mixing"),
    (dict(patch_size=3, stages=("conv1",), stem_channels=4), "patch_size 3 is odd"),
    (dict(stages=("conv1",) * 4), "16x16 pixels is smaller than .* 32x32"),
  ],
)
def test_bad_fields_are_named(fields, message):
  with pytest.raises(InputError, match=message):
    models.abstract_variables(models.build("spach", **{**TIED, **fields}), (16, 16, 3))
