"""Figures 5 to 7: pictures of any Mixer's weights, and what can be said of them in numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mixer_jax.figures import hidden_units
from mixer_jax.tools.paper_tables.comparison import ComparisonTable
from mixer_jax.tools.paper_tables.figures import PaperFigure

Named = Mapping[str, dict[str, Any]]  # origin -> parameters
_NOTE = "The paper shows these as pictures alone; no ImageNet figures."


def figure5(params: Named) -> PaperFigure:
  """Hidden units of the first three token-mixing MLPs, in pairs of opposite phase; one model."""
  (name, tree), *_ = params.items()
  lines = []
  for block in range(min(3, num_blocks(tree))):
    units = hidden_units.hidden_units(tree, block)
    pairs = hidden_units.opposite_pairs(units)
    cosines = [_cosine(units[a], units[b]) for a, b in pairs]
    frequency = hidden_units.frequencies(units)
    lines.append(
      [
        str(block + 1),
        str(len(units)),
        f"{units.shape[1]}x{units.shape[2]}",
        f"{np.mean(cosines):+.3f}",
        f"{frequency.min():.3f}, {np.median(frequency):.3f}, {frequency.max():.3f}",
      ]
    )
  sheet = ComparisonTable(
    title=f"Figure 5: hidden units of token mixing, {name}",
    header=("block", "units", "picture", "mean cosine of pairs", "frequency: least, median, most"),
    rows=lines,
    notes=(
      "Pairs from low to high frequency; within a pair the second is the unit nearest to the first's "
      "negative (cosine −1: exactly opposite phase).",
      "Frequency in cycles a token, the spectrum's mean radius by power.",
      _NOTE,
    ),
  )
  return PaperFigure(hidden_units.draw_pairs(tree), sheet)


def figure6(params: Named) -> PaperFigure:
  """All hidden units of the first two token-mixing MLPs; one model."""
  (name, tree), *_ = params.items()
  units = [hidden_units.hidden_units(tree, block) for block in range(min(2, num_blocks(tree)))]
  lines = [[str(i + 1), str(len(u)), f"{u.shape[1]}x{u.shape[2]}"] for i, u in enumerate(units)]
  sheet = ComparisonTable(
    title=f"Figure 6: all hidden units of the first two token-mixing MLPs, {name}",
    header=("block", "units", "picture"),
    rows=lines,
    notes=("From low to high frequency.", _NOTE),
  )
  return PaperFigure(hidden_units.draw_units(tree), sheet)


def figure7(params: Named) -> PaperFigure:
  """Filters of the embedding; the paper sets patches of 16 and of 32 pixels side by side."""
  lines = []
  for name, tree in params.items():
    filters = hidden_units.embedding_filters(tree)
    frequency = np.median(hidden_units.frequencies(filters))
    size = f"{filters.shape[1]}x{filters.shape[2]}"
    lines.append([name, str(len(filters)), size, f"{frequency:.3f}"])
  sheet = ComparisonTable(
    title="Figure 7: filters of the embedding",
    header=("weights", "filters", "pixels", "median frequency, cycles a pixel"),
    rows=lines,
    notes=("From low to high frequency, each by its own scale, grey is 0.", _NOTE),
  )
  return PaperFigure(hidden_units.draw_filters(dict(params)), sheet)


def num_blocks(params: dict[str, Any]) -> int:
  """Returns the number of a Mixer's blocks, at least 1, so that other models are met by name."""
  return max(sum(name.startswith("MixerBlock_") for name in params), 1)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
  return float(np.sum(a * b) / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))


FIGURES = {"figure5": figure5, "figure6": figure6, "figure7": figure7}
