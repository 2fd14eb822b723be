"""Hire-MLP against the authors' code: regions, module, maps, gradients, statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer_jax import models
from mixer_jax.errors import InputError
from mixer_jax.models import hire_mlp
from mixer_jax.weights import torch_layout, variables
from tests import families
from tests.conftest import GOLDEN
from tests.marks import long

OPS = np.load(GOLDEN / "family/ops_hire_mlp.npz")
PADDING = {"0": "zero", "c": "circular", "replicate": "replicate"}


@pytest.fixture(scope="module")
def golden():
  return families.golden("family/hire_mlp", nchw=True)


@pytest.mark.parametrize("name", ["0_pixel_0", "0_pixel_c", "c_pixel_0", "c_pixel_replicate"])
def test_other_paddings_are_the_authors(golden, name):
  model, found, recorded = golden
  shift, region = (PADDING[key] for key in name.split("_pixel_"))
  model = model.clone(shift_padding=shift, region_padding=region)
  want = recorded[f"padmode/step_{name}/logits"]
  families.assert_close(jax.jit(model.apply)(found, recorded["image"]), want)


@pytest.mark.parametrize("train", [long(False), True])
def test_it_is_the_authors_with_maps_gradients_and_statistics(golden, train):
  model, _, _ = golden
  sides = [(16, 22), (8, 11), (4, 6), (2, 3)]

  def positions(name):
    """The names count the stages and the ways between them; the branches have regions for positions."""
    stage = 3 if name.startswith("norm.") else 0
    if name.startswith("network."):
      stage = (int(name.split(".")[1]) + 1) // 2
    size, (height, width) = model.region_sizes[stage], sides[stage]
    height = -(-height // size) if "mlp_h1_norm" in name else height
    width = -(-width // size) if "mlp_w1_norm" in name else width
    return height * width

  families.assert_is_recorded(*golden, train=train, positions=positions)


def test_the_dense_backbones_maps_are_its_stages():
  """Each of the backbone's outputs is a BatchNorm of its own over a stage's map; height and width are odd."""
  state = torch_layout.load_safetensors(GOLDEN / "family/hire_mlp_fpn.safetensors")
  norms = {k: v for k, v in state.items() if k.startswith("norm")}
  recorded = {
    k: v.transpose(0, 2, 3, 1) if v.ndim == 4 else v
    for k, v in np.load(GOLDEN / "family/hire_mlp_fpn.npz").items()
  }
  state = {k: v for k, v in state.items() if k not in norms}
  state |= {k.replace("norm6", "norm"): v for k, v in norms.items() if k.startswith("norm6")}
  found = torch_layout.from_torch(state)
  spec = variables.describe(found)
  model = models.build(spec.family, **spec.fields)
  seen = jax.jit(functools.partial(models.features, model))(found, recorded["image"])
  for i in range(4):
    families.assert_close(seen[f"stage_{i + 1}"], recorded[f"raw{i}"])
  families.assert_close(seen["pre_logits"], recorded["out3"].mean((1, 2)))


@pytest.mark.parametrize("name", [k for k in OPS.files if k.startswith("hire_regions/")])
def test_regions_are_of_the_authors_rows(name):
  length, size, shift = (int(part[1:]) for part in name.split("/")[1].split("_"))
  x = jnp.arange(length, dtype=jnp.float32)[None, None, :, None]
  np.testing.assert_array_equal(hire_mlp.to_regions(x, size, shift)[0, 0], OPS[name])
  columns = jnp.swapaxes(hire_mlp.to_regions(jnp.tile(x, (1, 2, 1, 3)), size, shift)[:, 1], 0, 1)
  np.testing.assert_array_equal(columns.reshape(-1, size, 3)[..., 2], OPS[name])


@pytest.mark.parametrize("region_padding", ["circular", "zero", "replicate"])
@pytest.mark.parametrize(("length", "size", "shift"), [(7, 2, 1), (5, 3, 2), (14, 3, 0), (2, 4, 3)])
def test_regions_come_back_as_the_map(length, size, shift, region_padding):
  x = families.image(2, 3, length, 4)
  y = hire_mlp.to_regions(x, size, shift, region_padding=region_padding)
  np.testing.assert_array_equal(hire_mlp.from_regions(y, size, shift, length), x)


def weights_of(state, theirs, ours):
  """Returns what the state has by one name of the table, a parameter's or a BatchNorm's."""
  if theirs in state:
    value = state[theirs]
    return {ours: value if value.ndim == 1 else value[:, :, 0, 0].T}
  leaves = {"scale": "weight", "bias": "bias"}
  running = {"mean": "running_mean", "var": "running_var"}
  if f"{theirs}.running_mean" not in state:
    return {}
  found = {f"{ours}/{leaf}": state[f"{theirs}.{name}"] for leaf, name in leaves.items()}
  return found | {
    f"batch_stats/{ours}/{leaf}": state[f"{theirs}.{name}"] for leaf, name in running.items()
  }


@pytest.mark.parametrize(("case", "size", "shift"), [("7x6_p2_s1", 2, 1), ("5x7_p3_s2", 3, 2)])
def test_the_module_is_the_authors_in_float64(case, size, shift):
  prefix = f"hire_module/{case}/"
  state = {k.removeprefix(f"{prefix}state/"): v for k, v in OPS.items() if "/state/" in k}
  ours = {}
  for theirs, name, *_ in hire_mlp.TORCH_NAMES["authors"]:
    if theirs.startswith(begin := "network.0.{}.attn."):
      theirs, name = theirs.removeprefix(begin), name.removeprefix("HireBlock_0_{}/hire/")
      ours |= weights_of(state, theirs, name)
  with jax.enable_x64(True):
    module = hire_mlp.HireModule(size, shift, dtype=jnp.float64, param_dtype=jnp.float64)
    x = jnp.asarray(OPS[f"{prefix}x"])
    have = module.apply(variables.unflatten(ours), x, jnp.arange(1))
  np.testing.assert_allclose(np.asarray(have), OPS[f"{prefix}y"], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
  ("field", "value"),
  [("region_sizes", (4, 3, 3)), ("widths", (8, 12, 16, 2)), ("shift_steps", (0, 0, 0, -1))],
)
def test_a_stage_too_few_or_too_narrow_is_refused(field, value):
  fields = {
    "num_blocks": (1, 1, 1, 1),
    "widths": (8, 12, 16, 24),
    "mlp_ratios": (1, 1, 1, 1),
    "region_sizes": (2, 2, 2, 2),
    field: value,
  }
  with pytest.raises(InputError, match=field):
    models.abstract_variables(models.build("hire_mlp", **fields), (32, 32, 3))
