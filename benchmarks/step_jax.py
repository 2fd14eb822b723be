"""The contestants of step.py that run in JAX: this project's steps, and the published model's.

Run by step.py as a child: `python -m benchmarks.step_jax ours|pallas|published CASE`, a step.Case and the type as JSON.
"""

import functools
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import published, turns
from mixer_jax.configs import common
from mixer_jax.models import mixer
from mixer_jax.tools import host_memory, throughput
from mixer_jax.training import experiment

NUM_CLASSES, LEARNING_RATE, WEIGHT_DECAY = 1000, 1e-3, 0.1


def make_config(case: dict[str, Any], kernels: str = "auto") -> Any:
  """Returns the configuration of one device that is measured."""
  config = common.get_config(case["model"]["name"])
  with config.unlocked():
    config.model.update(case["model"], dtype=case["dtype"])
    config.batch_size, config.total_steps, config.mesh.data = 1, 100_000, 1
    config.kernels = kernels
    config.num_classes, config.image_size = NUM_CLASSES, case["image_size"]
    config.learning_rate, config.optimizer.weight_decay = LEARNING_RATE, WEIGHT_DECAY
  return config


def ours(case: dict[str, Any], kernels: str = "auto") -> Any:
  config = make_config(case, kernels)
  exp = experiment.build(config)

  def prepare(work: str, batch_size: int) -> turns.Run:
    batch = throughput.make_batch(exp, batch_size)
    return repeated(
      (throughput.make_train_call if work == "training" else throughput.make_predict_call)(exp),
      batch,
    )

  return prepare


def published_model(case: dict[str, Any]) -> Any:
  fields = dict(case["model"])
  del fields["name"]
  sizes: dict[str, Any] = {**mixer.VARIANTS[fields.pop("variant")], **fields}
  model = published.MlpMixer(num_classes=NUM_CLASSES, **sizes)

  def prepare(work: str, batch_size: int) -> turns.Run:
    shape = (batch_size, case["image_size"], case["image_size"], 3)
    image = jax.random.randint(jax.random.key(0), shape, 0, 256).astype(jnp.uint8)
    label = jnp.arange(batch_size) % NUM_CLASSES
    params = jax.jit(model.init)(jax.random.key(0), published.normalize(image[:1]))["params"]
    if work == "inference":
      predict = published.make_predict_step(model)
      return repeated(lambda image: predict(params, image), image)
    tx = published.make_optimizer(LEARNING_RATE, WEIGHT_DECAY)
    step, state = published.make_train_step(model, tx), [params, tx.init(params)]

    def call(image: jax.Array) -> jax.Array:
      state[0], state[1], loss = step(*state, image, label)
      return loss

    return repeated(call, image)

  return prepare


def repeated(call: Any, argument: Any) -> turns.Run:
  def run(calls: int) -> None:
    for _ in range(calls - 1):
      call(argument)
    jax.block_until_ready(call(argument))  # devices take their calls in order

  return run


def matmul(side: int) -> turns.Run:
  x = jax.random.normal(jax.random.key(0), (side, side))
  return repeated(jax.jit(lambda x: x @ x), x)


def peak_bytes() -> int | None:
  """Returns the most memory of the device that was in use; None on CPU."""
  return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


CONTESTANTS = {
  "ours": ours,
  "pallas": functools.partial(ours, kernels="pallas"),
  "published": published_model,
}


def make_prepare(name: str, case: str) -> Any:
  prepare = CONTESTANTS[name](json.loads(case))
  return lambda work, size: matmul(size) if work == "matmul" else prepare(work, size)


if __name__ == "__main__":
  if sys.argv[1] != "published":
    host_memory.keep_on_cpu()  # as train.py does
  turns.serve(lambda: make_prepare(*sys.argv[1:]), peak_bytes)
