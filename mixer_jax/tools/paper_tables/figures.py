"""Figures 2 to 4 of the paper, each with the table of what it shows.

The paper gives the points of figures 2 (left) and 3 as numbers (its tables), those of figures 2 (right) and
4 as pictures alone: there only ours are drawn.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from mixer_jax import figures, schema
from mixer_jax.data import permutations
from mixer_jax.tools.paper_tables import costs, rows, tables
from mixer_jax.tools.paper_tables.comparison import (
  Comparison,
  ComparisonTable,
  Exclusion,
  MissingResult,
)
from mixer_jax.tools.paper_tables.results import Results, Run
from mixer_jax.tools.paper_tables.rows import Pretraining

COLOURS = {"Mixer": "tab:red", "ViT": "tab:blue", "BiT": "tab:green", "ResNet": "tab:green"}
BEFORE = (
  "ImageNet 5-shot top-1: linear on frozen features, before any fine-tuning, the paper's and ours."
)
ORDERS = {"": "original", "patches": "patches and their pixels permuted", "pixels": "all pixels permuted"}  # fmt: skip

Curve = Sequence[tuple[float, float]]


class PaperFigure(NamedTuple):
  """A figure (matplotlib's), and the numbers in it."""

  figure: Any
  table: ComparisonTable


def new_figure(columns: int, lines: int = 1, *, width: float = 5.5, height: float = 4.0) -> Any:
  """Returns (figure, axes in reading order)."""
  figure = figures.empty(width * columns, height * lines)
  return figure, list(figure.subplots(lines, columns, squeeze=False).ravel())


def draw_lines(axes: Any, lines: Mapping[str, Curve], style: Mapping[str, dict[str, Any]]) -> None:
  """Draws the lines, name -> (x, y), that have points, with their arguments of `plot`; or says that nothing has been run."""
  for name, points in lines.items():
    if points:
      axes.plot(*zip(*points, strict=True), label=name, **style[name])
  axes.grid(alpha=0.3)
  if axes.lines:
    axes.legend(fontsize=8)
  else:
    axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", color="tab:gray")


def draw_by_order(axes: Any, curves: Mapping[str, Curve]) -> None:
  """Draws shares by step in per cent, one curve for each order of the input."""
  styles = {"original": "-", "patches": "--", "pixels": ":"}
  percent = {ORDERS[o]: [(step, 100 * v) for step, v in curve] for o, curve in curves.items()}
  style = {ORDERS[o]: {"linestyle": styles[o or "original"], "marker": "."} for o in ORDERS}
  draw_lines(axes, percent, style)
  axes.set_xlabel("step")


# --- figures 2 and 3: accuracy against cost and data ------------------------------------------------


def figure2(found: Results) -> PaperFigure:
  """Left: accuracy against the cost of pre-training. Right: accuracy against the amount of data."""
  table, shots = tables.table2(found), five_shots(found, rows.FIGURE2)
  figure, (left, right) = new_figure(2)
  _scatter(left, table, _CORE_DAYS)
  left.set(title="transfer at the larger size", xlabel="TPUv3-core-days of pre-training")
  lines = {
    model: [(p.subset, value) for p, value in shots.last.items() if p.model == model]
    for model in rows.SUBSET_MODELS
  }
  style = {m: {"color": _colour(m), "marker": "o"} for m in rows.SUBSET_MODELS}
  draw_lines(right, lines, style)
  right.set(
    title="frozen features", xlabel="per cent of JFT-300M", ylabel="ImageNet 5-shot top-1 %"
  )
  right.set(xscale="log", xlim=(2, 130))
  texts = [f"{m} {x:g} %: {y:.2f}" for m, points in lines.items() for x, y in points]
  _place_labels(figure, left)
  table = dataclasses.replace(
    table,
    title="Figure 2: accuracy against cost (left: table 2) and against data (right: JFT-300M subsets)",
    notes=[
      *table.notes,
      f"Right: {BEFORE} The paper gives these as a picture alone, so that ours have nothing beside them.",
      "Right, ours: " + ("; ".join(texts) or "none has been run."),
    ],
    missing=[*table.missing, *shots.missing],
  )
  return PaperFigure(figure, table)


def figure3(found: Results) -> PaperFigure:
  """Accuracy of all JFT-300M models of table 3 at 224 px against training cost and throughput."""
  title = "Figure 3: accuracy against training cost and throughput, JFT-300M, 224 px (of table 3)"
  chosen = [
    r for r in tables.rows_of("table3") if r.printed["pretrain"] == "JFT-300M" and r.size == 224
  ]
  table = tables.results_table(found, "table3", title, chosen)
  figure, (left, right) = new_figure(2)
  _scatter(left, table, _CORE_DAYS)
  left.set(xlabel="TPUv3-core-days of pre-training")
  _scatter(right, table, "images/s/core")
  right.set(xlabel="images/s and core of inference (paper: TPU v3)")
  _place_labels(figure, left, right)
  return PaperFigure(figure, table)


_CORE_DAYS = "TPUv3-core-days (planned)"


def _colour(model: str) -> str:
  return COLOURS.get(model.partition("-")[0], "tab:gray")


def _scatter(axes: Any, table: ComparisonTable, column: str) -> None:
  """Draws the paper's points filled and ours hollow, ours at the paper's place on the x axis."""
  columns = (table.column(name) for name in ("model", column, "ImageNet top-1 %"))
  ours = {"marker": "D", "linestyle": "", "fillstyle": "none"}
  num_ours = 0
  for model, cost, top1 in zip(*columns, strict=True):
    if cost.paper is None:
      continue
    colour = _colour(model)
    axes.plot([cost.paper], [top1.paper], "o", color=colour)
    place = {"xytext": (4, 3), "textcoords": "offset points"}  # until `_place_labels`
    axes.annotate(model, (cost.paper, top1.paper), fontsize=7, **place)
    if top1.ours is not None:
      axes.plot([cost.paper], [top1.ours], color=colour, markersize=9, **ours)
      num_ours += 1
  axes.plot([], [], "o", color="black", label="paper")
  axes.plot([], [], color="black", label=f"ours, at the paper's cost ({num_ours} run)", **ours)
  axes.set(xscale="log", ylabel="ImageNet top-1 %, after fine-tuning")
  axes.margins(x=0.15)
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8, loc="lower right" if column == _CORE_DAYS else "lower left")


