"""Accelerators as data: published peak rates, sizes and bandwidths of a chip.

Sources:
  TPU v2, v3: Jouppi et al., "A Domain-Specific Supercomputer for Training Deep Neural Networks", CACM
    63(7), 2020, table 3; v3 also cloud.google.com/tpu/docs/v3.
  TPU v4, v5e, v5p, v6e, 7x: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}.
  NVIDIA: the data sheets of A100, H100, H200 and L4; dense rates, without sparsity. Their float32 is
    TensorFloat-32, which JAX's default precision takes.
  Largest slices: the same pages of cloud.google.com.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """An accelerator chip.

  Attributes:
    name: in topologies, "v3".
    device_kinds: what JAX calls its devices.
    peak_flops: bfloat16 operations per second, of the chip.
    float32_flops: float32 operations per second at JAX's default precision; None: the same, as on TPUs,
      where it multiplies in bfloat16.
    hbm_bytes: memory of the chip; a program gets somewhat less.
    hbm_bytes_per_sec: bandwidth of that memory.
    link_bytes_per_sec: what the chip sends to others of its slice, over all links, in one direction;
      None: depends on the machine.
    cores: TensorCores, in which the paper counts; 1 for a GPU.
    devices: JAX devices that the chip makes.
    largest: chips along the axes of the largest slice, ascending; (): not a TPU.
    options: of jax.experimental.topologies that make one device of a chip where that is a choice.
    rates: where they are from.
  """

  name: str
  device_kinds: tuple[str, ...]
  peak_flops: float
  hbm_bytes: float
  hbm_bytes_per_sec: float
  link_bytes_per_sec: float | None
  cores: int = 1
  devices: int = 1
  largest: tuple[int, ...] = ()
  options: tuple[tuple[str, str], ...] = ()
  float32_flops: float | None = None
  rates: str = "published"

  def flops(self, dtype: str) -> float:
    """Returns the peak rate of products of this type."""
    return self.float32_flops if dtype == "float32" and self.float32_flops else self.peak_flops

  def num_cores(self, num_devices: int) -> int:
    """Returns the cores of some devices."""
    return max(num_devices * self.cores // self.devices, 1)


TPUS = (
  Chip(
    name="v2", device_kinds=("TPU v2",), peak_flops=46e12, hbm_bytes=16 * GIB,
    hbm_bytes_per_sec=700e9, link_bytes_per_sec=4 * 496e9 / 8, cores=2, devices=2, largest=(16, 16),
  ),
  Chip(
    name="v3", device_kinds=("TPU v3",), peak_flops=123e12, hbm_bytes=32 * GIB,
    hbm_bytes_per_sec=900e9, link_bytes_per_sec=4 * 656e9 / 8, cores=2, devices=2, largest=(32, 32),
  ),
  Chip(  # its all-reduce bandwidth, 1.1 PB/s for 4096 chips
    name="v4", device_kinds=("TPU v4",), peak_flops=275e12, hbm_bytes=32 * GIB,
    hbm_bytes_per_sec=1200e9, link_bytes_per_sec=268e9, cores=2, largest=(16, 16, 16),
    options=(("chip_config_name", "megacore"),),
  ),
  Chip(
    name="v5e", device_kinds=("TPU v5 lite", "TPU v5e"), peak_flops=197e12, hbm_bytes=16 * GIB,
    hbm_bytes_per_sec=819e9, link_bytes_per_sec=400e9 / 2, largest=(16, 16),
  ),
  Chip(
    name="v5p", device_kinds=("TPU v5", "TPU v5p"), peak_flops=459e12, hbm_bytes=95 * GIB,
    hbm_bytes_per_sec=2765e9, link_bytes_per_sec=1200e9 / 2, cores=2, largest=(16, 20, 28),
  ),
  Chip(
    name="v6e", device_kinds=("TPU v6 lite", "TPU v6e"), peak_flops=918e12, hbm_bytes=32 * GIB,
    hbm_bytes_per_sec=1638e9, link_bytes_per_sec=800e9 / 2, largest=(16, 16),
  ),
  Chip(
    name="tpu7x", device_kinds=("TPU7x",), peak_flops=2307e12, hbm_bytes=192 * GIB,
    hbm_bytes_per_sec=7380e9, link_bytes_per_sec=1200e9 / 2, cores=2, devices=2, largest=(16, 16, 36),
  ),
)  # fmt: skip

GPUS = (
  Chip(
    name="A100-40GB", device_kinds=("NVIDIA A100-SXM4-40GB",), peak_flops=312e12, float32_flops=156e12, hbm_bytes=40e9,
    hbm_bytes_per_sec=1555e9, link_bytes_per_sec=300e9,
  ),
  Chip(
    name="A100-80GB", device_kinds=("NVIDIA A100-SXM4-80GB",), peak_flops=312e12, float32_flops=156e12, hbm_bytes=80e9,
    hbm_bytes_per_sec=2039e9, link_bytes_per_sec=300e9,
  ),
  Chip(
    name="A100-40GB-PCIe", device_kinds=("NVIDIA A100-PCIE-40GB",), peak_flops=312e12,
    float32_flops=156e12, hbm_bytes=40e9, hbm_bytes_per_sec=1555e9, link_bytes_per_sec=None,
  ),
  Chip(
    name="A100-80GB-PCIe", device_kinds=("NVIDIA A100 80GB PCIe",), peak_flops=312e12,
    float32_flops=156e12, hbm_bytes=80e9, hbm_bytes_per_sec=1935e9, link_bytes_per_sec=None,
  ),
  Chip(
    name="H100-PCIe", device_kinds=("NVIDIA H100 PCIe",), peak_flops=756e12, float32_flops=378e12,
    hbm_bytes=80e9, hbm_bytes_per_sec=2000e9, link_bytes_per_sec=None,
  ),
  Chip(
    name="H100", device_kinds=("NVIDIA H100 80GB HBM3",), peak_flops=989.4e12, float32_flops=494.7e12, hbm_bytes=80e9,
    hbm_bytes_per_sec=3350e9, link_bytes_per_sec=450e9,
  ),
  Chip(
    name="H200", device_kinds=("NVIDIA H200",), peak_flops=989.4e12, float32_flops=494.7e12, hbm_bytes=141e9,
    hbm_bytes_per_sec=4800e9, link_bytes_per_sec=450e9,
  ),
  Chip(
    name="L4", device_kinds=("NVIDIA L4",), peak_flops=121e12, float32_flops=60e12, hbm_bytes=24e9,
    hbm_bytes_per_sec=300e9, link_bytes_per_sec=None,
  ),
)  # fmt: skip


def find(device_kind: str) -> Chip | None:
  """Returns the chip that makes devices of this kind, None if it is not in the tables."""
  return next((c for c in (*TPUS, *GPUS) if device_kind in c.device_kinds), None)
