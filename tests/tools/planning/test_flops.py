"""The count of matrix products against a count by hand and against XLA's."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from mixer_jax import models
from mixer_jax.tools.planning import flops

F = jnp.float32
SIZES = dict(patch_size=4, num_blocks=3, hidden_dim=24, tokens_mlp_dim=10, channels_mlp_dim=56)


def abstract(model, batch=2, size=16):
  image = jax.ShapeDtypeStruct((batch, size, size, 3), F)
  return {"params": jax.eval_shape(model.init, jax.random.key(0), image)["params"]}, image


def by_hand(batch, tokens, patch, classes, blocks, hidden, tokens_mlp, channels_mlp):
  """Two operations a multiplication: section 2 of the paper, layer by layer."""
  stem = tokens * 3 * patch**2 * hidden
  token_mixing = hidden * 2 * tokens * tokens_mlp
  channel_mixing = tokens * 2 * hidden * channels_mlp
  return 2 * batch * (stem + blocks * (token_mixing + channel_mixing) + hidden * classes)


def test_mixer_by_hand():
  model = models.build("mixer", num_classes=7, **SIZES)
  variables, image = abstract(model)
  expected = by_hand(2, 16, 4, 7, 3, 24, 10, 56)
  assert flops.forward_flops(model, variables, image) == expected


@pytest.mark.parametrize(("variant", "gmacs"), [("B/16", 12.62), ("S/32", 1.0)])
def test_published_sizes(variant, gmacs):
  """Multiply-accumulates of the published sizes as timm's benchmark table has them (224 px)."""
  model = models.build("mixer", variant=variant, num_classes=1000)
  variables, image = abstract(model, 1, 224)
  assert flops.forward_flops(model, variables, image) / 2e9 == pytest.approx(gmacs, rel=0.01)


def test_training_step_agrees_with_xla():
  """XLA's count has the elementwise operations too: more, and little more for a wide model."""
  sizes = dict(
    patch_size=8, num_blocks=2, hidden_dim=256, tokens_mlp_dim=128, channels_mlp_dim=1024
  )
  model = models.build("mixer", num_classes=10, **sizes)
  variables, image = abstract(model, 4, 32)

  def loss(variables, image):
    return jnp.sum(model.apply(variables, image) ** 2)

  xla = jax.jit(jax.grad(loss)).lower(variables, image).compile().cost_analysis()["flops"]
  gradient = flops.matmul_flops(jax.make_jaxpr(jax.grad(loss))(variables, image).jaxpr)
  model_flops = flops.TRAINING * flops.forward_flops(model, variables, image)
  stem = 2 * 4 * 16 * 3 * 64 * 256
  assert gradient == model_flops - stem  # the gradient of the images is not computed
  assert gradient < xla < 1.06 * gradient


def test_recomputation_counts_in_the_program_and_not_in_the_model():
  plain, remat = (
    models.build("mixer", num_classes=7, remat=remat, **SIZES) for remat in ("none", "block")
  )
  variables, image = abstract(plain)

  def gradient(model):
    fn = jax.grad(lambda v, x: jnp.sum(model.apply(v, x)))
    return flops.matmul_flops(jax.make_jaxpr(fn)(variables, image).jaxpr)

  # Recomputed: token mixing, and the first layer of channel mixing; nobody needs the second again.
  token_mixing, first = 24 * 2 * 16 * 10, 16 * 24 * 56
  assert gradient(remat) - gradient(plain) == 2 * 2 * 3 * (token_mixing + first)
  assert flops.forward_flops(remat, variables, image) == flops.forward_flops(
    plain, variables, image
  )


def test_loops_and_shards():
  weight = jax.ShapeDtypeStruct((8, 8), F)

  def looped(w):
    return jax.lax.scan(lambda x, _: (x @ w, None), jnp.ones((4, 8)), length=5)[0]

  jaxpr = jax.make_jaxpr(looped)(weight).jaxpr
  assert flops.matmul_flops(jaxpr) == 5 * 2 * 4 * 8 * 8
  assert flops.matmul_flops(jaxpr, loops=False) == 2 * 4 * 8 * 8
  mesh = jax.make_mesh((4,), ("x",), (jax.sharding.AxisType.Auto,))
  rows, whole = PartitionSpec("x"), PartitionSpec()
  sharded = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(rows, whole), out_specs=rows)
  jaxpr = jax.make_jaxpr(sharded)(jax.ShapeDtypeStruct((16, 8), F), weight).jaxpr
  assert flops.matmul_flops(jaxpr) == 2 * 16 * 8 * 8
