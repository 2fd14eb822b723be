"""TPU slices that are not there: names such as "v3:16x16" (chips along each axis of the torus).

The devices come from libtpu, which compiles for a TPU on any machine (the extra `tpu`).
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

from mixer_jax.errors import InputError, installing
from mixer_jax.tools.planning import chips

_CHIPS_PER_HOST = 4


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice of a TPU.

  Attributes:
    name: "v3:16x16".
    shape: chips along each axis.
  """

  name: str
  chip: chips.Chip
  shape: tuple[int, ...]

  @property
  def num_chips(self) -> int:
    return math.prod(self.shape)


def parse(name: str) -> Topology:
  """Returns the topology of that name; raises InputError, which lists what is known."""
  generation, _, text = name.partition(":")
  chip = next((c for c in chips.TPUS if c.name == generation), None)
  if chip is None or not re.fullmatch(r"\d{1,4}(x\d{1,4})+", text):
    raise InputError(f"topology {name!r} is unknown. {_known()}")
  shape = tuple(int(n) for n in text.split("x"))
  largest = "x".join(map(str, chip.largest))
  if len(shape) != len(chip.largest):
    example = "x".join(["4"] * len(chip.largest))
    raise InputError(
      f"topology {name!r}: TPU {generation} has {len(chip.largest)} axes, as in {generation}:{example}."
    )
  if not all(0 < n <= most for n, most in zip(sorted(shape), chip.largest, strict=True)):
    raise InputError(
      f"topology {name!r}: a slice of TPU {generation} has at least one and at most {largest} chips."
    )
  return Topology(name, chip, shape)


def _known() -> str:
  lines = [
    f"  {f'{c.name}:' + 'x'.join('XYZ'[: len(c.largest)]):<12}{c.cores} core(s) a chip, "
    f"{c.hbm_bytes / chips.GIB:g} GiB, {c.peak_flops / 1e12:g} TFLOP/s"
    for c in chips.TPUS
  ]
  return (
    "Known, with X, Y, Z chips along the axes (v3:4x4 has 32 cores, v3:16x16 has 512):\n"
    + "\n".join(lines)
  )


def prepare_environment() -> None:
  """Makes JAX start without a TPU although libtpu is there; call it before JAX is imported."""
  os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",  # else importing JAX waits for the metadata server of Google's cloud
    TPU_ACCELERATOR_TYPE="v3-8",
    TPU_WORKER_HOSTNAMES="localhost",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # several plans at a time, or one beside a training
    TPU_STDERR_LOG_LEVEL="3",
    TPU_MIN_LOG_LEVEL="3",
  )


def devices(topology: Topology) -> list[Any]:
  """Returns the slice's devices, which can be compiled for but not used.

  Raises:
    InputError: there is no such slice, or libtpu is absent.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise InputError(
      f"--topology needs libtpu, which compiles for TPUs without one: {installing('tpu')}. "
      "Without --topology the devices of this machine are planned for."
    )
  from jax.experimental import topologies

  one_host = topology.num_chips <= _CHIPS_PER_HOST
  try:
    found = topologies.get_topology_desc(
      platform="tpu",
      topology_name=topology.name,
      chips_per_host_bounds=(*topology.shape, 1, 1)[:3] if one_host else (2, 2, 1),
      **dict(topology.chip.options),
    ).devices
  except Exception as e:
    reason = str(e).splitlines()[0]
    raise InputError(f"topology {topology.name!r} does not exist: {reason}") from e
  return list(found)
