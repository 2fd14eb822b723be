"""Searches for settings with which a step fits: parts of the batch, shards of the state, recomputation.

No setting changes the result (docs/plan.md). A trial is a compilation and takes a minute. So a setting that
cannot fit even by an optimistic estimate is not tried.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mixer_jax.tools.planning.program import Program

# Fewer images a device and part leave a TPU's matrix units idle, so recomputation is cheaper.
_MIN_ROWS = 8
# At best: recomputing blocks leaves their inputs of the activations, sharding the state leaves the
# activations beside the gradients.
_REMAT_LEAVES, _SHARDS_LEAVE = 1 / 8, 1 / 2
# A setting must save this share, of memory or operations, to count.
_WORTH = 0.05


class Setting(NamedTuple):
  """grad_accum_steps, model.remat and mesh.fsdp of a configuration."""

  grad_accum_steps: int
  remat: str
  fsdp: int

  def flags(self) -> str:
    """Returns the flags of train.py that set it."""
    return (
      f"--config.grad_accum_steps={self.grad_accum_steps} --config.model.remat={self.remat} "
      f"--config.mesh.fsdp={self.fsdp}"
    )


@dataclasses.dataclass(frozen=True)
class Trial:
  """A compiled setting: the memory that it needs, and the program unless the compiler refused it."""

  setting: Setting
  needed_bytes: int
  program: Program | None

  def fits(self, limit_bytes: int | None) -> bool:
    return self.program is not None and (limit_bytes is None or self.needed_bytes <= limit_bytes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
  """The settings that a configuration has on some devices.

  Attributes:
    start: as configured.
    rows_per_device: images of the batch on each device.
    num_devices: of the mesh.
    can_accumulate: whether the batch may be taken in parts (not with batch statistics).
    can_remat: whether the model has `remat`.
    can_shard: whether the configuration leaves the mesh open.
  """

  start: Setting
  rows_per_device: int
  num_devices: int
  can_accumulate: bool
  can_remat: bool
  can_shard: bool

  def accumulations(self, min_rows: int = 1) -> list[int]:
    """Returns the numbers of parts from the start's on, doubled as long as the rows divide."""
    most = self.rows_per_device // min_rows if self.can_accumulate else 0
    return _doubled(self.start.grad_accum_steps, self.rows_per_device, most)

  def shards(self) -> list[int]:
    """Returns the sizes of the axis fsdp from the start's on, doubled as long as devices divide."""
    return _doubled(self.start.fsdp, self.num_devices, self.num_devices if self.can_shard else 0)

  def remats(self) -> list[str]:
    both = self.can_remat and self.start.remat == "none"
    return [self.start.remat, "block"] if both else [self.start.remat]

  def by_cost(self) -> Iterator[Setting]:
    """Yields settings from the cheapest on.

    More parts read the parameters more often; more shards move parameters over the links; recomputing
    takes a quarter more operations. Parts below eight images come last.
    """
    usual = self.accumulations(_MIN_ROWS)
    small = [n for n in self.accumulations() if n not in usual]
    for parts in (usual, small):
      for remat in self.remats():
        for fsdp in self.shards():
          for n in parts:
            yield Setting(n, remat, fsdp)


def _doubled(start: int, divisible: int, most: int) -> list[int]:
  """Returns start, and its doubles up to `most` that divide `divisible`."""
  found = [start]
  while 2 * found[-1] <= most and divisible % (2 * found[-1]) == 0:
    found.append(2 * found[-1])
  return found


Try = Callable[[Setting], Trial]
Arguments = Callable[[Setting], int | None]


def cheapest(
  space: Space,
  try_setting: Try,
  argument_bytes: Arguments,
  limit_bytes: int | None,
  model_flops: float,
) -> Iterator[Trial]:
  """Yields trials in the order of `Space.by_cost` until one fits.

  Where memory is short the compiler recomputes on its own, and smaller parts may be faster. So a trial
  that fits with more operations than the model has is followed by one more that fits, of more parts.

  Args:
    space, try_setting: what to choose from, and what compiles one.
    argument_bytes: bytes of state and batch on a device with a setting. None if a rule of the mesh forbids
      the setting.
    limit_bytes: memory of a device. If None, whatever compiles fits.
    model_flops: of a step on a device, nothing recomputed.
  """
  trials: list[Trial] = []
  fitting: list[Trial] = []
  for setting in space.by_cost():
    if fitting and not _is_in_more_parts(setting, fitting[0].setting):
      return
    arguments = argument_bytes(setting)
    if arguments is None:
      continue
    least = max((_least(t, argument_bytes(t.setting) or 0, setting) for t in trials), default=0)
    if trials and limit_bytes is not None and arguments + least > limit_bytes:
      continue
    trials.append(try_setting(setting))
    yield trials[-1]
    if trials[-1].fits(limit_bytes):
      fitting.append(trials[-1])
    if len(fitting) == 2 or (fitting and _flops(fitting[0]) < (1 + _WORTH) * model_flops):
      return


def _is_in_more_parts(setting: Setting, other: Setting) -> bool:
  return setting._replace(grad_accum_steps=other.grad_accum_steps) == other


def _least(trial: Trial, argument_bytes: int, other: Setting) -> float:
  """Returns the least that another setting may need beside its arguments, going by a trial.

  More parts, recomputation and more shards reduce it at best in proportion. Fewer of them do not reduce it.
  """
  parts = max(other.grad_accum_steps / trial.setting.grad_accum_steps, 1)
  remat = _REMAT_LEAVES if other.remat == "block" != trial.setting.remat else 1
  shards = _SHARDS_LEAVE if other.fsdp > trial.setting.fsdp else 1
  return (trial.needed_bytes - argument_bytes) / parts * remat * shards


def smallest(space: Space, try_setting: Try, argument_bytes: Arguments) -> Iterator[Trial]:
  """Yields trials, each from the best so far: 4 × the parts while that helps, then remat, then fsdp.

  The best is the one with the least temporaries; `least_temporaries` finds it among them.
  """
  best = try_setting(space.start)
  yield best
  for changes in _changes(space):
    for change in changes:
      setting = best.setting._replace(**change)
      if argument_bytes(setting) is None:
        continue
      trial = try_setting(setting)
      yield trial
      if _temporaries(trial) > (1 - _WORTH) * _temporaries(best):
        break
      best = trial


def _changes(space: Space) -> list[list[dict[str, Any]]]:
  """Returns the changes of each kind, to be tried one after the other while they help."""
  parts = space.accumulations()[1:]
  fourfold = parts[1::2] if len(parts) % 2 == 0 else [*parts[1::2], parts[-1]]
  return [
    [{"grad_accum_steps": n} for n in fourfold],
    [{"remat": remat} for remat in space.remats()[1:]],
    [{"fsdp": fsdp} for fsdp in space.shards()[1:][-1:]],
  ]


def least_flops(trials: list[Trial], limit_bytes: int | None) -> Trial:
  """Returns the trial with the fewest operations among those that fit, else the last."""
  fitting = [t for t in trials if t.fits(limit_bytes)]
  return min(fitting, key=_flops) if fitting else trials[-1]


def _flops(trial: Trial) -> float:
  return trial.program.flops if trial.program else math.inf


def least_temporaries(trials: list[Trial]) -> Trial:
  """Returns the trial with the least temporaries among those that compiled, else the first."""
  return min(trials, key=_temporaries)


def _temporaries(trial: Trial) -> float:
  return trial.program.memory.temporaries if trial.program else trial.needed_bytes
