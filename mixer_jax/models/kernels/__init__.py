"""Forms of layers that suit a platform, behind the layers' calls: no model mentions a platform."""

from typing import Any, Literal

Kernels = Literal["xla", "pallas"]
MEASURED: frozenset[str] = frozenset()
"""What JAX calls the GPUs on which the kernels were measured to be faster (docs/speed.md)."""


def choose(asked: str, device: Any) -> Kernels:
  """Returns what computes on this device if config.kernels is `asked`: kernels of NVIDIA GPUs only there."""
  wanted = asked == "pallas" or (asked == "auto" and device.device_kind in MEASURED)
  return "pallas" if wanted and device.platform in ("gpu", "cuda") else "xla"
