"""The train and evaluation steps: pure functions of (state, batch), jitted by experiment.build.

A batch is {"image": uint8 (b, h, w, 3), "label": int32 (b,), or (b, m) padded with −1, "mask": float32
(b,)}; a row with mask 0 counts for nothing. b is the global batch.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, UInt8

from mixer_jax import labels
from mixer_jax.losses import Loss
from mixer_jax.parallel import sharding
from mixer_jax.training.state import TrainState

Batch = dict[str, Array]


# 2/255 as a sum: 8-bit levels times the first part are exact in float32, the second is the rest.
_RANGE_HIGH = np.float32(32897 / 2**22)
_RANGE_LOW = np.float32(2 / 255 - 32897 / 2**22)


def value_range(image: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
  """Maps 0..255 to −1..1: −1 + (x/255)·2 (big_vision, pp/ops_image.py: value_range), to the bit.

  Written as a division, XLA multiplies by the rounded 1/255 and 205 of the 256 levels are off.
  """
  x = image.astype(jnp.float32)
  return -1.0 + (x * _RANGE_HIGH + x * _RANGE_LOW)


def mixup(
  key: Array, image: UInt8[Array, "b h w 3"], label: Float[Array, "b k"], p: float
) -> tuple[Float[Array, "b h w 3"], Float[Array, "b k"]]:
  """Mixes each image, in −1..1, and label with its neighbour's; one a ~ Beta(p, p), a ≥ ½, for all.

  Rolls the global batch; big_vision rolls inside each device's shard, so that its pairs depend on the
  number of devices. Rolled as uint8, the images take a quarter of the memory.
  """
  a = jax.random.beta(key, p, p)
  a = jnp.maximum(a, 1.0 - a)
  image = a * value_range(image) + (1.0 - a) * value_range(jnp.roll(image, 1, axis=0))
  label = a * label + (1.0 - a) * jnp.roll(label, 1, axis=0)
  return image, label


def make_train_step(
  *,
  model: nn.Module,
  tx: optax.GradientTransformation,
  schedule: Callable[[Array], Array],
  learning_rate: float,
  loss: Loss,
  num_classes: int,
  mixup_p: float,
  grad_accum_steps: int,
  multipliers: Callable[[Any], Any],
  param_shardings: Any,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
  """Returns train_step(state, batch) -> (state, metrics).

  `loss` and the gradients are means over the rows with mask 1. Parameters whose factor in
  `multipliers(params)` is 0 are constants: nothing is computed for their gradients. Metrics are scalars: loss, skipped (rows
  with mask 0), lr (of this update), l2_grads (before clipping), l2_params, l2_updates. `param_shardings` says which parameters
  arrive as shards; their gradients and updates are shards too.
  """

  def loss_of_part(params: Any, state: TrainState, part: dict[str, Array], key: Array):
    """Returns this part's share of the mean loss of the whole batch, and the new model_state."""
    params = jax.tree.map(
      lambda p, m: p if m else jax.lax.stop_gradient(p), params, multipliers(params)
    )
    logits, model_state = model.apply(
      {"params": params, **state.model_state},
      part["image"],
      train=True,
      index=part["row"],
      rngs={"dropout": key},
      mutable=list(state.model_state),
    )
    return jnp.sum(loss(logits, part["label"]) * part["weight"]), model_state

  def loss_of_batch(params: Any, *args: Any):
    return loss_of_part(gather(params), *args)

  gather = sharding.make_gather(param_shardings)
  value_and_grad = jax.value_and_grad(loss_of_part, has_aux=True)

  def accumulate(state: TrainState, whole: dict[str, Array], key: Array):
    """Returns loss and gradients of the whole batch, taken part by part inside each shard.

    Each device gathers the parameters once and adds up the gradients of its own rows; the devices add
    theirs once, at the end, each keeping the shards that it holds.
    """
    mesh = jax.tree.leaves(param_shardings)[0].mesh
    axes = mesh.axis_names
    specs = jax.tree.map(lambda s: s.spec, param_shardings)
    cuts = jax.tree.map(sharding.cut_dimension, param_shardings)

    def one_shard(params: Any, rows: dict[str, Array]):
      params = jax.tree.map(functools.partial(_gather, axes), params, cuts)

      def one_part(total: Any, part: dict[str, Array]):
        (value, _), grads = value_and_grad(params, state, part, key)
        return jax.tree.map(jnp.add, total, (value, grads)), None

      parts = jax.tree.map(lambda x: x.reshape(grad_accum_steps, -1, *x.shape[1:]), rows)
      # Sums are float32 whatever the type of the parameters.
      zeros = jax.tree.map(
        lambda x: jnp.zeros_like(x, jnp.float32), (jnp.sum(rows["weight"]), params)
      )
      (value, grads), _ = jax.lax.scan(one_part, zeros, parts)
      value, grads = _sum_over_devices(axes, value, grads, cuts)
      return value, jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)

    sharded = jax.shard_map(
      one_shard,
      mesh=mesh,
      in_specs=(specs, PartitionSpec(axes)),
      out_specs=(PartitionSpec(), specs),
    )
    value, grads = sharded(state.params, whole)
    return (value, state.model_state), grads

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
    mixup_key, dropout_key = jax.random.split(jax.random.fold_in(state.rng, state.step))
    label = labels.targets(batch["label"], num_classes)
    if mixup_p:
      image, label = mixup(mixup_key, batch["image"], label, mixup_p)
    else:
      image = value_range(batch["image"])
    weight = batch["mask"] / jnp.maximum(jnp.sum(batch["mask"]), 1.0)
    row = jnp.arange(image.shape[0])
    whole = {"image": image, "label": label, "weight": weight, "row": row}
    if grad_accum_steps == 1:
      (value, model_state), grads = jax.value_and_grad(loss_of_batch, has_aux=True)(
        state.params, state, whole, dropout_key
      )
    else:
      (value, model_state), grads = accumulate(state, whole, dropout_key)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {
      "loss": value,
      "skipped": jnp.sum(batch["mask"] == 0),
      "lr": learning_rate * schedule(state.step),
      "l2_grads": optax.tree.norm(grads),
      "l2_params": optax.tree.norm(params),
      "l2_updates": optax.tree.norm(updates),
    }
    new_state = state.replace(
      step=state.step + 1, params=params, model_state=model_state, opt_state=opt_state
    )
    return new_state, metrics

  return train_step


