"""Chips against JAX's own table, and names of topologies."""

import pytest
from jax.experimental.pallas import tpu as pltpu

from mixer_jax.errors import InputError
from mixer_jax.tools.planning import chips, topology


@pytest.mark.parametrize("chip", chips.TPUS, ids=lambda c: c.name)
def test_tpus_agree_with_jax(chip):
  """JAX's table is per core and differs by up to 14 % (v3's rate); a factor of two would show."""
  version = pltpu.ChipVersion("7x" if chip.name == "tpu7x" else chip.name)
  info = pltpu.get_tpu_info_for_chip(version, chip.num_cores(1))
  assert chip.cores == version.num_physical_tensor_cores_per_chip
  for own, theirs in (
    (chip.peak_flops, info.bf16_ops_per_second),
    (chip.hbm_bytes, info.hbm_capacity_bytes),
    (chip.hbm_bytes_per_sec, info.mem_bw_bytes_per_second),
  ):
    assert 0.85 < own / (chip.cores * theirs) < 1.15


def test_every_device_kind_is_one_chips():
  kinds = [kind for c in (*chips.TPUS, *chips.GPUS) for kind in c.device_kinds]
  assert len(kinds) == len(set(kinds))
  assert all(chips.find(kind) for kind in kinds)
  assert chips.find("cpu") is None


@pytest.mark.parametrize(
  ("name", "num_chips", "devices", "cores"),
  [
    ("v2:2x2", 4, 8, 8),
    ("v3:4x4", 16, 32, 32),
    ("v3:16x16", 256, 512, 512),
    ("v4:2x2x4", 16, 16, 32),
    ("v5e:4x4", 16, 16, 16),
    ("v5p:4x4x4", 64, 64, 128),
    ("v6e:16x16", 256, 256, 256),
    ("tpu7x:2x2x1", 4, 8, 8),
  ],
)
def test_topologies(name, num_chips, devices, cores):
  """Google's names say cores for v2 to v4 and v5p (v3-512, v5p-128), chips for v5e and v6e."""
  where = topology.parse(name)
  assert where.num_chips == num_chips
  assert where.num_chips * where.chip.devices == devices
  assert where.num_chips * where.chip.cores == cores


@pytest.mark.parametrize("name", ["v9:2x2", "v3", "v3:4", "v3:axb", "v3:4x-4", "16x16"])
def test_unknown_topologies_list_those_known(name):
  with pytest.raises(InputError) as e:
    topology.parse(name)
  assert all(f"  {c.name}:" in str(e.value) for c in chips.TPUS)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("v3:4x4x4", "v3 has 2 axes, as in v3:4x4"),
    ("v4:4x4", "v4 has 3 axes, as in v4:4x4x4"),
    ("v3:0x4", "at most 32x32 chips"),
    ("v3:32x64", "at most 32x32 chips"),
    ("v5p:32x4x4", "at most 16x20x28 chips"),
  ],
)
def test_impossible_topologies(name, message):
  with pytest.raises(InputError, match=message):
    topology.parse(name)


def test_rates_go_by_the_type_of_the_products():
  """An H100 multiplies float32 as TensorFloat-32, at half the rate; a TPU as bfloat16."""
  gpu, tpu = chips.find("NVIDIA H100 80GB HBM3"), chips.find("TPU v3")
  assert gpu and tpu
  assert 2 * gpu.flops("float32") == gpu.flops("bfloat16") == 989.4e12
  assert tpu.flops("float32") == tpu.flops("bfloat16")


def test_without_libtpu_the_extra_is_named(monkeypatch):
  monkeypatch.setattr(topology.importlib.util, "find_spec", lambda _: None)
  with pytest.raises(InputError, match=r"pip install 'jax\[tpu\]"):
    topology.devices(topology.parse("v3:2x2"))
