"""The search against trying everything, on a made-up memory."""

import dataclasses

import pytest

from mixer_jax.tools.planning import fit
from mixer_jax.tools.planning.program import Memory, Program

STATE, ACTIVATIONS, MODEL = 1600, 12_800, 1e9


def arguments(s):
  return STATE // s.fsdp


def trial_of(s):
  """Accumulation adds sums of the gradients, recomputation leaves a quarter of the activations."""
  sums = 400 if s.grad_accum_steps > 1 else 0
  activations = ACTIVATIONS // s.grad_accum_steps // (4 if s.remat == "block" else 1)
  memory = Memory(arguments=arguments(s), outputs=0, temporaries=activations + sums, code=0)
  program = Program(memory=memory, flops=MODEL, bytes_moved=1, collectives=[], compile_seconds=0)
  return fit.Trial(s, memory.total, program)


def space(**changes):
  start = fit.Setting(grad_accum_steps=1, remat="none", fsdp=1)
  return fit.Space(
    **dict(
      start=start, rows_per_device=128, num_devices=8, can_accumulate=True, can_remat=True, can_shard=True,
    )
    | changes
  )  # fmt: skip


@pytest.mark.parametrize("limit", [15_000, 9000, 4000, 2500, 2300, 1700, 1200, 800, 700])
def test_cheapest_is_the_first_in_order_that_fits(limit):
  expected = next(s for s in space().by_cost() if trial_of(s).needed_bytes <= limit)
  trials = list(fit.cheapest(space(), trial_of, arguments, limit, MODEL))
  assert trials[-1].setting == expected
  assert trials[-1].fits(limit)
  assert not any(t.fits(limit) for t in trials[:-1])
  assert len(trials) <= 10  # of 64: a trial takes a minute


def test_a_refused_program_does_not_fit_whatever_it_needs():
  def refused(s):
    t = trial_of(s)
    return t if t.needed_bytes <= 2500 else fit.Trial(s, t.needed_bytes, None)

  trials = list(fit.cheapest(space(), refused, arguments, 2500, MODEL))
  assert trials[-1].program is not None
  assert [t.program for t in trials[:-1]] == [None] * (len(trials) - 1)
  assert not fit.Trial(trials[0].setting, 1, None).fits(2500)


def test_compiler_recomputation_is_compared_with_smaller_parts():
  """It squeezes everything into 9000, with a fifth more operations."""

  def squeezed(s):
    t = trial_of(s)
    more = dataclasses.replace(t.program, flops=1.2 * MODEL)
    return t if t.needed_bytes <= 9000 else fit.Trial(s, 9000, more)

  trials = list(fit.cheapest(space(), squeezed, arguments, 9000, MODEL))
  assert [t.setting.grad_accum_steps for t in trials] == [1, 2]
  assert all(t.fits(9000) for t in trials)
  assert fit.least_flops(trials, 9000) == trials[1]
  whole = list(fit.cheapest(space(can_accumulate=False), squeezed, arguments, 9000, MODEL))
  assert [t.setting for t in whole] == [space().start]  # shards would cost more than they save
  alone = list(fit.cheapest(space(), trial_of, arguments, 15_000, MODEL))
  assert fit.least_flops(alone, 15_000) == alone[0]
  assert len(alone) == 1


def test_nothing_fits():
  trials = list(fit.cheapest(space(), trial_of, arguments, 300, MODEL))
  assert trials
  assert not any(t.fits(300) for t in trials)


def test_settings_are_tried_from_the_cheapest_on():
  order = list(space(rows_per_device=16, num_devices=2).by_cost())
  assert [(s.grad_accum_steps, s.remat, s.fsdp) for s in order[:8]] == [
    (1, "none", 1), (2, "none", 1), (1, "none", 2), (2, "none", 2),
    (1, "block", 1), (2, "block", 1), (1, "block", 2), (2, "block", 2),
  ]  # fmt: skip
  assert {s.grad_accum_steps for s in order[8:]} == {4, 8, 16}
  assert len(set(order)) == len(order)


def test_configured_settings_are_where_the_search_starts():
  start = fit.Setting(grad_accum_steps=3, remat="block", fsdp=2)
  order = list(space(start=start, rows_per_device=12).by_cost())
  assert order[0] == start
  assert {s.grad_accum_steps for s in order} == {3, 6, 12}
  assert {s.remat for s in order} == {"block"}
  assert {s.remat for s in space(can_remat=False).by_cost()} == {"none"}
  assert {s.fsdp for s in space(can_shard=False).by_cost()} == {1}
  assert {s.grad_accum_steps for s in space(can_accumulate=False).by_cost()} == {1}


def test_settings_that_the_mesh_rules_forbid_are_not_tried():
  def some(s):
    return None if s.fsdp > 1 else arguments(s)

  for trials in (
    fit.cheapest(space(), trial_of, some, 1200, MODEL),
    fit.smallest(space(), trial_of, some),
  ):
    assert {t.setting.fsdp for t in trials} == {1}


@pytest.mark.parametrize("rows", [1, 2, 4, 8, 128])
def test_smallest_finds_the_least_temporaries(rows):
  trials = list(fit.smallest(space(rows_per_device=rows), trial_of, arguments))
  found = fit.least_temporaries(trials)
  least = min(trial_of(s).program.memory.temporaries for s in space(rows_per_device=rows).by_cost())
  assert found.program.memory.temporaries <= 1.05 * least
