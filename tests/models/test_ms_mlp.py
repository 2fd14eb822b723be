"""MS-MLP against the authors' code: groups, maps, gradients; its shift and its convolutions at the border."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer_jax import models
from mixer_jax.errors import InputError
from mixer_jax.models import ms_mlp
from mixer_jax.models.kernels import cpu_depthwise
from tests import families


def test_it_is_the_authors_with_maps_and_gradients():
  families.assert_is_recorded(*families.golden("family/ms_mlp", nchw=True))


def filled(shape, number):
  """Parameter `number` of a known-answer test: 0.2·sin(1 + 0.7·k + 1.3·number) for value k."""
  return 0.2 * np.sin(1 + 0.7 * np.arange(np.prod(shape)) + 1.3 * number).reshape(shape)


def known_block(mix_sizes=(1, 3, 3, 5, 7), channels=14):
  """Returns (block, its parameters as the known answer fills them, in float64)."""
  shapes = [(channels,)]
  for _ in range(2):
    for size, group in zip(mix_sizes, ms_mlp.group_sizes(channels), strict=True):
      shapes += [(group, 1, size, size), (group,)]
  hidden = 4 * channels
  shapes += [
    (channels,),
    (channels,),
    (hidden, channels),
    (hidden,),
    (channels, hidden),
    (channels,),
  ]
  gamma, *rest = (filled(shape, q) for q, shape in enumerate(shapes))
  convs = [
    {"kernel": w.transpose(2, 3, 1, 0), "bias": b}
    for w, b in zip(rest[:20:2], rest[1:20:2], strict=True)
  ]
  scale, shift, first, first_bias, second, second_bias = rest[20:]
  params = {
    "mix": {f"{name}_{i % 5}": convs[i] for i, name in enumerate(["across"] * 5 + ["down"] * 5)},
    "LayerNorm_0": {"scale": scale, "bias": shift},
    "mlp": {
      "Dense_0": {"kernel": first.T, "bias": first_bias},
      "Dense_1": {"kernel": second.T, "bias": second_bias},
    },
    "LayerScale_0": {"gamma": gamma},
  }
  block = ms_mlp.MsMlpBlock(hidden, mix_sizes, 1e-6, dtype=jnp.float64, param_dtype=jnp.float64)
  return block, {"params": params}


def test_a_block_in_float64_gives_the_authors_numbers():
  block, params = known_block()
  h, w, c = np.ogrid[:6, :7, :14]
  x = np.sin(0.5 + 0.3 * h + 0.7 * w + 1.1 * c)[None]
  with jax.enable_x64(True):
    out = np.asarray(block.apply(params, jnp.asarray(x), jnp.arange(1), None, None, False))
  np.testing.assert_allclose(out.sum(), -27.836299204, atol=1e-9)
  np.testing.assert_allclose((out**2).sum(), 296.035127121, atol=1e-9)
  np.testing.assert_allclose(out[0, 0, 0, :3], [0.492930641, 0.852619337, 0.372172458], atol=1e-9)
  np.testing.assert_allclose(
    out[0, -1, -1, -3:], [-0.505710558, 0.524950248, 1.030335011], atol=1e-9
  )


def test_shifts_wrap_and_convolutions_do_not():
  """One position at the right border reaches others by the shift, and by a convolution only its neighbours."""
  x = jnp.zeros((1, 9, 9, 10)).at[0, 4, 8].set(1.0)
  module = ms_mlp.MixShift((1, 1, 3, 1, 1))
  params = module.init(jax.random.key(0), x)
  first, second = (np.asarray(module.apply(params, x)) for x in (x, jnp.zeros_like(x)))
  change = first - second
  reached = [{(int(y), int(x)) for y, x in np.argwhere(change[0, ..., 2 * i])} for i in range(5)]
  assert reached[0] == {(4, 6), (2, 8)}
  assert reached[1] == {(4, 7), (3, 8)}
  assert reached[2] == {(y, x) for y in (3, 4, 5) for x in (7, 8)}
  assert reached[3] == {(4, 0), (5, 8)}
  assert reached[4] == {(4, 1), (6, 8)}


GROUPS = {
  9: [2, 2, 2, 2, 1], 14: [3, 3, 3, 3, 2], 20: [4] * 5, 96: [20] * 4 + [16], 128: [26] * 4 + [24],
  192: [39] * 4 + [36], 256: [52] * 4 + [48], 384: [77] * 4 + [76], 512: [103] * 4 + [100],
  768: [154] * 4 + [152], 1024: [205] * 4 + [204],
}  # fmt: skip


def test_groups_are_the_authors():
  assert {channels: ms_mlp.group_sizes(channels) for channels in GROUPS} == GROUPS


FIELDS = dict(
  patch_size=4, width=10, num_blocks=(1, 1, 1, 1), mlp_ratio=1, mix_sizes=((1,) * 5,) * 4
)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"width": 12}, r"width 12 .*multiple of 5"),
    ({"mix_sizes": ((1, 1, 2, 3, 3),) * 4}, "mix_sizes"),
    ({"num_blocks": (1, 1, 1)}, "num_blocks"),
    ({"patch_size": 5}, "32x32.*image_size 40"),
  ],
)
def test_what_no_stage_can_take_is_refused(fields, message):
  with pytest.raises(InputError, match=message):
    models.abstract_variables(models.build("ms_mlp", **{**FIELDS, **fields}), (32, 32, 3))


@pytest.mark.parametrize("size", [1, 3, 7])
def test_depthwise_is_xlas_convolution_with_its_gradients(size):
  """On maps narrower and wider than the kernel, in float64."""
  rng = np.random.default_rng(0)
  values = [rng.standard_normal(s) for s in ((2, 5, 9, 6), (size, size, 1, 6), (2, 5, 9, 6))]

  def reference(x, kernel):
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "SAME", dimension_numbers=names, feature_group_count=6
    )

  with jax.enable_x64(True):
    x, kernel, g = (jnp.asarray(value) for value in values)
    have, pullback = jax.vjp(cpu_depthwise.depthwise, x, kernel)
    want, reference_pullback = jax.vjp(reference, x, kernel)
    pairs = zip((have, *pullback(g)), (want, *reference_pullback(g)), strict=True)
    pairs = [tuple(np.asarray(value) for value in pair) for pair in pairs]
  for mine, theirs in pairs:
    np.testing.assert_allclose(mine, theirs, atol=1e-12, rtol=0)


def test_only_a_cpu_compiles_the_sum_of_shifted_maps():
  x, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 1, 4))

  def loss(x, kernel):
    return jnp.sum(cpu_depthwise.depthwise(x, kernel))

  traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).trace(x, kernel)
  convolutions = {
    platform: traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.convolution")
    for platform in ("cpu", "tpu")
  }
  assert convolutions == {"cpu": 0, "tpu": 3}
