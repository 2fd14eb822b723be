"""The train and evaluation steps: pure functions of (state, batch), jitted by experiment.build.

A batch is {"image": uint8 (b, [t,] h, w, c), "label": int32 (b,), or (b, m) padded with −1, "mask": float32
(b,)}; a row with mask 0 counts for nothing. b is the global batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array

from mixer_jax import labels
from mixer_jax.losses import Loss
from mixer_jax.training import gradients
from mixer_jax.training.augment import Augment
from mixer_jax.training.normalization import Normalize
from mixer_jax.training.state import TrainState, Variables

Batch = dict[str, Array]


def make_train_step(
  *,
  model: nn.Module,
  tx: optax.GradientTransformation,
  schedule: Callable[[Array], Array],
  learning_rate: float,
  loss: Loss,
  augment: Augment,
  grad_accum_steps: int,
  ema_decay: float,
  ema_warmup: bool,
  multipliers: Callable[[Any], Any],
  param_shardings: Any,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
  """Returns train_step(state, batch) -> (state, metrics).

  `loss` and the gradients are means over the rows with mask 1. Parameters whose factor in
  `multipliers(params)` is 0 are constants: nothing is computed for their gradients. Parameters arrive as
  the shards that `param_shardings` describes, and their gradients and updates are shards too. Metrics are
  scalars: loss, skipped (rows with mask 0), lr (of this update), l2_grads (before clipping), l2_params,
  l2_updates.

  An optimizer that asks for gradients at other parameters (SAM) gets them of the same batch with the same random draws.
  Loss, batch statistics and l2_grads are those at the state's own parameters.
  """

  def loss_fn(params: Any, part: Batch, batch_stats: Any, key: Array) -> tuple[Array, Any]:
    """Returns this part's share of the mean loss of the whole batch, and the new batch statistics."""
    params = jax.tree.map(
      lambda p, m: p if m else jax.lax.stop_gradient(p), params, multipliers(params)
    )
    logits, updated = model.apply(
      {"params": params, "batch_stats": batch_stats},
      part["image"],
      train=True,
      index=part["index"],
      mask=part["mask"],
      rngs={"dropout": key},
      mutable=["batch_stats"],
    )
    return jnp.sum(loss(logits, part["target"]) * part["weight"]), updated.get("batch_stats", {})

  tx = optax.with_extra_args_support(tx)
  value_and_grad = gradients.make_value_and_grad(loss_fn, param_shardings, grad_accum_steps)

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(state.rng, state.step))
    image, target = augment(augment_key, batch["image"], batch["label"])
    weight = batch["mask"] / jnp.maximum(jnp.sum(batch["mask"]), 1.0)
    whole = {
      "image": image,
      "target": target,
      "weight": weight,
      "index": jnp.arange(len(image)),
      "mask": batch["mask"],
    }
    others = whole, state.batch_stats, dropout_key
    (value, batch_stats), grads = value_and_grad(state.params, *others)
    updates, opt_state = tx.update(
      grads,
      state.opt_state,
      state.params,
      grad_fn=lambda params, _: value_and_grad(params, *others)[1],
    )
    params = optax.apply_updates(state.params, updates)
    new_state = state.replace(
      step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state
    ).with_average(ema_decay, warmup=ema_warmup)
    metrics = {
      "loss": value,
      "skipped": jnp.sum(batch["mask"] == 0),
      "lr": learning_rate * schedule(state.step),
      "l2_grads": optax.tree.norm(grads),
      "l2_params": optax.tree.norm(params),
      "l2_updates": optax.tree.norm(updates),
    }
    return new_state, metrics

  return train_step


def make_eval_step(
  *, model: nn.Module, loss: Loss, normalize: Normalize
) -> Callable[[Variables, Batch], dict[str, Array]]:
  """Returns eval_step(variables, batch) -> a row for each image (labels.score)."""

  def eval_step(variables: Variables, batch: Batch) -> dict[str, Array]:
    logits: Any = model.apply(variables, normalize(batch["image"]))
    return labels.score(logits, batch["label"], batch["mask"], loss)

  return eval_step
