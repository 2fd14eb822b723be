"""Compiled steps: what is counted in them, what they hold, when they do not fit."""

import functools
import threading

import jax
import pytest

from mixer_jax.tools.planning import chips, estimate, flops, hlo, planner, program
from mixer_jax.training import experiment
from tests.configurations import small_config, train_batches


@functools.cache
def plan(batch_size=64, parts=1, fsdp=1):
  config = small_config(batch_size=batch_size, grad_accum_steps=parts)
  config.model.stoch_depth = 0.0
  config.model.num_blocks = 1
  config.model.channels_mlp_dim = 1024  # from which size on parameters are sharded
  config.optimizer.name = "momentum"
  config.mesh.data, config.mesh.fsdp = 4 // fsdp, fsdp
  exp = experiment.build(config)
  return exp, program.compile_step(exp)


def num_params(exp):
  return sum(x.size for x in jax.tree.leaves(exp.abstract_state.params))


def test_parts_of_the_batch_are_all_counted():
  exp, whole = plan()
  _, parts = plan(parts=4)
  image = jax.ShapeDtypeStruct((16, 16, 16, 3), "float32")
  products = 3 * flops.forward_flops(exp.model, exp.abstract_state.variables(), image)
  stem = 2 * 16 * 16 * 48 * 16  # has no gradient of its input
  assert products - stem <= parts.flops <= 1.05 * whole.flops
  assert parts.bytes_moved > 0.7 * whole.bytes_moved
  assert parts.memory.temporaries < 0.6 * whole.memory.temporaries


def test_sharded_arguments_are_known_without_compiling():
  (exp, whole), (cut, sharded) = plan(), plan(fsdp=2)
  assert program.argument_bytes(exp) == whole.memory.arguments
  assert program.argument_bytes(cut) == sharded.memory.arguments < whole.memory.arguments
  assert whole.memory.outputs < 1000  # metrics; the new state is in the old one's place
  assert "all-gather" in {c.kind for c in sharded.collectives}


def test_gradients_are_summed_once_and_nothing_grows_with_the_batch():
  exp, small = plan()
  _, large = plan(batch_size=128)
  sums = {c.kind: c.bytes for c in small.collectives}
  scalars = 100
  assert 4 * num_params(exp) <= sums["all-reduce"] <= 4 * num_params(exp) + scalars
  assert [(c.kind, c.bytes) for c in large.collectives] == list(sums.items())


@pytest.mark.parametrize(("image_size", "channels"), [(16, 3), ("8x24", 1)])
def test_a_planned_batch_is_what_the_loader_makes(image_size, channels):
  config = small_config(image_size=image_size, image_channels=channels)
  exp = experiment.build(config)
  batches = train_batches(exp, 1)
  planned = {k: (v.shape, v.dtype) for k, v in program.abstract_batch(exp).items()}
  assert planned == {k: (v.shape, v.dtype) for k, v in batches[0].items()}


@pytest.mark.parametrize(
  ("message", "expected"),
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
      "(2.00T) exceeds available HBM (15.48G).",
      (2 * 2**40, int(15.48 * 2**30)),
    ),
    (
      "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used "
      "22.90G of 15.48G hbm. Exceeded hbm capacity by 7.42G.",
      (int(22.9 * 2**30), int(15.48 * 2**30)),
    ),
    ("RESOURCE_EXHAUSTED: out of threads", None),
    ("INTERNAL: Used 1.0G of 2.0G hbm", None),
  ],
)
def test_refusals_of_the_compiler(message, expected):
  assert program.parse_overflow(message) == expected


def made_program(**facts):
  memory = program.Memory(arguments=0, outputs=0, temporaries=0, code=0)
  return program.Program(memory=memory, compile_seconds=0, **facts)


def test_rooflines_by_hand():
  """B/16 on v3, 32 cores: 9.76 TFLOP and 36.5 GB a core at 61.5 TFLOP/s and 450 GB/s."""
  found = estimate.make(
    chip=chips.find("TPU v3"),
    dtype="bfloat16",
    num_devices=32,
    program=made_program(
      flops=9.76e12,
      bytes_moved=36.5e9,
      collectives=[
        hlo.Collective("all-reduce", 1, 240_000_000),
        hlo.Collective("collective-permute", 2, 8_000_000),
      ],
    ),
    batch_size=4096,
    total_steps=1000,
    forward_flops_per_image=25.2e9,
  )
  assert found.compute_seconds == pytest.approx(0.1587, rel=1e-3)
  assert found.memory_seconds == pytest.approx(0.0811, rel=1e-3)
  assert found.link_seconds == pytest.approx((2 * 240e6 + 8e6) / 328e9)
  assert (found.seconds, found.bound_by) == (found.compute_seconds, "compute")
  assert found.images_per_sec_per_core == pytest.approx(128 / 0.1587, rel=1e-3)
  assert found.mfu == pytest.approx(3 * 25.2e9 * 128 / 9.76e12, rel=1e-3)
  assert found.days == pytest.approx(1000 * 0.1587 / 86400, rel=1e-3)
  assert found.core_days == pytest.approx(32 * found.days)
  assert found.inference_images_per_sec_per_core == pytest.approx(61.5e12 / 25.2e9)


def test_a_device_of_two_cores_counts_as_two():
  common = dict(
    program=made_program(flops=1e12, bytes_moved=1e9, collectives=[]), batch_size=64,
    total_steps=10, forward_flops_per_image=1e9, num_devices=4, dtype="bfloat16",
  )  # fmt: skip
  v4, v5e = (estimate.make(chip=chips.find(f"TPU {kind}"), **common) for kind in ("v4", "v5e"))
  assert v4.compute_seconds == pytest.approx(1 / 275)
  assert v4.core_days / v4.days == pytest.approx(8)
  assert v5e.core_days / v5e.days == pytest.approx(4)


def test_a_long_compilation_says_how_long_it_takes():
  lines, told = [], threading.Event()

  def log(line):
    lines.append(line)
    if len(lines) == 3:
      told.set()

  with planner.ticking(log, every=0.001):
    assert told.wait(60)
  assert lines[:3] == ["compiling…", "compiling… 0 s", "compiling… 0 s"]
