"""Variables out of a checkpoint, without the rest of the state: of this format and of the one before."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from mixer_jax.errors import InputError
from mixer_jax.parallel import sharding
from mixer_jax.workdir import checkpoint, restore

Moments = collections.namedtuple("Moments", ("count", "mu"))
Average = collections.namedtuple("Average", ("polyak_average",))


def tree(start, dtype=jnp.float32):
  return {
    "head": {"kernel": jnp.arange(8, dtype=dtype).reshape(4, 2) + start, "bias": jnp.ones(2, dtype)}
  }


def now(average, statistics):
  """The fields of TrainState, with parameters in bfloat16."""
  variables = {"params": tree(0, jnp.bfloat16)} | ({"batch_stats": tree(20)} if statistics else {})
  kept = {"params": tree(40)} | ({"batch_stats": tree(60)} if statistics else {})
  state = {
    "step": jnp.int32(3),
    "params": variables["params"],
    "batch_stats": variables.get("batch_stats", {}),
    "opt_state": ((), Moments(jnp.int32(3), tree(80)), ()),
    "ema": kept if average else {},
    "rng": jnp.zeros(2, jnp.uint32),
  }
  wanted = kept if average else variables
  return state, jax.tree.map(lambda a, x: a.astype(x.dtype), wanted, variables)


def before(average):
  """Runs of before batch statistics and the average were fields of the state."""
  moments = ((), Moments(jnp.int32(3), tree(80)), ())
  state = {
    "step": jnp.int32(3),
    "params": tree(0),
    "model_state": {},
    "opt_state": (moments, Average(tree(40))) if average else moments,
    "rng": jnp.zeros(2, jnp.uint32),
  }
  return state, {"params": tree(40 if average else 0)}


STATES = {
  "plain": now(False, False),
  "statistics": now(False, True),
  "average": now(True, False),
  "both": now(True, True),
  "old": before(False),
  "old average": before(True),
}


def save(workdir, state):
  checkpointer = checkpoint.Checkpointer(workdir, keep_newest=1, keep_best=0)
  checkpointer.save(3, state, None)
  checkpointer.close()


@pytest.mark.parametrize("name", STATES)
def test_the_variables_to_use_are_read_alone(tmp_path, name):
  """As NumPy arrays, and onto devices as the shardings say; in the types of those that were trained."""
  (state, wanted), workdir = STATES[name], epath.Path(tmp_path)
  save(workdir, state)
  loaded = restore.load_variables(workdir, 3)
  assert {type(x) for x in jax.tree.leaves(loaded)} == {np.ndarray}
  mesh = sharding.make_mesh(data=2, fsdp=2)
  shardings = jax.tree.map(
    lambda x: NamedSharding(mesh, PartitionSpec("fsdp" if x.ndim == 2 else None)), wanted
  )
  restored = restore.load_variables(workdir, 3, jax.eval_shape(lambda: wanted), shardings)
  assert jax.tree.map(lambda x: x.sharding, restored) == shardings
  for found in (loaded, restored):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, wanted)


def test_training_does_not_resume_the_format_before(tmp_path):
  state, _ = before(True)
  save(epath.Path(tmp_path), state)
  shardings = jax.tree.map(lambda _: None, state)
  with pytest.raises(InputError, match=rf"--config\.init\.weights={tmp_path}"):
    restore.restore_state(epath.Path(tmp_path), 3, state, shardings)
