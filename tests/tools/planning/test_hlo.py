"""Collectives and loops read off compiled programs whose contents are known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from mixer_jax.tools.planning import hlo

ROWS, WHOLE = PartitionSpec("x"), PartitionSpec()


def compiled(fn, *shapes, in_specs=ROWS, out_specs=ROWS):
  mesh = jax.make_mesh((4,), ("x",), (jax.sharding.AxisType.Auto,))
  sharded = jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
  arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  return hlo.parse(jax.jit(sharded).lower(*arrays).compile().as_text())


@pytest.mark.parametrize(
  ("fn", "out_specs", "expected"),
  [
    (lambda x: jax.lax.psum(x, "x"), WHOLE, [("all-reduce", 1, 4 * 2 * 8)]),
    (lambda x: jax.lax.all_gather(x, "x", tiled=True), WHOLE, [("all-gather", 1, 4 * 8 * 8)]),
    (
      lambda x: jax.lax.psum_scatter(x, "x", scatter_dimension=1, tiled=True),
      PartitionSpec(None, "x"),
      [("reduce-scatter", 1, 4 * 2 * 8)],
    ),
    (
      lambda x: jax.lax.ppermute(x, "x", [(0, 1), (1, 2), (2, 3), (3, 0)]),
      ROWS,
      [("collective-permute", 1, 4 * 2 * 8)],
    ),
    (lambda x: x * 2, ROWS, []),
  ],
  ids=["sum", "gather", "scatter", "permute", "none"],
)
def test_collectives(fn, out_specs, expected):
  """Each device holds 2 of 8 rows of 8 values."""
  found = hlo.collectives(compiled(fn, (8, 8), out_specs=out_specs))
  assert [(c.kind, c.count, c.bytes) for c in found] == expected


def test_a_collective_in_a_loop_counts_as_often_as_it_runs():
  def fn(x):
    return jax.lax.scan(
      lambda c, _: (jnp.sin(jax.lax.psum(c, "x")), None), x, length=7, unroll=False
    )[0]

  (found,) = hlo.collectives(compiled(fn, (4, 16)))
  assert (found.kind, found.count, found.bytes) == ("all-reduce", 7, 7 * 4 * 16)


# Shortened from what the TPU compiler writes: tiles, memory spaces, comments in tuples, pairs.
TPU = """\
HloModule jit_step, is_scheduled=true

%cond (p: (s32[], f32[8,128])) -> pred[] {
  %limit = s32[]{:T(256)} constant(4), metadata={op_name="jit(step)/while"}
  %p = (s32[]{:T(256)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(256)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(1024)} compare(%i, %limit), direction=LT, metadata={op_name="while/cond/lt"}
}

%fused (a: f32[8,128]) -> bf16[8,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %c = bf16[8,128]{1,0:T(8,128)(2,1)} convert(%a)
}

%body (q: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %q = (s32[]{:T(256)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%q), index=1
  %f = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} fusion(%x), kind=kLoop, calls=%fused, metadata={op_name="f"}
  %g = f32[8,128]{1,0:T(8,128)} fusion(%f), kind=kLoop, calls=%fused
  ROOT %t = (s32[]{:T(256)}, /*index=1*/f32[8,128]{1,0:T(8,128)}) tuple(%i2, %g)
}

ENTRY %main (in: f32[8,128]) -> f32[8,128] {
  %in = f32[8,128]{1,0:T(8,128)} parameter(0)
  %start = (f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}) collective-permute-start(%in), \
channel_id=1, source_target_pairs={{0,1},{1,0}}
  %done = f32[8,128]{1,0:T(8,128)} collective-permute-done(%start), metadata={op_name="a (b"}
  %sums = (f32[8,128]{1,0:T(8,128)}, bf16[4]{0:T(512)(128)(2,1)}) all-reduce(%done, %small), \
channel_id=2, replica_groups=mesh['axis_0'=32] {'axis_0'}, to_apply=%add
  %w = (s32[]{:T(256)}, f32[8,128]{1,0:T(8,128)}) while(%init), condition=%cond, body=%body
  ROOT %r = f32[8,128]{1,0:T(8,128)} get-tuple-element(%w), index=1
}
"""


def test_text_of_the_tpu_compiler():
  module = hlo.parse(TPU)
  assert module.entry == "main"
  assert hlo.executions(module) == {"main": 1, "add": 1, "cond": 4, "body": 4, "fused": 8}
  permute, total = 4 * 8 * 128, 4 * 8 * 128 + 2 * 4
  assert hlo.collectives(module) == [
    hlo.Collective("all-reduce", 1, total),
    hlo.Collective("collective-permute", 1, permute),
  ]
  # Three more iterations; each reads x and writes g, while f stays on the chip.
  assert hlo.uncounted_loop_bytes(module) == 3 * 2 * 4 * 8 * 128


def test_a_reduce_scatter_of_the_tpu_compiler():
  """It keeps the all-reduce in a computation that each device takes its shard from."""
  module = hlo.parse("""\
HloModule jit_step, is_scheduled=true

%all-reduce-scatter.1 (p: bf16[1280,5120]) -> bf16[320,5120] {
  %p = bf16[1280,5120]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.7 = bf16[1280,5120]{1,0:T(8,128)(2,1)} all-reduce(%p), channel_id=3, to_apply=%add
  %i = s32[]{:T(256)} partition-id()
  ROOT %shard = bf16[320,5120]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.7, %i, %zero)
}

ENTRY %main (in: bf16[1280,5120]) -> bf16[320,5120] {
  %in = bf16[1280,5120]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %f = bf16[320,5120]{1,0:T(8,128)(2,1)} fusion(%in), kind=kCustom, calls=%all-reduce-scatter.1
}
""")
  assert hlo.collectives(module) == [hlo.Collective("reduce-scatter", 1, 2 * 1280 * 5120)]


@pytest.mark.parametrize(
  ("text", "size"),
  [
    ("f32[2,3]{1,0}", 24),
    ("(bf16[4]{0}, s32[], pred[5]{0})", 8 + 4 + 5),
    ("u8[7]", 7),
    ("s4[8]", 4),
    ("token[]", 0),
  ],
)
def test_bytes_of_types(text, size):
  assert hlo.type_bytes(text) == size
