"""Circulant token mixing (CCS) in Mixer and ResMLP, against recorded arrays and what makes it circulant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer_jax import models, weights
from mixer_jax.errors import InputError
from mixer_jax.models import layers
from mixer_jax.weights import torch_layout
from tests import families
from tests.conftest import GOLDEN

CCS = dict(token_mixing="circulant", channel_groups=8)
TINY = {
  "mixer": dict(
    num_classes=5, patch_size=4, num_blocks=2, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=24, **CCS
  ),
  "res_mlp": dict(num_classes=5, patch_size=4, num_blocks=2, hidden_dim=16, mlp_dim=24, **CCS),
}  # fmt: skip
OPS = np.load(GOLDEN / "family/ops_ccs.npz")
CASES = sorted({key.rsplit("/", 1)[0] for key in OPS.files})


@pytest.mark.parametrize("case", CASES)
def test_the_operator_is_the_papers(case):
  x, w, want = (OPS[f"{case}/{key}"] for key in ("x", "w", "corr_interleaved"))
  with jax.enable_x64(True):
    out = layers.circulant(jnp.asarray(x), jnp.asarray(w.T))
  np.testing.assert_allclose(out, want, atol=1e-12, rtol=0)
  spectrum = np.tile(np.conj(np.fft.rfft(w, axis=1)).T, (1, x.shape[2] // w.shape[0]))
  by_fft = np.fft.irfft(np.fft.rfft(x, axis=1) * spectrum, n=x.shape[1], axis=1)
  np.testing.assert_allclose(out, by_fft, atol=1e-12, rtol=0)


@pytest.mark.parametrize("shift", [1, 5, -2])
def test_rotating_the_tokens_rotates_what_comes_out(shift):
  x, kernel = families.image(2, 12, 16, seed=3), families.image(12, 8, seed=4)
  rolled = layers.circulant(jnp.roll(x, shift, axis=1), kernel)
  np.testing.assert_allclose(
    rolled, jnp.roll(layers.circulant(x, kernel), shift, axis=1), atol=1e-5, rtol=0
  )
  unit = jnp.zeros((12, 16)).at[0].set(1)
  np.testing.assert_array_equal(layers.circulant(x, unit), x)


def test_vectors_start_within_the_papers_bounds():
  made = layers.Circulant(8).init(jax.random.key(0), jnp.zeros((1, 196, 16)))
  kernel = np.asarray(made["params"]["kernel"])
  assert 0.99 < np.abs(kernel).max() * 14 <= 1
  assert abs(kernel.std() * 14 * 3**0.5 - 1) < 0.03


GOLDENS = {"mixer": "ccs_mixer_derived", "res_mlp": "ccs_resmlp_derived"}


@pytest.fixture(scope="module", params=GOLDENS)
def recorded(request):
  """A family's model, variables, recorded arrays and state dictionary; affine parameters as timm keeps them."""
  path = GOLDEN / f"family/{GOLDENS[request.param]}"
  state = {
    k: v[None, None] if k.endswith((".alpha", ".beta")) else v
    for k, v in torch_layout.load_safetensors(f"{path}.safetensors").items()
  }
  found = torch_layout.from_torch(state)
  origin = weights.describe(found)
  assert (origin.family, origin.fields["channel_groups"]) == (request.param, 4)
  arrays = dict(np.load(f"{path}.npz"))
  arrays["image"] = jnp.asarray(arrays["image"].transpose(0, 2, 3, 1))
  model = models.build(origin.family, **{**origin.fields, "gelu": "erf"})
  return model, found, arrays, state


def test_models_are_the_recorded_ones(recorded):
  model, found, arrays, state = recorded
  families.assert_close(model.apply(found, arrays["image"]), arrays["logits"])
  seen = models.features(model, found, arrays["image"])
  families.assert_close(seen["pre_logits"], arrays["pre_logits"])
  for i in range(2):
    families.assert_close(seen[f"block_{i}"], arrays[f"block{i + 1}"])
  again = torch_layout.to_torch(found)
  assert again.keys() == state.keys()
  jax.tree.map(np.testing.assert_array_equal, again, state)


@pytest.mark.parametrize("train", [False, True])
def test_gradients_are_the_recorded_ones(recorded, train):
  model, found, arrays, _ = recorded

  @jax.grad
  def gradient(params):
    logits = model.apply({"params": params}, arrays["image"], train=train)
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(2), arrays["labels"]])

  theirs = torch_layout.to_torch({"params": gradient(found["params"])})
  compared = {key.removeprefix("grad/"): want for key, want in arrays.items() if "grad/" in key}
  assert "blocks.0.token.w" in compared
  for name, want in compared.items():
    families.assert_close(theirs[name].reshape(want.shape), want, 5e-6, 5e-6)


@pytest.mark.parametrize(
  ("family", "variant", "groups", "count"),
  [
    ("mixer", "S/16", 8, 17_734_376), ("mixer", "B/16", 1, 58_069_528), ("mixer", "B/16", 8, 58_085_992),
    ("mixer", "B/16", 768, 59_873_512), ("res_mlp", "12", 8, 14_906_344), ("res_mlp", "24", 8, 29_131_624),
    ("res_mlp", "36", 1, 43_307_512), ("res_mlp", "36", 8, 43_356_904), ("res_mlp", "36", 384, 46_009_960),
  ],
)  # fmt: skip
def test_models_have_the_papers_number_of_parameters(family, variant, groups, count):
  model = models.build(family, variant=variant, token_mixing="circulant", channel_groups=groups)
  abstract = models.abstract_variables(model, (224, 224, 3))
  assert sum(x.size for x in jax.tree.leaves(abstract)) == count
  fields = weights.describe(abstract).fields
  assert {k: getattr(model, k) for k in fields} == fields


@pytest.mark.parametrize("family", TINY)
def test_another_grid_is_refused(family):
  _, tree = families.random_variables(family, 16, 16, **TINY[family])
  with pytest.raises(InputError, match=r"'circulant' cannot be resized.* 4x4 .* 6x6"):
    weights.resize(tree, (4, 4), (6, 6))
  assert weights.resize(tree, (4, 4), (4, 4)) == tree


@pytest.mark.parametrize(
  ("family", "fields", "message"),
  [
    ("mixer", dict(channel_groups=5), "channel_groups 5 .* hidden_dim 16"),
    ("res_mlp", dict(channel_groups=5), "channel_groups 5 .* hidden_dim 16"),
    ("res_mlp", dict(token_mixing="linear"), "channel_groups 8 with token_mixing 'linear' must be 1"),
    ("mixer", dict(pyramid=(16, 8)), r"pyramid \(16, 8\) with token_mixing 'circulant'"),
  ],
)  # fmt: skip
def test_options_that_do_not_go_together_are_named(family, fields, message):
  model = models.build(family, **{**TINY[family], **fields})
  with pytest.raises(InputError, match=message):
    model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
