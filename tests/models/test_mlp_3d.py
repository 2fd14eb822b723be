"""MLP-3D against recorded values of its definition, its time mixing against tables of groups, and CycleMLP inflated."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixer_jax import models, weights
from mixer_jax.errors import InputError
from mixer_jax.models import mlp_3d
from mixer_jax.training import experiment, init_from
from mixer_jax.weights import torch_layout
from tests import families
from tests.configurations import of_clips, small_config, with_family
from tests.conftest import GOLDEN
from tests.marks import long
from tests.models import test_fingerprints as fingerprints
from tests.models.test_relatives import TINY

OPS = np.load(GOLDEN / "family/ops_mlp_3d.npz")
RECORDED = ("short1+token2", "short2+long4", "window2+token4", "window4+short4")
GROUPS = {
  ("short", 1, 6): [(0,), (1,), (2,), (3,), (4,), (5,)],
  ("short", 2, 6): [(0, 1), (2, 3), (4, 5)],
  ("short", 4, 8): [(0, 1, 2, 3), (4, 5, 6, 7)],
  ("long", 2, 6): [(0, 3), (1, 4), (2, 5)],
  ("long", 3, 6): [(0, 2, 4), (1, 3, 5)],
  ("long", 4, 8): [(0, 2, 4, 6), (1, 3, 5, 7)],
  ("window", 2, 6): [(None, 0), (1, 2), (3, 4), (5, None)],
  ("window", 4, 4): [(None, None, 0, 1), (2, 3, None, None)],
  ("window", 4, 8): [(None, None, 0, 1), (2, 3, 4, 5), (6, 7, None, None)],
  ("token", 1, 5): [(0,), (1,), (2,), (3,), (4,)],
  ("token", 2, 6): [(0, 5), (1, 0), (2, 1), (3, 2), (4, 3), (5, 4)],
  ("token", 4, 8): [(t, (t - 1) % 8, (t - 2) % 8, (t - 3) % 8) for t in range(8)],
}
"""(kind, S, steps of time) -> the groups as in the paper's figures, in the order of their channels; None: zeros."""


@functools.partial(jax.jit, static_argnums=(1, 2))
def time_mixing(x, kind, size, weight, bias):
  return mlp_3d.ungrouped(mlp_3d.grouped(x, kind, size) @ weight.T + bias, kind, size)


def by_the_tables(x, kind, size, weight, bias):
  """Returns the same, a group at a time; `weight` is (out, in)."""
  y = np.zeros_like(x)
  for group in GROUPS[kind, size, x.shape[1]]:
    tokens = [np.zeros_like(x[:, 0]) if t is None else x[:, t] for t in group]
    mapped = np.einsum("oi,bhwi->bhwo", weight, np.concatenate(tokens, -1)) + bias
    for i, t in enumerate(group[:1] if kind == "token" else group):
      if t is not None:
        y[:, t] = mapped[..., i * x.shape[-1] : (i + 1) * x.shape[-1]]
  return y


CASES = [re.fullmatch(r"gtm/(\w+)/S(\d)_T(\d)_C\d/x", k) for k in OPS]


@pytest.mark.parametrize("case", [m for m in CASES if m], ids=lambda m: m[0])
def test_time_mixing_is_that_of_the_figures(case):
  kind, size, steps = case[1], int(case[2]), int(case[3])
  x, weight, bias, want = (OPS[case[0][:-1] + name] for name in ("x", "weight", "bias", "y"))
  steps_alone = np.eye(steps + 1, steps, -1)[:, :, None, None, None] + np.zeros(x.shape[1:])
  with jax.enable_x64(True):
    have = time_mixing(np.concatenate([x, steps_alone]), kind, size, weight, bias)
  have, (nothing, *gradient) = np.split(np.asarray(have), [len(x)])
  np.testing.assert_allclose(have, want, atol=1e-12, rtol=0)
  np.testing.assert_allclose(have, by_the_tables(x, kind, size, weight, bias), atol=1e-12, rtol=0)
  influence = np.abs(gradient - nothing).max((2, 3, 4)).T > 1e-9  # on a step, of a step
  reached = np.zeros_like(influence)
  for group in GROUPS[kind, size, steps]:
    present = [t for t in group if t is not None]
    reached[np.ix_(present[:1] if kind == "token" else present, present)] = True
  np.testing.assert_array_equal(influence, reached)


def named(name, arrangement=RECORDED):
  """Returns a recorded name with the kind of time mixing, which the arrangement says there."""

  def kind(m):
    return f"{m[1]}gtm.{arrangement[int(m[2]) // 2].split('+')[int(m[3])][:-1]}"

  return re.sub(r"(network\.(\d)\.(\d)\.attn\.)gtm\.fc", kind, name)


@pytest.fixture(scope="module")
def recorded_model():
  state = torch_layout.load_safetensors(GOLDEN / "family/mlp3d_derived.safetensors")
  state = {named(k): v for k, v in state.items() if not k.endswith(".offset")}
  found = torch_layout.from_torch(state)
  jax.tree.map(np.testing.assert_array_equal, torch_layout.to_torch(found), state)
  recorded = {
    named(k): v.transpose(0, 2, 3, 4, 1) if v.ndim == 5 and "grad" not in k else v
    for k, v in np.load(GOLDEN / "family/mlp3d_derived.npz").items()
  }
  spec = weights.describe(found)
  assert spec.fields["arrangement"] == RECORDED
  return models.build(spec.family, **spec.fields), found, recorded


def test_it_is_the_recorded_with_maps_and_gradients(recorded_model):
  families.assert_is_recorded(*recorded_model)


