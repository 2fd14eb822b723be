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
    float32_flops: float32 operations per second at JAX's default precision. If None, the same: TPUs multiply
      float32 in bfloat16.
    hbm_bytes: memory of the chip; a program gets somewhat less.
    hbm_bytes_per_sec: bandwidth of that memory.
    link_bytes_per_sec: what the chip sends to others of its slice, over all links, in one direction.
      None if that depends on the machine.
    cores: TensorCores, in which the paper counts; 1 for a GPU.
    devices: JAX devices that the chip makes.
    largest: chips along the axes of the largest slice, ascending. () if this is not a TPU.
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


def _tpu(
  name: str, kinds: tuple[str, ...], flops: float, memory_gib: int, memory_rate: float,
  link_rate: float, cores: int, devices: int, largest: tuple[int, ...], **options: str,
) -> Chip:  # fmt: skip
  return Chip(
    name=name, device_kinds=kinds, peak_flops=flops, hbm_bytes=memory_gib * GIB,
    hbm_bytes_per_sec=memory_rate, link_bytes_per_sec=link_rate, cores=cores, devices=devices,
    largest=largest, options=tuple(options.items()),
  )  # fmt: skip


def _gpu(
  name: str, kind: str, flops: float, float32_flops: float, memory: float, memory_rate: float,
  link_rate: float | None,
) -> Chip:  # fmt: skip
  return Chip(
    name=name, device_kinds=(kind,), peak_flops=flops, float32_flops=float32_flops,
    hbm_bytes=memory, hbm_bytes_per_sec=memory_rate, link_bytes_per_sec=link_rate,
  )  # fmt: skip


TPUS = (
  # kinds, operations/s, memory GiB and B/s, links B/s, cores, devices, largest slice
  _tpu("v2", ("TPU v2",), 46e12, 16, 700e9, 4 * 496e9 / 8, 2, 2, (16, 16)),
  _tpu("v3", ("TPU v3",), 123e12, 32, 900e9, 4 * 656e9 / 8, 2, 2, (32, 32)),
  # Its links by its all-reduce bandwidth, 1.1 PB/s for 4096 chips.
  _tpu(
    "v4", ("TPU v4",), 275e12, 32, 1200e9, 268e9, 2, 1, (16, 16, 16), chip_config_name="megacore"
  ),
  _tpu("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16, 819e9, 400e9 / 2, 1, 1, (16, 16)),
  _tpu("v5p", ("TPU v5", "TPU v5p"), 459e12, 95, 2765e9, 1200e9 / 2, 2, 1, (16, 20, 28)),
  _tpu("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32, 1638e9, 800e9 / 2, 1, 1, (16, 16)),
  _tpu("tpu7x", ("TPU7x",), 2307e12, 192, 7380e9, 1200e9 / 2, 2, 2, (16, 16, 36)),
)

GPUS = (
  # kind, operations/s in bfloat16 and float32, memory B and B/s, links B/s
  _gpu("A100-40GB", "NVIDIA A100-SXM4-40GB", 312e12, 156e12, 40e9, 1555e9, 300e9),
  _gpu("A100-80GB", "NVIDIA A100-SXM4-80GB", 312e12, 156e12, 80e9, 2039e9, 300e9),
  _gpu("A100-40GB-PCIe", "NVIDIA A100-PCIE-40GB", 312e12, 156e12, 40e9, 1555e9, None),
  _gpu("A100-80GB-PCIe", "NVIDIA A100 80GB PCIe", 312e12, 156e12, 80e9, 1935e9, None),
  _gpu("H100-PCIe", "NVIDIA H100 PCIe", 756e12, 378e12, 80e9, 2000e9, None),
  _gpu("H100", "NVIDIA H100 80GB HBM3", 989.4e12, 494.7e12, 80e9, 3350e9, 450e9),
  _gpu("H200", "NVIDIA H200", 989.4e12, 494.7e12, 141e9, 4800e9, 450e9),
  _gpu("L4", "NVIDIA L4", 121e12, 60e12, 24e9, 300e9, None),
)


def find(device_kind: str) -> Chip | None:
  """Returns the chip that makes devices of this kind, or None if it is not in the tables."""
  return next((c for c in (*TPUS, *GPUS) if device_kind in c.device_kinds), None)
