"""The published sizes of Mixer's relatives: counted here, beside what their authors published."""

from typing import Any

import jax
import jax.numpy as jnp

from mixer_jax import models, weights
from mixer_jax.tools import paper_numbers
from mixer_jax.tools.paper_numbers import Row, number
from mixer_jax.tools.paper_tables import figures, tables
from mixer_jax.tools.paper_tables.comparison import NOTHING, Comparison, ComparisonTable
from mixer_jax.tools.planning import flops
from mixer_jax.weights.released import Released

_SIZE = (224, 224, 3)
_NOTES = (
  "MACs: multiply-accumulates of convolutions and matrix products at 224 px, those of attention among them; "
  "published ones where there are any. MS-MLP's and smlp_net T*'s are more than their models have, and more "
  "than MS-MLP's own code counts.",
  "Top-1 on ImageNet at 224 px, from the place beside it; none was trained here. Mixer is under DeiT's recipe. "
  "Of ResMLP, files named _dist were trained with distillation.",
  "Circulant mixing is CCS, with eight vectors. Its paper counts parameters without the classifier. There is no code "
  "of its authors, and none of S²-MLP's: both follow the papers.",
  "S²-MLP's paper counts parameters without the classifier and the norms, and in mixed units: 71 M of wide are "
  "millions, 51 M of deep 2²⁰.",
  "CycleMLP's paper draws step 7 and a sum; B1 to B5 have step 3 and weighted branches, as the code. T, S and B have no "
  "code: they follow the figure.",
  "Hire-MLP's first version has LayerNorm and a sum; the code, and this, BatchNorm and weighted branches.",
  "MS-MLP's paper mixes first and then shifts, to one side; the code, and this, shift around and then mix.",
)


def families() -> figures.PaperFigure:
  """Returns the table of all variants, and their accuracy against MACs."""
  figure, (axes,) = figures.new_figure(1, width=9.0, height=6.0)
  colours: dict[str, str] = {}
  lines = []
  for row in paper_numbers.rows("families"):
    parameters, macs = counted(row)
    name, released = _released(row)
    top1 = number(row["top1"]) or (released and released.top1)
    lines.append(
      [
        row["family"] + ", circulant" * bool(row["mixing"]),
        row["variant"],
        f"{parameters:,}",
        Comparison(number(row["gmacs"]), macs, 1),
        f"{top1:.1f}" if top1 else NOTHING,
        row["source"] or (released and released.source) or NOTHING,
        row["weights"] or name,
      ]
    )
    if top1:
      _point(axes, lines[-1], macs, top1, colours)
  axes.set(xscale="log", xlabel="MACs, 10⁹, at 224 px", ylabel="ImageNet top-1 %, as published")
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8, loc="lower right")
  table = ComparisonTable(
    title="The families: sizes, and what was published",
    header=(
      "family", "variant", "parameters", "MACs, 10⁹", "top-1 %", "published in", "authors' weights",
    ),
    rows=lines,
    notes=_NOTES,
  )  # fmt: skip
  return figures.PaperFigure(figure, table)


def _point(axes: Any, line: list[Any], macs: float, top1: float, colours: dict[str, str]) -> None:
  """Draws one model; a family keeps its colour, circulant ones are hollow."""
  name, variant, *_ = line
  family, _, circulant = name.partition(", ")
  colour = colours.setdefault(family, f"C{len(colours)}")
  label = None if name in axes.get_legend_handles_labels()[1] else name
  fill = "none" if circulant else "full"
  axes.plot([macs], [top1], "o", color=colour, fillstyle=fill, label=label)
  place = {"xytext": (4, 3), "textcoords": "offset points"}
  axes.annotate(variant, (macs, top1), fontsize=7, **place)


def fields_of(row: Row) -> dict[str, Any]:
  """Returns the fields of a row's model."""
  fields = dict(models.FAMILIES[row["family"]].VARIANTS[row["variant"]])
  if row["mixing"]:
    fields |= {"token_mixing": row["mixing"], "channel_groups": 8}
  return fields


def counted(row: Row) -> tuple[int, float]:
  """Returns the parameters of a row's model with 1000 classes, and its MACs in 10⁹ at 224 px."""
  model = models.build(row["family"], **fields_of(row))
  variables = models.abstract_variables(model, _SIZE)
  image = jax.ShapeDtypeStruct((1, *_SIZE), jnp.float32)
  macs = flops.forward_flops(model, variables, image) / 2e9
  return tables.count(variables["params"]), macs


def _released(row: Row) -> tuple[str, Released | None]:
  """Returns the name and the facts of the authors' file, of several the first whose accuracy is known."""
  fields = {**fields_of(row), "num_classes": 1000}
  files = [
    (name, file)
    for name, file in weights.RELEASED.items()
    if file.family == row["family"] and file.fields == fields
  ]
  return max(files, key=lambda pair: pair[1].top1 is not None, default=("none", None))
