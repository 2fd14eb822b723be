"""What each of several processes does in test_multiprocess.py, and the one that they are compared with."""

import sys
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils

from mixer_jax import evaluators
from mixer_jax.parallel import distributed, sharding
from mixer_jax.training import experiment
from tests.configurations import random_variables, small_config, train_batches
from tests.training.steps import SHARDED

STEPS = 20


def meshes(num_devices):
  """Returns (replicas, shards of a replica) of all devices, both ways; test_step.py has more."""
  return [(num_devices, 1), (1, num_devices)]


def train(data, fsdp) -> dict[str, Any]:
  """Trains for 20 steps from random parameters; returns what came of it, as whole arrays.

  With momentum SGD without clipping and decay, the trace after the first step is the gradient.
  """
  config = small_config(learning_rate=0.03)
  config.model.stoch_depth, config.model.num_blocks = 0.0, 1  # compiling takes most of the time
  config.optimizer.name, config.optimizer.clip_norm = "momentum", None
  config.optimizer.weight_decay = 0.0
  config.mesh.data, config.mesh.fsdp = data, fsdp
  config.mesh.rules = SHARDED if fsdp > 1 else ()
  exp = experiment.build(config)
  state = exp.first_state(jax.device_put(random_variables(exp), exp.shardings.variables))
  rows = sharding.local_rows(exp.shardings.batch, config.batch_size)
  batches = train_batches(exp, STEPS, rows)
  found: dict[str, Any] = {"losses": []}
  for step in range(STEPS):
    batch = sharding.put_batch(batches[step], exp.shardings.batch, rows, config.batch_size)
    state, metrics = exp.train_step(state, batch)
    found["losses"].append(float(metrics["loss"]))
    if step == 0:
      found |= flat("gradient", state.opt_state[1].trace)
  found |= flat("params", state.params)
  found |= {f"bytes/{k}": v for k, v in bytes_by_device(state).items()}
  one = evaluators.build(exp, {"val": exp.options.evaluators["val"]}, None)["val"]
  found |= {f"val/{name}": value for name, value in one(state.variables(), STEPS)}
  found["read"] = np.array([batches.indices(step) for step in range(STEPS)])
  return found


def flat(prefix, tree):
  """Returns {prefix/name: whole array}."""
  whole = multihost_utils.process_allgather(tree, tiled=True)
  return {
    f"{prefix}/{k}": np.asarray(v) for k, v in traverse_util.flatten_dict(whole, sep="/").items()
  }


def bytes_by_device(state):
  """Returns the bytes that params and opt_state really take on this process's first device."""
  device = jax.local_devices()[0]
  return {
    name: sum(
      shard.data.nbytes
      for x in jax.tree.leaves(tree)
      for shard in x.addressable_shards
      if shard.device == device
    )
    for name, tree in (("params", state.params), ("opt_state", state.opt_state))
  }


if __name__ == "__main__":
  out, coordinator, count, number = sys.argv[1:]
  distributed.join(coordinator, int(count), int(number), 120)
  for mesh in meshes(jax.device_count()):
    name = "-".join(map(str, mesh))
    np.savez(f"{out}/{name}-process{number}.npz", **train(*mesh))
  jax.distributed.shutdown()