@pytest.mark.campaign
@pytest.mark.parametrize(
  ("recorded", "variant"),
  [("mlp3d_xs_k400", "XS/kinetics400"), ("mlp3d_xs_ssv2", "XS/something")],
)
def test_published_arrangement_has_the_recorded_logits_at_full_size(recorded, variant):
  arrangement = mlp_3d.VARIANTS[variant]["arrangement"]
  state = {named(k, arrangement): v for k, v in fingerprints.fill(recorded).items()}
  found = torch_layout.from_torch(state)
  want, spec = fingerprints.FINGERPRINTS[recorded], weights.describe(found)
  assert spec.variant == variant
  t, h, w, c = np.ix_(*map(np.arange, spec.input_shape))
  waves = np.sin(0.5 + 0.03 * h + 0.07 * w + 1.1 * c + 0.4 * t)
  clip = waves + 0.5 * fingerprints.sines(-1, ((t * 3 + c) * 224 + h) * 224 + w)
  model = models.build(spec.family, **spec.fields)
  logits = np.asarray(jax.jit(model.apply)(found, jnp.asarray(clip[None], jnp.float32)))[0]
  tolerance = 3e-6 * max(1, want["max_abs"])
  np.testing.assert_allclose(logits[:8], want["logits8"], atol=tolerance, rtol=0)
  np.testing.assert_allclose(logits.mean(), want["sum"] / len(logits), atol=tolerance, rtol=0)
  assert logits.argmax() == want["argmax"]


@pytest.mark.parametrize(
  "arrangement",
  [
    ("short1", "short1", "short1+short1", "short1"),
    long(("token4", "window4", "long4+short2", "token2")),
  ],
)
def test_an_mlp_3d_that_starts_from_cycle_mlp_gives_of_a_still_clip_what_that_gives_of_its_image(
  arrangement, tmp_path
):
  flat, tree = families.random_variables("cycle_mlp", 32, 32, **TINY["cycle_mlp"])
  weights.save_npz(tmp_path / "images.npz", tree)
  fields = {k: v for k, v in TINY["mlp3d"].items() if k != "num_classes"}
  fields |= {"arrangement": arrangement, "step": flat.step}
  config = small_config(image_size=(32, 40), num_classes=5)
  config = of_clips(with_family(config, "mlp3d", fields), 16)
  config.init.weights, config.init.new_head = str(tmp_path / "images.npz"), False
  exp = experiment.build(config)
  variables, line = init_from.initial_variables(exp)
  assert re.search(r"images\.npz, inflated from a CycleMLP", line)
  model, features = exp.model, jax.jit(models.features, static_argnums=0)
  image = families.image(1, 32, 40, 3)
  clip = jnp.where(jnp.arange(16)[:, None, None, None] % 4 == 2, image, 7.0)[None]
  seen, want = features(model, variables, clip), features(flat, tree, image)
  for i in range(1, 5):
    still = jnp.tile(want[f"stage_{i}"], (4, 1, 1, 1))[None]
    np.testing.assert_allclose(seen[f"stage_{i}"], still, atol=1e-5, rtol=0)
  np.testing.assert_allclose(seen["pre_logits"], want["pre_logits"], atol=1e-5, rtol=0)


def test_what_cannot_be_inflated_is_named():
  swin = {**TINY["cycle_mlp"], "overlapping": False, "fusion": "sum"}
  for fields in (swin, {**TINY["cycle_mlp"], "num_blocks": (1, 1, 1, 1)}):
    _, tree = families.random_variables("cycle_mlp", 32, 32, **fields)
    with pytest.raises(InputError, match=r"arrangement .* but the parameters have"):
      mlp_3d.inflate(tree["params"], TINY["mlp3d"]["arrangement"])


@pytest.mark.campaign
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_learns_clips_by_heart_and_recomputes_the_same(dtype):
  fields = {**TINY["mlp3d"], "stoch_depth": 0.1, "dtype": dtype}
  model, tree = families.random_variables("mlp3d", 16, 16, **fields)
  clips, labels = families.image(4, 16, 16, 16, 3), jnp.arange(4)
  optimizer = optax.adam(0.01)

  def loss(params, step, model):
    rngs = {"dropout": jax.random.fold_in(jax.random.key(0), step)}
    logits = model.apply({"params": params}, clips, train=True, rngs=rngs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  @jax.jit
  def update(params, state, step):
    value, grads = jax.value_and_grad(loss)(params, step, model.clone(remat="block"))
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state, value

  params, state, values = tree["params"], optimizer.init(tree["params"]), []
  for step in range(30):
    params, state, value = update(params, state, step)
    values.append(float(value))
  np.testing.assert_allclose(
    values[0], jax.jit(loss, static_argnums=2)(tree["params"], 0, model), rtol=1e-5
  )
  assert values[-1] < 0.2 * values[0]


@pytest.mark.parametrize(
  ("fields", "shape", "message"),
  [
    (dict(widths=(8, 8, 16)), (16, 32, 32, 3), r"widths is \(8, 8, 16\)"),
    (dict(mlp_ratios=(1, 0, 1, 1)), (16, 32, 32, 3), "mlp_ratios"),
    (dict(arrangement=("short1",) * 3), (16, 32, 32, 3), "expected four stages"),
    (
      dict(arrangement=("short1", "long3", "token2", "short1")),
      (16, 32, 32, 3),
      "'long3'.* expected",
    ),
    ({}, (12, 32, 32, 3), r"frames is 12\b.* multiple of 8"),
    ({}, (32, 32, 3), r"frames must be set.* shape \(1, 32, 32, 3\)"),
  ],
)
def test_sizes_that_cannot_be_are_named(fields, shape, message):
  model = models.build("mlp3d", **{**TINY["mlp3d"], **fields})
  with pytest.raises(InputError, match=message):
    models.abstract_variables(model, shape)
