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
  for i, units in enumerate(hidden_units.first_blocks(tree, hidden_units.PAIRED_BLOCKS)):
    frequency = hidden_units.frequencies(units)
    cosine = f"{hidden_units.mean_cosine(units):+.3f}"
    numbers = f"{frequency.min():.3f}, {np.median(frequency):.3f}, {frequency.max():.3f}"
    lines.append([hidden_units.block_name(i), str(len(units)), _size(units), cosine, numbers])
  table = ComparisonTable(
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
  return PaperFigure(hidden_units.draw_pairs(tree), table)


def figure6(params: Named) -> PaperFigure:
  """All hidden units of the first two token-mixing MLPs; one model."""
  (name, tree), *_ = params.items()
  first = hidden_units.first_blocks(tree, 2)
  blocks = {hidden_units.block_name(i): units for i, units in enumerate(first)}
  table = ComparisonTable(
    title=f"Figure 6: all hidden units of the first two token-mixing MLPs, {name}",
    header=("block", "units", "picture"),
    rows=[[name, str(len(units)), _size(units)] for name, units in blocks.items()],
    notes=("From low to high frequency.", _NOTE),
  )
  mosaics = [(name, hidden_units.ordered_mosaic(units)) for name, units in blocks.items()]
  title = "All hidden units of token mixing, low frequencies first"
  return PaperFigure(hidden_units.draw_mosaics(mosaics, title), table)


def figure7(params: Named) -> PaperFigure:
  """Filters of the embedding; the paper sets patches of 16 and of 32 pixels side by side."""
  lines = []
  for name, tree in params.items():
    filters = hidden_units.embedding_filters(tree)
    frequency = np.median(hidden_units.frequencies(filters))
    lines.append([name, str(len(filters)), _size(filters), f"{frequency:.3f}"])
  table = ComparisonTable(
    title="Figure 7: filters of the embedding",
    header=("weights", "filters", "pixels", "median frequency, cycles a pixel"),
    rows=lines,
    notes=("From low to high frequency, each by its own scale, grey is 0.", _NOTE),
  )
  return PaperFigure(hidden_units.draw_filters(params), table)


def _size(pictures: np.ndarray) -> str:
  return f"{pictures.shape[1]}x{pictures.shape[2]}"


FIGURES = {"figure5": figure5, "figure6": figure6, "figure7": figure7}
