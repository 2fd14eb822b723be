"""Optimizers: those of the paper (section 3) as the authors' public code runs them, AdamW, LAMB and SAM as timm's users do.

One chain, big_vision's (optax.py: make):
clip → direction (Adam, momentum or LAMB) → ×lr → + decay·param → ×schedule → ×(−1) → ×factor of the parameter,
where `schedule` is a multiplier with peak 1. Update k uses the schedule at k − 1, so with warm-up from 0 the
very first update moves the moments and not the parameters.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from mixer_jax import rules as rules_lib
from mixer_jax.errors import InputError
from mixer_jax.training.schedule import Schedule

Layers = Callable[[Sequence[str]], Mapping[str, int]]
"""Names of all parameters -> the layer of each, from 0 (models.layer_numbers)."""

DECAYING: dict[str, Callable[[str | None, jax.Array], bool]] = {
  "kernels": lambda name, _: name == "kernel",
  "multidimensional": lambda name, x: x.ndim > 1 and name != "bias",
}
"""Which parameters decay, by their own name and value."""


def decaying(which: str) -> Callable[[Any], Any]:
  """Returns params -> a tree of booleans: True for those that decay.

  Args:
    which: "kernels": the kernels (stem and head included); "multidimensional": all of more than one dimension but
      biases (timm, optim/_param_groups.py: param_groups_weight_decay).
  """
  decays = DECAYING[which]
  return lambda params: jax.tree_util.tree_map_with_path(
    lambda path, x: decays(getattr(path[-1], "key", None), x), params
  )


def make_multipliers(
  rules: tuple[str, ...], *, layer_decay: float, layers: Layers
) -> Callable[[Any], Any]:
  """Returns params -> a tree of factors of the learning rate; 0: the parameter does not learn.

  Args:
    rules: "REGEX=FACTOR" each, for names such as "MixerBlock_0/token_mixing/Dense_0/kernel". The first
      whose expression matches a whole name counts; names that none matches have the factor 1.
    layer_decay: parameters that lie n layers below the last one have this to the power of n as a further factor
      (BEiT, arXiv:2106.08254; timm, optim/_param_groups.py: param_groups_layer_decay).
    layers: the layer of each parameter.

  Raises:
    InputError: not of that form; later, when parameters are given, a rule that decides for none.
  """
  parsed = rules_lib.parse("lr_multipliers", rules, "a finite factor ≥ 0", _factor)

  def multipliers(params: Any) -> Any:
    leaves, treedef = jax.tree.flatten_with_path(params)
    names = ["/".join(str(getattr(key, "key", key)) for key in path) for path, _ in leaves]
    decided = rules_lib.decide("lr_multipliers", parsed, names)
    factors = [1.0 if (rule := decided[name]) is None else rule.value for name in names]
    if layer_decay != 1.0:
      layer = layers(names)
      last = max(layer.values())
      factors = [f * layer_decay ** (last - layer[n]) for f, n in zip(factors, names, strict=True)]
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
  name: Literal["adam", "momentum", "lamb"],
  learning_rate: float,
  b1: float,
  b2: float,
  eps: float,
  momentum: float,
  accumulator_dtype: Literal["float32", "bfloat16"],
  weight_decay: float,
  weight_decay_on: Literal["kernels", "multidimensional"],
  weight_decay_scale: Literal["learning_rate", "schedule"],
  clip_norm: float | None,
  clip_value: float | None,
  lr_multipliers: tuple[str, ...],
  layer_decay: float,
  layers: Layers,
  sam_rho: float,
  schedule: Schedule,
) -> optax.GradientTransformation:
  """Returns the optimizer; its updates are added to the parameters.

  Args:
    name: "adam" (b1, b2, eps) for pre-training, "momentum" SGD (momentum) for fine-tuning, "lamb" (as Adam).
    learning_rate: peak learning rate, which the schedule multiplies.
    accumulator_dtype: type of Adam's first moment or of the momentum (vision_transformer keeps the
      momentum in bfloat16 whatever its configuration says).
    weight_decay: decay of the parameters that `weight_decay_on` tells, see decaying.
    weight_decay_scale: "learning_rate": a step removes schedule·lr·weight_decay of a parameter, the
      paper's 0.1, and torch's AdamW; "schedule": it removes schedule·weight_decay, big_vision's 1e-4, which is the
      paper's 0.1 at lr 1e-3.
    clip_norm: largest global norm of the gradients, None: no clipping.
    clip_value: largest magnitude of a gradient's elements, None: no clipping.
    lr_multipliers, layer_decay, layers: see make_multipliers; parameters with the factor 0 have no part in the
      global norm and no moments.
    sam_rho: distance of the point whose gradients are taken (SAM), see _sharpness_aware; 0: the parameters' own.
    schedule: step -> multiplier.

  Raises:
    InputError: two ways to clip; LAMB with a decay that is not scaled by the learning rate.
  """
  accumulator = jnp.dtype(accumulator_dtype)
  mask = decaying(weight_decay_on)
  decay = weight_decay * (learning_rate if weight_decay_scale == "learning_rate" else 1.0)
  if name == "momentum":
    direction = optax.trace(decay=momentum, accumulator_dtype=accumulator)
  else:
    direction = optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=accumulator)
  if name == "lamb":
    _check_lamb(weight_decay_scale)
    direction, decay = _lamb(direction, weight_decay, mask), 0.0
  tx = optax.chain(
    _clip(clip_norm, clip_value),
    direction,
    optax.scale(learning_rate),
    optax.add_decayed_weights(decay, mask=mask) if decay else optax.identity(),
    optax.scale_by_schedule(schedule),
    optax.scale(-1.0),
  )
  if lr_multipliers or layer_decay != 1.0:
    multipliers = make_multipliers(lr_multipliers, layer_decay=layer_decay, layers=layers)
    tx = optax.chain(
      optax.partition(
        {True: tx, False: optax.set_to_zero()},
        lambda params: jax.tree.map(bool, multipliers(params)),
      ),
      _multiply(multipliers),
    )
  return _sharpness_aware(tx, sam_rho) if sam_rho else tx


def _clip(norm: float | None, value: float | None) -> optax.GradientTransformation:
  if norm is not None and value is not None:
    raise InputError(f"clip_norm is {norm} and clip_value is {value}; set one of them to None.")
  if value is not None:
    return optax.clip(value)
  return optax.identity() if norm is None else optax.clip_by_global_norm(norm)


def _check_lamb(weight_decay_scale: str) -> None:
  if weight_decay_scale != "learning_rate":
    raise InputError(
      f"weight_decay_scale is {weight_decay_scale!r}, but LAMB takes the decay into its direction, which the "
      "learning rate multiplies; set it to 'learning_rate'."
    )


def _lamb(
  adam: optax.GradientTransformation, weight_decay: float, mask: Callable[[Any], Any]
) -> optax.GradientTransformation:
  """Returns LAMB's direction (You et al., arXiv:1904.00962) as timm computes it (timm, optim/lamb.py).

  Decay joins Adam's direction, whose norm then becomes the parameter's; parameters without decay keep Adam's.
  """
  if not weight_decay:
    return adam
  decayed = optax.add_decayed_weights(weight_decay, mask=mask)
  return optax.chain(adam, decayed, optax.masked(optax.scale_by_trust_ratio(), mask))


def _sharpness_aware(
  tx: optax.GradientTransformation, rho: float
) -> optax.GradientTransformationExtraArgs:
  """Returns sharpness-aware minimisation (Foret et al., arXiv:2010.01412) by `tx`.

  The gradients are taken at params + rho·grads/‖grads‖, with the norm over all parameters; `update` asks for them by
  its argument `grad_fn`, (params, 0) -> gradients.
  """
  # Not optax.contrib.normalize, which makes NaN of the zero gradients of a batch of padding.
  ascent = optax.normalize_by_update_norm(scale_factor=-rho, eps=1e-12)
  return optax.contrib.sam(tx, ascent, opaque_mode=True)
