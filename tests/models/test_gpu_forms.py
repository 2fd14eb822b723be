"""What GPUs compile instead of the plain layers: the same results, and what it is for, as far as a program tells without a GPU."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mixer_jax import models
from mixer_jax.models import kernels, layers, token_mixing
from mixer_jax.models.kernels import gpu_mlp, gpu_token_mixing
from tests.marks import long

SIZES = dict(
  patch_size=4, num_blocks=2, hidden_dim=20, tokens_mlp_dim=12, channels_mlp_dim=24, num_classes=5
)


@pytest.fixture
def on_gpu(monkeypatch):
  """Takes the forms of GPUs; kernels run as Python."""

  def cuda(*operands, default, **forms):
    return forms.get("cuda", default)(*operands)

  def start():
    monkeypatch.setattr(jax.lax, "platform_dependent", cuda)
    monkeypatch.setattr(gpu_token_mixing, "INTERPRET", True)

  return start


def random_like(tree, rng):
  return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), tree)


def gradients(function, *args):
  """Returns the results and the gradients of their squares' sum."""

  def loss(*args):
    y = function(*args)
    return jnp.sum(y.astype(jnp.promote_types(y.dtype, jnp.float32)) ** 2), y

  return jax.jit(jax.grad(loss, range(len(args)), has_aux=True))(*args)


def assert_close(have, wanted, tolerance):
  def check(a, b):
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))

  jax.tree.map(check, have, wanted)


@pytest.mark.parametrize(
  ("kernels", "gelu"),
  [long("pallas", "tanh"), ("xla", "erf"), long("pallas", "erf"), long("xla", "tanh")],
)
def test_token_mixing(kernels, gelu, on_gpu):
  """Of an odd number of tokens, more of which come out, and of channels that fill no block."""
  rng = np.random.default_rng(0)
  mix = token_mixing.Mlp(40, num_tokens=17, gelu=gelu, kernels=kernels)
  x = jnp.asarray(rng.standard_normal((3, 9, 70)), jnp.float32)
  index = jnp.arange(3)
  params = random_like(mix.init(jax.random.key(0), x, index)["params"], rng)

  def apply(params, x, dtype=jnp.float32):
    return mix.clone(dtype=dtype).apply({"params": params}, x.astype(dtype), index, train=True)

  with jax.enable_x64(True):
    exact = gradients(lambda *a: apply(*a, dtype=jnp.float64), *jax.tree.map(jnp.float64, (params, x)))  # fmt: skip
  assert exact[1].dtype == np.float64
  plain_half = gradients(lambda *a: apply(*a, dtype=jnp.bfloat16), params, x)
  on_gpu()
  assert_close(gradients(apply, params, x), exact, 1e-5)
  half = gradients(lambda *a: apply(*a, dtype=jnp.bfloat16), params, x)
  jax.tree.map(lambda a, b: None if a.dtype == b.dtype else pytest.fail("type"), half, plain_half)
  errors = [
    [float(np.abs(np.float64(a) - b).max()) for a, b in zip(*map(jax.tree.leaves, (one, exact)), strict=True)]
    for one in (half, plain_half)
  ]  # fmt: skip
  assert all(ours <= 2 * plain for ours, plain in zip(*errors, strict=True)), errors


@pytest.mark.parametrize("kernels", ["pallas", long("xla")])
def test_a_model_on_a_mesh_with_remat(kernels, on_gpu):
  """Logits and gradients of the batch on four devices, which pass each other gradients alone."""
  rng = np.random.default_rng(0)
  model = models.build("mixer", **{**SIZES, "num_blocks": 1}, remat="block")
  image = jnp.asarray(rng.uniform(-1, 1, (8, 12, 12, 3)), jnp.float32)
  params = random_like(model.init(jax.random.key(0), image)["params"], rng)

  def call(kernels):
    chosen = model.clone(kernels=kernels)
    return lambda params, image: chosen.apply({"params": params}, image, train=True)

  wanted = gradients(call("xla"), params, image)
  on_gpu()
  mesh = Mesh(np.array(jax.devices()), ("data",))
  whole, rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))

  def grads(params, image):
    return jax.grad(lambda params: jnp.sum(call(kernels)(params, image) ** 2))(params)

  step = jax.jit(grads, in_shardings=(whole, rows), out_shardings=whole).lower(params, image)
  compiled = step.compile()
  collectives = re.findall(r" (all-[a-z]+|collective-[a-z]+)\(", compiled.as_text())
  assert set(collectives) == {"all-reduce"}
  assert_close(compiled(params, image), wanted[0][0], 1e-5)