_PLACES = [
  (x, y, align)
  for d in (0, 8, 16)
  for x, y, align in (
    (5 + d / 2, 3 + d, "left"), (5 + d / 2, -8 - d, "left"), (-5 - d / 2, 3 + d, "right"), (-5 - d / 2, -8 - d, "right"),
  )
]  # fmt: skip
"""Offsets of a label from its point, in points of 1/72 inch, and its alignment; the nearest first."""


def _place_labels(figure: Any, *drawn: Any) -> None:
  """Moves every label to the first of `_PLACES` where it covers no point, label or legend, inside its axes."""
  from matplotlib.transforms import Bbox

  figure.draw_without_rendering()  # where the layout is made
  for axes in drawn:
    points = axes.transData.transform([label.xy for label in axes.texts])
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    taken.append(axes.get_legend().get_window_extent())
    for label in axes.texts:
      taken.append(_move_to_free_place(label, axes.bbox, taken))


def _move_to_free_place(label: Any, inside: Any, taken: Sequence[Any]) -> Any:
  """Moves the label, to the last place if none is free; returns the box that it covers."""
  box = None
  for x, y, align in _PLACES:
    label.set(position=(x, y), ha=align)
    box = label.get_window_extent()
    fits = inside.x0 < box.x0 and box.x1 < inside.x1 and box.y1 < inside.y1
    if fits and not box.count_overlaps(taken):
      break
  return box


# --- figure 4: permutations -------------------------------------------------------------------------

# The losses that the paper's text gives, in per cent of the accuracy.
_LOST = {
  ("Mixer-B/16", "patches"): 0.0,
  ("Mixer-B/16", "pixels"): 45.0,
  ("BiT-R50x1", "pixels"): 75.0,
}


