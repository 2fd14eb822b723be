"""CycleMLP against the authors' code, the derived sizes against their definition, Cycle FC against recorded values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer_jax import models
from mixer_jax.errors import InputError
from mixer_jax.models import cycle_mlp
from mixer_jax.weights import torch_layout
from tests import families
from tests.conftest import GOLDEN
from tests.marks import long
from tests.models.test_relatives import TINY

OPS = np.load(GOLDEN / "family/ops_cycle_mlp.npz")
SWIN = {**TINY["cycle_mlp"], "overlapping": False, "fusion": "sum", "step": 7}


@pytest.mark.parametrize("name", ["cyclemlp_b", long("cyclemlp_t_derived")])
def test_it_is_the_authors_with_maps_and_gradients(name):
  model, found, recorded = families.golden(f"family/{name}", nchw=True)
  families.assert_is_recorded(model.clone(step=7 if "_t_" in name else 3), found, recorded)


def test_maps_are_those_of_the_authors_backbone_for_dense_tasks():
  """It has no head, and a norm for each map, of which the last is that of the classifier."""
  state = torch_layout.load_safetensors(GOLDEN / "family/cyclemlp_b_fpn.safetensors")
  recorded = np.load(GOLDEN / "family/cyclemlp_b_fpn.npz")
  backbone = {k: v for k, v in state.items() if not k.startswith("norm")}
  last = {f"norm.{leaf}": state[f"norm6.{leaf}"] for leaf in ("weight", "bias")}
  found = torch_layout.from_torch({**backbone, **last})
  spec = dict(num_blocks=(1, 1, 1, 1), widths=(8, 12, 20, 24), mlp_ratios=(4, 4, 4, 4))
  model = models.build("cycle_mlp", num_classes=None, **spec)
  image = jnp.asarray(recorded["image"].transpose(0, 2, 3, 1))
  seen = jax.jit(models.features, static_argnums=0)(model, found, image)
  for i in range(4):
    families.assert_close(seen[f"stage_{i + 1}"], recorded[f"raw{i}"].transpose(0, 2, 3, 1))
  families.assert_close(seen["pre_logits"], recorded["out3"].mean((2, 3)))


CASES = [k.removesuffix("/x") for k in OPS if k.endswith("/x")]


@pytest.mark.parametrize("case", CASES)
def test_cycle_fc_is_the_authors(case):
  step, axis = int(case.split("/K")[1][0]), 2 if "/width/" in case else 1
  x, weight, bias, y = (OPS[f"{case}/{name}"] for name in ("x", "weight", "bias", "y"))
  with jax.enable_x64(True):
    have = cycle_mlp.displace(jnp.asarray(x), step, axis) @ weight.T + bias
    np.testing.assert_allclose(have, y, atol=1e-12, rtol=0)


@pytest.mark.parametrize("step", [3, 5, 7])
def test_channels_take_the_displacements_in_turn(step):
  x = jnp.tile(jnp.arange(20.0)[None, None, :, None], (1, 1, 1, 16))
  moved = cycle_mlp.displace(x, step, 2)[0, 0, 10] - 10
  np.testing.assert_array_equal(moved, OPS[f"cyclefc/offsets_K{step}"])


def test_step_1_displaces_nothing():
  x = families.image(2, 3, 5, 8)
  np.testing.assert_array_equal(cycle_mlp.displace(x, 1, 1), x)


def test_mixing_gives_the_printed_numbers():
  """The authors' module, filled with sines in the order of its weights, which are (out, in) there."""
  mixing = cycle_mlp.CycleMixing(3, "reweight")
  c, h, w = np.arange(8), np.arange(5)[:, None, None], np.arange(6)[:, None]
  x = jnp.asarray(np.sin(0.5 + 0.3 * h + 0.7 * w + 1.1 * c)[None], jnp.float32)

  def fill(q, *shape):
    values = 0.2 * np.sin(1 + 0.7 * np.arange(np.prod(shape)) + 1.3 * q).reshape(shape)
    return jnp.asarray(values.T, jnp.float32)

  def dense(q, out, into):
    return {"kernel": fill(q, out, into), "bias": fill(q + 1, out)}

  params = {
    "channel": {"kernel": fill(0, 8, 8)},
    "width": dense(1, 8, 8),
    "height": dense(3, 8, 8),
    "reweight": {"Dense_0": dense(5, 2, 8), "Dense_1": dense(7, 24, 2)},
    "projection": dense(9, 8, 8),
  }
  y = np.asarray(jax.jit(mixing.apply)({"params": params}, x, jnp.arange(1)), np.float64)[0]
  np.testing.assert_allclose(y.sum(), -1.415338588, rtol=2e-6)
  np.testing.assert_allclose((y**2).sum(), 5.265954375, rtol=2e-6)
  np.testing.assert_allclose(y[0, 0, :3], [0.155555060, 0.108953077, 0.009817706], atol=1e-7)
  np.testing.assert_allclose(y[-1, -1, -3:], [-0.227874302, -0.144529685, 0.006284134], atol=1e-7)


@pytest.mark.parametrize("name", ["cyclemlp_b", long("cyclemlp_t_derived")])
def test_state_dictionary_comes_back_to_the_bit(name):
  """All but the displacements, which torch's module makes itself."""
  state = torch_layout.load_safetensors(GOLDEN / f"family/{name}.safetensors")
  again = torch_layout.to_torch(torch_layout.from_torch(state))
  assert state.keys() - again.keys() == {k for k in state if k.endswith(".offset")}
  jax.tree.map(np.testing.assert_array_equal, again, {k: state[k] for k in again})


def test_odd_sizes_are_padded_with_zeros_without_overlap():
  model, tree = families.random_variables("cycle_mlp", 32, 32, **SWIN)
  image = families.image(2, 37, 50, 3)
  padded = jnp.pad(image, ((0, 0), (0, 3), (0, 2), (0, 0)))
  apply = jax.jit(model.apply)
  np.testing.assert_array_equal(apply(tree, image), apply(tree, padded))


def test_drop_path_grows_over_the_network_from_none():
  model, tree = families.random_variables("cycle_mlp", 32, 32, **TINY["cycle_mlp"])
  image = jnp.tile(families.image(1, 32, 32, 3), (200, 1, 1, 1))
  plain = jax.jit(models.features, static_argnums=0)(model, tree, image[:1])
  options = dict(train=True, rngs={"dropout": jax.random.key(0)}, mutable=["intermediates"])

  def blocks(image):
    _, sown = model.clone(stoch_depth=0.8).apply(tree, image, **options)
    return [sown["intermediates"][f"block_{i}"][0] for i in (0, 2, 3)]

  first, before, after = jax.jit(blocks)(image)
  np.testing.assert_allclose(first, jnp.tile(plain["block_0"], (200, 1, 1, 1)), atol=1e-5)
  unchanged = np.mean(np.abs(after - before).max((1, 2, 3)) == 0)
  assert abs(unchanged - 0.6**2) < 0.1


@pytest.mark.parametrize(
  ("fields", "key"),
  [
    (dict(widths=(8, 8, 16)), "widths"),
    (dict(num_blocks=(1, 0, 1, 1)), "num_blocks"),
    (dict(widths=(2, 4, 4, 4)), "fusion"),
  ],
)
def test_sizes_that_cannot_be_are_named(fields, key):
  model = models.build("cycle_mlp", **{**TINY["cycle_mlp"], **fields})
  with pytest.raises(InputError, match=key):
    models.abstract_variables(model, (32, 32, 3))
