"""Learning-rate schedules: those of the paper (section 3) and of the DeiT recipe, as multipliers with peak 1.

The recipe's references step timm's cosine scheduler once an epoch or once an update (timm, scheduler/cosine_lr.py).
"""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from mixer_jax.errors import InputError

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


def make_schedule(
  *,
  decay: Literal["linear", "cosine", "constant"],
  decay_from: Literal["warmup_end", "start"],
  warmup_steps: int | None,
  warmup_epochs: float | None,
  warmup_start: float,
  cooldown_epochs: float,
  linear_end: float,
  linear_end_unit: Literal["peak", "learning_rate"],
  cosine_end: float,
  every: Literal["step", "epoch"],
  lag: Literal[0, 1],
  total_steps: int,
  steps_per_epoch: float,
  learning_rate: float,
) -> Schedule:
  """Returns step -> multiplier of the learning rate, in [0, 1].

  Args:
    decay: form of the decay, which ends where cooldown begins.
    decay_from: where the decay begins. "warmup_end": at the end of warm-up; "start": at the start of the run, so
      that warm-up takes the place of its first part (timm).
    warmup_steps, warmup_epochs: length of linear warm-up. At most one is given; if both are None, there is none.
    warmup_start: learning rate that warm-up begins at.
    cooldown_epochs: last epochs of the run, which stay at the end of the decay.
    linear_end: where linear decay ends.
    linear_end_unit: "peak": `linear_end` is a fraction of the peak (big_vision); "learning_rate": it
      is a learning rate (vision_transformer).
    cosine_end: learning rate that cosine decay ends at.
    every: how often the rate changes. With "epoch" t below counts epochs, with "step" steps; a step belongs to the
      epoch that its middle is in.
    lag: the rate at t is that of t − lag, and of 0 before it. 1: the references that step their scheduler after an
      epoch or update, with its own index.
    total_steps: steps of the whole run.
    steps_per_epoch: may be fractional.
    learning_rate: peak learning rate, which learning rates are divided by.

  Raises:
    InputError: two lengths of warm-up, no room for decay beside warm-up and cooldown, or a rate above the peak.
  """
  by_epoch = every == "epoch"
  warmup, end = _lengths(
    warmup_steps, warmup_epochs, cooldown_epochs, total_steps, steps_per_epoch, by_epoch
  )
  _check_rates(learning_rate, warmup_start=warmup_start, cosine_end=cosine_end)
  decays = {
    "linear": _linear(linear_end if linear_end_unit == "peak" else linear_end / learning_rate),
    "cosine": _cosine(cosine_end / learning_rate),
    "constant": jnp.ones_like,
  }
  begin = warmup if decay_from == "warmup_end" else 0.0
  start = warmup_start / learning_rate

  def schedule(step: jax.typing.ArrayLike) -> jax.Array:
    t = jnp.asarray(step, jnp.float32)
    if by_epoch:  # half a step later: rounding puts no first step into the epoch before
      t = jnp.floor((t + 0.5) / steps_per_epoch)
    t = jnp.maximum(t - lag, 0.0)
    multiplier = decays[decay](jnp.clip((t - begin) / (end - begin), 0.0, 1.0))
    if not warmup:
      return multiplier
    ramp = start + (1.0 - start) * jnp.minimum(1.0, t / warmup)
    if decay_from == "warmup_end":
      return multiplier * ramp
    return jnp.where(t < warmup, ramp, multiplier)

  return schedule


def _lengths(
  warmup_steps: int | None,
  warmup_epochs: float | None,
  cooldown_epochs: float,
  total_steps: int,
  steps_per_epoch: float,
  by_epoch: bool,
) -> tuple[float, float]:
  """Returns where warm-up ends and where cooldown begins, in epochs or else in steps."""
  if warmup_steps is not None and warmup_epochs is not None:
    raise InputError(
      f"warmup_steps is {warmup_steps} and warmup_epochs is {warmup_epochs}; set one of them to None."
    )
  total, step, epoch = total_steps, 1.0, steps_per_epoch
  if by_epoch:  # the last one may be cut
    total = math.floor((total_steps - 0.5) / steps_per_epoch) + 1
    step, epoch = 1.0 / steps_per_epoch, 1.0
  end = total - cooldown_epochs * epoch
  name, value, unit = "warmup_steps", warmup_steps or 0, step
  if warmup_epochs is not None:
    name, value, unit = "warmup_epochs", warmup_epochs, epoch
  if value * unit >= end:
    raise InputError(
      f"{name} is {value}, but the run has {total_steps} steps ({total_steps / steps_per_epoch:.6g} epochs), "
      f"and cooldown_epochs is {cooldown_epochs}; both together must be shorter than the run."
    )
  return value * unit, end


def _check_rates(learning_rate: float, **rates: float) -> None:
  for name, rate in rates.items():
    if rate > learning_rate:
      raise InputError(f"{name} is {rate}; it must not be above learning_rate {learning_rate}.")


def _linear(end: float) -> Callable[[jax.Array], jax.Array]:
  return lambda progress: end + (1.0 - end) * (1.0 - progress)


def _cosine(end: float) -> Callable[[jax.Array], jax.Array]:
  return lambda progress: end + (1.0 - end) * (0.5 * (1.0 + jnp.cos(jnp.pi * progress)))