def _gather(axes: tuple[str, ...], p: Array, cut: int) -> Array:
  """Returns the whole of a parameter that this device holds a shard of, inside shard_map."""
  if cut != sharding.WHOLE:
    p = jax.lax.all_gather(p, "fsdp", axis=cut, tiled=True)
    axes = tuple(axis for axis in axes if axis != "fsdp")
  # Marked as differing between devices, the parameters get gradients that are not yet summed.
  return jax.lax.pcast(p, axes, to="varying")


def _sum_over_devices(axes: tuple[str, ...], value: Array, grads: Any, cuts: Any):
  """Returns the sums over the devices; of the gradient of a sharded parameter, this device's shard."""
  leaves, structure = jax.tree.flatten(grads)
  dimensions = dict(enumerate(jax.tree.leaves(cuts)))
  shards = {
    i: jax.lax.psum_scatter(leaves[i], "fsdp", scatter_dimension=cut, tiled=True)
    for i, cut in dimensions.items()
    if cut != sharding.WHOLE
  }
  shards = jax.lax.psum(shards, tuple(axis for axis in axes if axis != "fsdp"))
  whole = {i: leaves[i] for i, cut in dimensions.items() if cut == sharding.WHOLE}
  value, whole = jax.lax.psum((value, whole), axes)
  return value, structure.unflatten((shards | whole)[i] for i in dimensions)


def make_eval_step(
  *, model: nn.Module, loss: Loss
) -> Callable[[Any, Any, Batch], dict[str, Array]]:
  """Returns eval_step(params, model_state, batch) -> a row for each image (labels.score)."""

  def eval_step(params: Any, model_state: Any, batch: Batch) -> dict[str, Array]:
    logits: Any = model.apply({"params": params, **model_state}, value_range(batch["image"]))
    return labels.score(logits, batch["label"], batch["mask"], loss)

  return eval_step
