"""Learning-rate schedules: those of the paper (section 3) and of the DeiT recipe, as multipliers with peak 1.

The recipe's references step timm's cosine scheduler once an epoch or once an update (timm, scheduler/cosine_lr.py).
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

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
  num_epochs = math.floor((total_steps - 0.5) / steps_per_epoch) + 1  # the last may be cut
  length, epoch = (num_epochs, 1.0) if by_epoch else (total_steps, steps_per_epoch)
  name, given, unit = _given_warmup(warmup_steps, warmup_epochs, epoch / steps_per_epoch, epoch)
  warmup, end = given * unit, length - cooldown_epochs * epoch
  if warmup >= end:
    lengths = [f"{name} is {given}", f"cooldown_epochs is {cooldown_epochs}"]
    longer_first = lengths if warmup > length - end else lengths[::-1]
    raise InputError(
      f"{' and '.join(longer_first)}, but the run has {total_steps} steps ({total_steps / steps_per_epoch:.6g} "
      "epochs); both together must be shorter. Lower one of them, or make the run longer."
    )
  _check_rates(learning_rate, warmup_start=warmup_start, cosine_end=cosine_end)
  linear_end = linear_end if linear_end_unit == "peak" else linear_end / learning_rate
  cosine_end, start = cosine_end / learning_rate, warmup_start / learning_rate
  begin = warmup if decay_from == "warmup_end" else 0.0

  def multiplier(t: Any, xp: Any) -> Any:
    decays = {
      "linear": lambda progress: linear_end + (1.0 - linear_end) * (1.0 - progress),
      "cosine": lambda progress: (
        cosine_end + (1.0 - cosine_end) * (0.5 * (1.0 + xp.cos(xp.pi * progress)))
      ),
      "constant": xp.ones_like,
    }
    t = xp.maximum(t - lag, 0.0)
    decayed = decays[decay](xp.clip((t - begin) / (end - begin), 0.0, 1.0))
    if not warmup:
      return decayed
    ramp = start + (1.0 - start) * xp.minimum(1.0, t / warmup)
    return decayed * ramp if decay_from == "warmup_end" else xp.where(t < warmup, ramp, decayed)

  if not by_epoch:
    return lambda step: multiplier(jnp.asarray(step, jnp.float32), jnp)
  # In float64, as the references have it.
  rates = multiplier(np.arange(num_epochs, dtype=np.float64), np).astype(np.float32)

  def schedule(step: jax.typing.ArrayLike) -> jax.Array:
    # Half a step later: rounding puts no first step into the epoch before.
    epoch = (jnp.asarray(step, jnp.float32) + 0.5) / steps_per_epoch
    return jnp.take(rates, jnp.floor(epoch).astype(jnp.int32), mode="clip")

  return schedule


def _given_warmup(
  steps: int | None, epochs: float | None, step: float, epoch: float
) -> tuple[str, float, float]:
  """Returns the argument that gives the length of warm-up, its value, and the unit of that: `step` or `epoch`."""
  if steps is not None and epochs is not None:
    raise InputError(
      f"warmup_steps is {steps} and warmup_epochs is {epochs}; set one of them to None."
    )
  if epochs is not None:
    return "warmup_epochs", epochs, epoch
  return "warmup_steps", steps or 0, step


def _check_rates(learning_rate: float, **rates: float) -> None:
  for name, rate in rates.items():
    if rate > learning_rate:
      raise InputError(f"{name} is {rate}; it must not be above learning_rate {learning_rate}.")
