"""Optimizers and schedules of the paper (section 3) as the authors' public code runs them.

One chain, big_vision's (optax.py: make):
clip → direction (Adam or momentum) → ×lr → + decay·param → ×schedule → ×(−1),
where `schedule` is a multiplier with peak 1. Update k uses the schedule at k − 1, so with warm-up the
very first update moves the moments and not the parameters.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from mixer_jax import rules as rules_lib
from mixer_jax.errors import InputError

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


def make_schedule(
  *,
  decay: Literal["linear", "cosine", "constant"],
  warmup_steps: int,
  linear_end: float,
  linear_end_unit: Literal["peak", "learning_rate"],
  total_steps: int,
  learning_rate: float,
) -> Schedule:
  """Returns step -> multiplier of the learning rate, in [0, 1].

  Args:
    decay: form of the decay from the end of warm-up to `total_steps`; cosine ends at 0.
    warmup_steps: steps of linear warm-up from 0; it multiplies the decay.
    linear_end: where linear decay ends.
    linear_end_unit: "peak": `linear_end` is a fraction of the peak (big_vision); "learning_rate": it
      is a learning rate (vision_transformer).
    total_steps: steps of the whole run.
    learning_rate: peak learning rate, which "learning_rate" divides by.

  Raises:
    InputError: warm-up not shorter than the run.
  """
  if not 0 <= warmup_steps < total_steps:
    raise InputError(
      f"warmup_steps is {warmup_steps}, but the run has {total_steps} steps; "
      "it must be shorter than the run."
    )
  end = linear_end if linear_end_unit == "peak" else linear_end / learning_rate
  decays = {
    "linear": lambda progress: end + (1.0 - end) * (1.0 - progress),
    "cosine": lambda progress: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
    "constant": jnp.ones_like,
  }

  def schedule(step: jax.typing.ArrayLike) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    progress = jnp.clip((step - warmup_steps) / float(total_steps - warmup_steps), 0.0, 1.0)
    multiplier = decays[decay](progress)
    return multiplier * jnp.minimum(1.0, step / warmup_steps) if warmup_steps else multiplier

  return schedule


def is_kernel(params: Any) -> Any:
  """Returns a tree of booleans: True for kernels (stem and head included), which alone decay."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: getattr(path[-1], "key", None) == "kernel", params
  )


def make_multipliers(rules: tuple[str, ...]) -> Callable[[Any], Any]:
  """Returns params -> a tree of factors of the learning rate; 0: the parameter does not learn.

  Args:
    rules: "REGEX=FACTOR" each, for names such as "MixerBlock_0/token_mixing/Dense_0/kernel". The first
      whose expression matches a whole name counts; names that none matches have the factor 1.

  Raises:
    InputError: not of that form; later, when parameters are given, a rule that decides for none.
  """
  parsed = rules_lib.parse("lr_multipliers", rules, "a finite factor ≥ 0", _factor)

  def multipliers(params: Any) -> Any:
    leaves, treedef = jax.tree.flatten_with_path(params)
    names = ["/".join(str(getattr(key, "key", key)) for key in path) for path, _ in leaves]
    decided = rules_lib.decide("lr_multipliers", parsed, names)
    factors = [1.0 if (rule := decided[name]) is None else rule.value for name in names]
    return jax.tree.unflatten(treedef, factors)

  return multipliers


def _factor(text: str) -> float:
  if not 0 <= (factor := float(text)) < float("inf"):
    raise ValueError(f"{text} is not such a factor")
  return factor


def _multiply(multipliers: Callable[[Any], Any]) -> optax.GradientTransformation:
  """Returns the transformation that multiplies each update with its parameter's factor."""

  def update(updates: Any, params: Any) -> Any:
    factors = multipliers(params)
    return jax.tree.map(lambda u, m: u if m == 1.0 else u * m, updates, factors)

  return optax.stateless(update)


def make_optimizer(
  *,
  name: Literal["adam", "momentum"],
  learning_rate: float,
  b1: float,
  b2: float,
  eps: float,
  momentum: float,
  accumulator_dtype: Literal["float32", "bfloat16"],
  weight_decay: float,
  weight_decay_scale: Literal["learning_rate", "schedule"],
  clip_norm: float | None,
  lr_multipliers: tuple[str, ...],
  schedule: Schedule,
) -> optax.GradientTransformation:
  """Returns the optimizer; its updates are added to the parameters.

  Args:
    name: "adam" (b1, b2, eps) for pre-training, "momentum" SGD (momentum) for fine-tuning.
    learning_rate: peak learning rate, which the schedule multiplies.
    accumulator_dtype: type of Adam's first moment or of the momentum (vision_transformer keeps the
      momentum in bfloat16 whatever its configuration says).
    weight_decay: decay of the kernels; biases and LayerNorm do not decay.
    weight_decay_scale: "learning_rate": a step removes schedule·lr·weight_decay of a kernel, the
      paper's 0.1; "schedule": it removes schedule·weight_decay, big_vision's 1e-4, which is the
      paper's 0.1 at lr 1e-3.
    clip_norm: largest global norm of the gradients, None: no clipping.
    lr_multipliers: see make_multipliers; parameters with the factor 0 have no part in the global norm
      and no moments.
    schedule: step -> multiplier.
  """
  accumulator = jnp.dtype(accumulator_dtype)
  if name == "adam":
    direction = optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=accumulator)
  else:
    direction = optax.trace(decay=momentum, accumulator_dtype=accumulator)
  decay = weight_decay * (learning_rate if weight_decay_scale == "learning_rate" else 1.0)
  multipliers = make_multipliers(lr_multipliers)
  tx = optax.chain(
    optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm),
    direction,
    optax.scale(learning_rate),
    optax.add_decayed_weights(decay, mask=is_kernel) if decay else optax.identity(),
    optax.scale_by_schedule(schedule),
    optax.scale(-1.0),
  )
  if lr_multipliers:
    tx = optax.chain(
      optax.partition(
        {True: tx, False: optax.set_to_zero()},
        lambda params: jax.tree.map(bool, multipliers(params)),
      ),
      _multiply(multipliers),
    )
  return tx
