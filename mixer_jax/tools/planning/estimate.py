"""Times and costs that follow from a compiled step and a chip's published rates (rooflines).

Each time is a bound: the chip would have to reach that published rate throughout, and overlap the three
kinds of work perfectly. The compiler's own estimate is not used; it is negative for some TPUs.
"""

import dataclasses

from mixer_jax.tools.planning import chips, flops, hlo
from mixer_jax.tools.planning.program import Program

# What a device sends per byte of the array, in the limit of many devices: a sum goes around as a
# reduce-scatter and an all-gather.
_SENT = dict.fromkeys(hlo.COLLECTIVES, 1) | {"all-reduce": 2}
SECONDS_PER_DAY = 86_400
# Measured over estimated inference throughput on TPU v3 (lowest and highest of the paper's models).
MEASURED_SHARE = (0.45, 0.80)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
  """Bounds of one training step and of what follows from it.

  Attributes:
    compute_seconds, memory_seconds: operations and bytes of a device over its peak rates.
    link_seconds: bytes of collectives over what a chip sends. None if that rate is not published.
    seconds: the largest of them.
    images_per_sec_per_core: training.
    mfu: model-FLOPs utilisation, 0 to 1, if a step took `seconds`.
    inference_images_per_sec_per_core: from the forward pass's operations alone.
    days: of the whole run.
    core_days: of the whole run, all cores together.
  """

  compute_seconds: float
  memory_seconds: float
  link_seconds: float | None
  seconds: float
  images_per_sec_per_core: float
  mfu: float
  inference_images_per_sec_per_core: float
  days: float
  core_days: float

  @property
  def bound_by(self) -> str:
    times = {
      "compute": self.compute_seconds,
      "memory": self.memory_seconds,
      "links": self.link_seconds or 0.0,
    }
    return max(times, key=lambda name: times[name])


def make(
  *,
  chip: chips.Chip,
  dtype: str,
  num_devices: int,
  program: Program,
  batch_size: int,
  total_steps: int,
  forward_flops_per_image: float,
) -> Estimate:
  """Returns the estimate for a run of a compiled step on `num_devices` devices of this chip.

  The batch is that of all devices, the type and the operations of an image those of the matrix products.
  """
  peak = chip.flops(dtype) / chip.devices
  num_cores = chip.num_cores(num_devices)
  compute = program.flops / peak
  memory = program.bytes_moved / (chip.hbm_bytes_per_sec / chip.devices)
  sent = sum(_SENT[c.kind] * c.bytes for c in program.collectives)
  links = sent / chip.link_bytes_per_sec if chip.link_bytes_per_sec else None
  seconds = max(compute, memory, links or 0.0)
  days = total_steps * seconds / SECONDS_PER_DAY
  return Estimate(
    compute_seconds=compute,
    memory_seconds=memory,
    link_seconds=links,
    seconds=seconds,
    images_per_sec_per_core=batch_size / seconds / num_cores,
    mfu=flops.TRAINING * forward_flops_per_image * batch_size / (num_devices * peak * seconds),
    inference_images_per_sec_per_core=chip.flops(dtype) / chip.cores / forward_flops_per_image,
    days=days,
    core_days=days * num_cores,
  )