def figure4(found: Results) -> PaperFigure:
  """Learning from permuted inputs: Mixer's curve does not move with patches and their pixels permuted."""
  from sklearn import datasets

  shots = five_shots(found, rows.FIGURE4)
  figure, axes = new_figure(3, 2, width=4.0, height=3.4)
  draw_images(axes[:3], permuted_photos(datasets.load_sample_image("china.jpg"), 224, 16))
  axes[5].set_axis_off()
  for one, model in zip(axes[3:5], rows.PERMUTED_MODELS, strict=True):
    draw_by_order(one, {p.order: c for p, c in shots.curves.items() if p.model == model})
    one.set(title=model, ylabel="ImageNet 5-shot top-1 %")
  lines = []
  for p in rows.FIGURE4:
    value, base = shots.last.get(p), shots.last.get(dataclasses.replace(p, order=""))
    lost = 100 * (1 - value / base) if value is not None and base and p.order else None
    paper = _LOST.get((p.model, p.order))
    lines.append([p.model, ORDERS[p.order], Comparison(None, value, 2), Comparison(paper, lost, 1)])
  table = ComparisonTable(
    title="Figure 4: permuted inputs, pre-training on JFT-300M",
    header=("model", "input", "ImageNet 5-shot %", "accuracy lost, % of the original's"),
    rows=lines,
    notes=(
      BEFORE,
      "The paper gives the curves as a picture alone; the losses under all pixels permuted are those of its text, about.",
    ),
    missing=shots.missing,
    left_out=rows.grouped(shots.left_out),
  )
  return PaperFigure(figure, table)


def draw_images(axes: Sequence[Any], titled: Sequence[tuple[str, np.ndarray]]) -> None:
  for one, (title, image) in zip(axes, titled, strict=True):
    one.imshow(image, interpolation="nearest")
    one.set_title(title, fontsize=8, pad=2)
    one.set_axis_off()


def permuted_photos(photo: np.ndarray, size: int, patch: int) -> list[tuple[str, np.ndarray]]:
  """Returns (title, image) of the three inputs, uint8 (size, size, 3)."""
  image = cv2.resize(photo, (size, size), interpolation=cv2.INTER_AREA)
  sides = (size, size)
  orders = (permutations.order_of_patches(sides, patch, 0), permutations.order_of_pixels(sides, 0))
  images = [image, *(permutations.apply(image, order) for order in orders)]
  return list(zip(ORDERS.values(), images, strict=True))


# --- few-shot accuracy of pre-trained models --------------------------------------------------------


class FiveShots(NamedTuple):
  """ImageNet 5-shot accuracy of pre-trainings that were run, as (step, share); and what is missing for the others."""

  curves: dict[Pretraining, Curve]
  missing: list[MissingResult]
  left_out: list[Exclusion]

  @property
  def last(self) -> dict[Pretraining, float]:
    """Accuracy at the end, in per cent."""
    return {p: 100 * curve[-1][1] for p, curve in self.curves.items()}


def five_shots(found: Results, pretrainings: Iterable[Pretraining]) -> FiveShots:
  """Returns the ImageNet 5-shot accuracies of pre-trainings, in their order."""
  runs, left_out = rows.match(found)
  curves, missing = {}, []
  for p in pretrainings:
    if curve := _curve(runs[p], p) if p in runs else []:
      curves[p] = curve
      continue
    order = f", {ORDERS[p.order]}" * bool(p.order)
    what = f"{p.model}, {p.subset:g} % of JFT-300M for {p.epochs:g} epochs{order}: 5-shot"
    whole = dataclasses.replace(p, subset=100.0, epochs=7.0, order="")  # as many steps
    flags = f' --config.evaluators.fewshot="{_fewshot(p)}"'
    command = p.train_command(found.directory, flags)
    missing.append(MissingResult(what, [command], costs.describe(whole, {})))
  return FiveShots(curves, missing, left_out)


def _curve(run: Run, pretraining: Pretraining) -> Curve:
  """Returns (step, share) of a run's ImageNet 5-shot accuracy; none if it was measured otherwise."""
  asked = vars(schema.Fewshot()) | _fewshot(pretraining)
  own = vars(schema.Fewshot()) | run.config["evaluators"].get("fewshot", {})
  same = all(own[k] == asked[k] for k in ("dataset", "train_split", "test_split", "ops"))
  return run.curve("fewshot/5shot") if same else []


def _fewshot(pretraining: Pretraining) -> dict[str, str]:
  """Returns the few-shot evaluator of figures 2 and 4."""
  ops = {"ops": schema.Fewshot.ops + pretraining.permutation} if pretraining.order else {}
  return {"type": "fewshot", "dataset": "imagenet2012", **ops}


FIGURES = {"figure2": figure2, "figure3": figure3, "figure4": figure4}
