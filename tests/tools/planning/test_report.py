"""The report of B/16 on 32 cores of TPU v3, by numbers that the compiler gave."""

import dataclasses
import json

import pytest

from mixer_jax.tools.planning import chips, estimate, hlo, published, report
from mixer_jax.tools.planning.program import Memory, Program

GIB = 2**30


def b16(**changes):
  program = Program(
    memory=Memory(arguments=int(0.69 * GIB), outputs=24, temporaries=int(4.1 * GIB), code=10**8),
    flops=9.761e12,
    bytes_moved=37.73e9,
    collectives=[hlo.Collective("all-reduce", 4, 121_380_000)],
    compile_seconds=33,
  )
  times = estimate.make(
    chip=chips.find("TPU v3"),
    dtype="bfloat16",
    num_devices=32,
    program=program,
    batch_size=4096,
    total_steps=92_897,
    forward_flops_per_image=25.2e9,
  )
  settings = dict(
    model="B/16", image_size=224, batch_size=4096, grad_accum_steps=1, remat="none", fsdp=1,
    dtype="bfloat16",
  )  # fmt: skip
  plan = report.Report(
    devices="v3:4x4",
    num_devices=32,
    num_cores=32,
    settings=settings,
    examples="images",
    parameters=59_880_472,
    training_flops_per_image=75_600_000_000,
    program=program,
    needed_bytes=program.memory.total,
    limit_bytes=int(15.48 * GIB),
    estimate=times,
    rates="published",
    total_steps=92_897,
    published=published.find("imagenet2012", "mixer", "B/16", 300, (224, 224, 3)),
  )
  return dataclasses.replace(plan, **changes)


def test_table():
  text = report.table(b16())
  for expected in (
    "B/16, 59,880,472 parameters, 224 px, bfloat16",
    "128 images a device",
    "4.88 GiB of 15.48 GiB: fits, 10.60 GiB to spare",
    "9.76 TFLOP and 37.7 GB moved",
    "4 × all-reduce, 121 MB",
    "compute 159 ms, memory 83.8 ms, links 0.74 ms (rates published): bound by compute",
    "45–80 % of such estimates",
    # 1384 of 61.5e12 / 25.2e9, and 92 897 steps of 158.7 ms on 32 cores in ten core-days.
    "57 % of its bound, 2,440",
    "55 % of the bound's speed",
  ):
    assert expected in text


def test_the_paper_is_compared_with_published_rates_of_its_own_chip():
  assert "45–80 %" not in report.table(b16(rates="measured here"))
  other = report.table(b16(devices="v5e:4x4"))
  assert "10 core-days, extrapolated there\n" in other and "of its bound" not in other


def test_what_does_not_fit():
  """A TPU's compiler refuses such a program; that of a GPU or a CPU compiles it."""
  refused = b16(program=None, estimate=None, needed_bytes=int(22.9 * GIB))
  assert "22.90 GiB of 15.48 GiB: DOES NOT FIT, 7.42 GiB too much" in report.table(refused)
  for plan in (refused, b16(limit_bytes=4 * GIB)):
    assert not plan.fits and json.loads(report.to_json(plan))["fits"] is False
  assert b16(limit_bytes=None).fits


def test_json_has_all_numbers():
  found = json.loads(report.to_json(b16()))
  assert found["program"]["memory"]["total"] == found["needed_bytes"]
  assert found["estimate"]["bound_by"] == "compute"
  assert found["estimate"]["mfu"] == pytest.approx(75.6e9 * 128 / 9.761e12)
  assert found["published"] == {
    "inference_images_per_sec": 1384, "core_days": 10, "extrapolated": True,
  }  # fmt: skip
  assert published.find("jft300m", "vit", "L/16", 7, 224) is None  # the L/16 of 7 epochs is a Mixer