@pytest.mark.parametrize("shape", [(1, 13, 8, 2), long((2, 12, 8, 3))])
def test_patches_as_a_product(shape, on_gpu):
  rng = np.random.default_rng(0)
  args = [jnp.asarray(rng.standard_normal(s), jnp.float32) for s in (shape, (4, 4, shape[-1], 5))]
  wanted = gradients(layers.patch_convolution, *args)
  on_gpu()
  assert "conv_general_dilated" not in str(jax.make_jaxpr(layers.patch_convolution)(*args))
  assert_close(gradients(layers.patch_convolution, *args), wanted, 1e-6)


def test_gelu_keeps_its_argument_alone():
  """Of an MLP, the products' factors are kept for the backward pass besides: without it, two more of the hidden width."""
  x, w = jnp.ones((4, 8)), jnp.ones((8, 16))

  def kept(gelu):
    _, pull = jax.vjp(lambda x, w, b: gelu(x @ w, b) @ w.T, x, w, jnp.ones((1, 16)))
    return sum(leaf.shape == (4, 16) for leaf in jax.tree.leaves(pull))

  assert kept(lambda x, b: gpu_mlp.lean_gelu("tanh", x, b)) == 2
  assert kept(lambda x, b: gpu_mlp.biased_gelu("tanh", x, b)) > 2


def test_the_kernel_lowers_for_gpus_and_no_other_platform_sees_it():
  """The whole gradient, as XLA gets it, of a bfloat16 model."""
  model = models.build("mixer", **SIZES, dtype="bfloat16")
  image = jax.ShapeDtypeStruct((4, 12, 12, 3), jnp.float32)
  variables = models.abstract_variables(model, (12, 12, 3))

  def lowered(platform, kernels):
    chosen = model.clone(kernels=kernels)
    loss = lambda v, x: jnp.sum(chosen.apply(v, x, train=True))  # noqa: E731
    return jax.jit(jax.grad(loss)).trace(variables, image).lower(lowering_platforms=(platform,)).as_text()  # fmt: skip

  fused = lowered("cuda", "pallas")
  # Per block: forwards, the gradients of tokens and of weights.
  assert len(re.findall(r"custom_call @\S*triton", fused)) == 3 * SIZES["num_blocks"]
  assert "triton" not in lowered("cuda", "xla")
  assert "convolution" not in fused
  assert not re.search("triton|barrier", lowered("tpu", "pallas"))
  assert "convolution" in lowered("tpu", "pallas")


def test_auto_takes_the_kernel_only_where_it_was_measured_to_be_faster(monkeypatch):
  fast, slow, cpu = (
    types.SimpleNamespace(platform=platform, device_kind=kind)
    for platform, kind in (("gpu", "fast"), ("gpu", "slow"), ("cpu", "fast"))
  )
  monkeypatch.setattr(kernels, "MEASURED", frozenset({"fast"}))
  chosen = [[kernels.choose(asked, d) for d in (fast, slow, cpu)] for asked in ("auto", "pallas")]
  assert chosen == [["pallas", "xla", "xla"], ["pallas", "pallas", "xla"]]
  assert kernels.choose("xla", fast) == "xla"
  model = models.build("mixer", **SIZES)
  assert model.takes_kernel((64, 64, 3)) and not model.takes_kernel((68, 64, 3))
  assert not model.clone(dropout_rate=0.1).takes_kernel((64, 64, 3))
