"""What RandAugment of the DeiT recipe draws: timm's policy, such as "rand-m9-mstd0.5-inc1".

Source: timm 1.0.31, data/auto_augment.py; the version of 2021 (0.4.12) makes the same images. Each of `n` layers draws
one of 15 operations uniformly, applies it with probability `p`, and at a magnitude of its own. The authors of
MLP-Mixer used another RandAugment: randaugment.py.
"""

import dataclasses
import re
from typing import Annotated

import numpy as np

from mixer_jax import configuration
from mixer_jax.data import deit_ops
from mixer_jax.data.deit_ops import Draw
from mixer_jax.errors import InputError

REACH = {
  "Rotate": 30.0,  # degrees at magnitude 10
  "ShearX": 0.3,
  "ShearY": 0.3,
  "TranslateXRel": 0.45,  # of the side
  "TranslateYRel": 0.45,
}
_FACTORS = ("Color", "Contrast", "Brightness", "Sharpness")
_UNIFORM_ABOVE = 100.0


@dataclasses.dataclass(frozen=True)
class Policy:
  """A policy's sections, with timm's names and defaults."""

  # Magnitude; at 10 an operation has its full range.
  m: Annotated[int, configuration.Range(0, 1000)] = 10
  n: Annotated[int, configuration.Range(1, 100)] = 2  # layers
  p: configuration.Fraction = 0.5  # probability that a layer is applied
  # Standard deviation of the magnitude. Above 100: the magnitude is uniform in 0 … m.
  mstd: Annotated[float, configuration.Range(0, 1000)] = 0.0
  # Larger magnitudes, drawn or given, are cut to it.
  mmax: Annotated[int, configuration.Range(1, 1000)] = 10
  inc: Annotated[int, configuration.Range(0, 1)] = 0  # 1: a larger magnitude always changes more


def parse(policy: str) -> Policy:
  """Parses timm's text; raises InputError, naming the section that is unknown, out of range or given twice."""
  first, *sections = policy.split("-")
  values: dict[str, float] = {}
  for section in sections:
    found = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", section)
    if found is None or found[1] in values:
      raise InputError(
        f"policy {policy!r}: {section!r} is {'given twice' if found else 'no letters and a number'}."
      )
    values[found[1]] = float(found[2]) if "." in found[2] else int(found[2])
  if first != "rand":
    raise InputError(f"policy {policy!r} must start with 'rand', as 'rand-m9-mstd0.5-inc1'.")
  return configuration.call(Policy, values, f"policy {policy!r}")


def draw(
  rng: np.random.Generator, policy: Policy, interpolation: deit_ops.Interpolation
) -> tuple[Draw, ...]:
  """Draws the operations to apply, at most `policy.n`, a pure function of `rng`'s state."""
  names = [deit_ops.OPERATIONS[i] for i in rng.integers(len(deit_ops.OPERATIONS), size=policy.n)]
  draws = []
  for name in names:
    if policy.p < 1 and rng.random() > policy.p:
      continue
    level = _draw_magnitude(rng, policy) / 10
    draws.append(Draw(name, _draw_arguments(rng, name, level, policy.inc, interpolation)))
  return tuple(draws)


def _draw_magnitude(rng: np.random.Generator, policy: Policy) -> float:
  magnitude = float(policy.m)
  if policy.mstd > _UNIFORM_ABOVE:
    magnitude = rng.uniform(0, magnitude)
  elif policy.mstd > 0:
    magnitude = rng.normal(magnitude, policy.mstd)
  return max(0.0, min(magnitude, policy.mmax))


def _draw_arguments(
  rng: np.random.Generator,
  name: str,
  level: float,
  increasing: int,
  interpolation: deit_ops.Interpolation,
) -> tuple[float | str, ...]:
  """Returns an operation's arguments at `level`, the magnitude / 10."""
  if name in REACH:
    return _draw_sign(rng, level * REACH[name]), deit_ops.draw_filter(rng, interpolation)
  if name in _FACTORS and increasing:
    return (max(0.1, 1.0 + _draw_sign(rng, level * 0.9)),)
  if name in _FACTORS:
    return (level * 1.8 + 0.1,)
  if name == "SolarizeAdd":
    return (min(128, int(level * 110)),)
  if name == "Posterize":
    bits = int(level * 4)
    return (4 - bits if increasing else bits,)
  if name == "Solarize":
    threshold = min(256, int(level * 256))
    return (256 - threshold if increasing else threshold,)
  return ()


def _draw_sign(rng: np.random.Generator, value: float) -> float:
  return -value if rng.random() > 0.5 else value
