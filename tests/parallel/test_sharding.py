"""Rules on the parameters' names, what they shard, and what they make of mistakes."""

import jax
import numpy as np
import pytest

from configs import imagenet
from mixer_jax.errors import InputError
from mixer_jax.parallel import sharding
from mixer_jax.training import experiment
from tests.configurations import small_config


def mesh(data, fsdp):
  return sharding.make_mesh(data=data, fsdp=fsdp)


def build(config=None, fsdp=4, rules=()):
  config = config or small_config()
  config.mesh.data, config.mesh.fsdp, config.mesh.rules = -1, fsdp, rules
  return experiment.build(config)


def placements(exp):
  return {p.name: p for p in sharding.describe(exp.abstract_state, exp.shardings)}


def test_without_rules_large_parameters_are_sharded_along_their_largest_dimension():
  """B/16 on four devices: 59 million parameters of 4 bytes and Adam's two moments."""
  exp = build(imagenet.get_config("B/16"))
  found = placements(exp)
  assert found["stem/kernel"].shape == (16, 16, 3, 768)
  assert found["stem/kernel"].dim == 3
  assert found["MixerBlock_*/channel_mixing/Dense_0/kernel"][1:4] == (12, (768, 3072), 1)
  assert found["MixerBlock_*/channel_mixing/Dense_1/kernel"][1:4] == (12, (3072, 768), 0)
  assert found["MixerBlock_*/token_mixing/Dense_0/kernel"][1:4] == (12, (196, 384), 1)
  assert found["MixerBlock_*/LayerNorm_0/scale"][1:4] == (12, (768,), sharding.REPLICATED)
  assert sum(p.number for p in found.values()) == len(jax.tree.leaves(exp.abstract_state.params))
  size = sum(x.size for x in jax.tree.leaves(exp.abstract_state.params))
  whole = sum(np.prod(p.shape) * p.number for p in found.values() if p.dim == sharding.REPLICATED)
  per_device = 4 * ((size - whole) / 4 + whole)
  assert sum(p.params_bytes for p in found.values()) == per_device
  assert sum(p.state_bytes for p in found.values()) == 3 * per_device
  counters = 4 * 4  # the step, optax's, and the two words of the key
  total = sharding.bytes_per_device(exp.abstract_state, exp.shardings.state)
  assert 3 * per_device < total <= 3 * per_device + counters + 8


def test_optimizer_state_and_average_lie_where_their_parameter_does():
  exp = build(small_config(ema_decay=0.9), rules=("head/bias=replicate", "stem/kernel=3", ".*=0"))
  state = exp.init_state()
  wanted = jax.tree.map(lambda x: x.sharding.spec, state.params)
  adam = next(
    s
    for s in jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu"))
    if hasattr(s, "mu")
  )
  for tree in (adam.mu, adam.nu, state.ema["params"]):
    assert jax.tree.map(lambda x: x.sharding.spec, tree) == wanted
  assert state.params["head"]["kernel"].addressable_shards[0].data.shape == (4, 10)
  assert {p.state_bytes / p.params_bytes for p in placements(exp).values()} == {4}


def test_the_first_rule_counts():
  found = placements(
    build(rules=(r".*/token_mixing/.*=replicate", r".*/kernel=0", ".*=auto"), fsdp=2)
  )
  assert found["MixerBlock_*/token_mixing/Dense_0/kernel"].dim == sharding.REPLICATED
  assert found["MixerBlock_*/channel_mixing/Dense_0/kernel"].dim == 0
  assert found["head/bias"].dim == sharding.REPLICATED  # too small for "auto"


@pytest.mark.parametrize(
  ("rules", "message"),
  [
    (("embedding/.*=0",), r"'embedding/\.\*=0' decides for no parameter"),
    ((".*=auto", "head/.*=0"), "'head/.*=0' decides for no parameter: .* an earlier rule does"),
    (("head/.*=first",), r"'head/.\*=first' is not"),
    (("head/bias=1",), r"head/bias of shape \(10,\), which has no dimension 1"),
    (("head/bias=0",), r"head/bias of shape \(10,\), which has no dimension 0 that fsdp 4"),
  ],
)  # fmt: skip
def test_rules_that_cannot_be_met_are_named(rules, message):
  with pytest.raises(InputError, match=message):
    build(rules=rules)


@pytest.mark.parametrize(
  ("data", "fsdp", "message"),
  [
    (-1, 3, "fsdp is 3, which does not divide the 4 devices"),
    (2, 4, "data is 2 and fsdp 4, but there are 4 devices"),
    (-1, 0, "fsdp is 0"),
    (0, 1, "data is 0, but there are 4 devices"),
  ],
)
def test_meshes_that_do_not_match_the_devices_are_named(data, fsdp, message):
  with pytest.raises(InputError, match=message):
    mesh(data, fsdp)


def test_the_mesh_takes_what_is_asked():
  assert dict(mesh(-1, 2).shape) == {"data": 2, "fsdp": 2}
  assert dict(mesh(1, 2).shape) == {"data": 1, "fsdp": 2}
  assert (
    list(sharding.make_mesh(data=-1, devices=jax.devices()[2:]).devices.flat) == jax.devices()[2:]
  )


def test_the_table_lists_every_parameter():
  exp = build(rules=("head/bias=replicate", "stem/kernel=3", ".*=0"))
  text = sharding.table(sharding.describe(exp.abstract_state, exp.shardings))
  assert "MixerBlock_*/token_mixing/Dense_0/kernel" in text
  assert text.splitlines()[-1].split()[:2] == [
    "all",
    str(len(jax.tree.leaves(exp.abstract_state.params))),
  ]
