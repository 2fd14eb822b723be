"""Figures 2 to 7 of the paper, each with the sheet of what it shows.

The paper gives the points of figures 2 (left) and 3 as numbers (its tables), those of figures 2 (right) and
4 as pictures alone: there ours are drawn by themselves.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from mixer_jax import schema
from mixer_jax.data import permutations
from mixer_jax.tools import config_files, paper_numbers
from mixer_jax.tools.paper_numbers import number
from mixer_jax.tools.paper_tables import costs, rows, tables
from mixer_jax.tools.paper_tables.comparison import Comparison, ComparisonTable, MissingResult
from mixer_jax.tools.paper_tables.results import Results, Run
from mixer_jax.tools.paper_tables.rows import Pretraining

COLOURS = {"Mixer": "tab:red", "ViT": "tab:blue", "BiT": "tab:green", "other": "tab:gray"}
BEFORE = (
  "ImageNet 5-shot top-1: linear on frozen features, before any fine-tuning, the paper's and ours."
)
_ORDERS = {"": "original", "patches": "patches and their pixels permuted", "pixels": "all pixels permuted"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PaperFigure:
  """A figure (matplotlib's), and the numbers in it."""

  figure: Any
  sheet: ComparisonTable


def new_figure(columns: int, lines: int = 1, *, width: float = 5.5, height: float = 4.0) -> Any:
  """Returns (figure, axes in reading order)."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
  return figure, list(figure.subplots(lines, columns, squeeze=False).ravel())


def family(model: str) -> str:
  """Returns the key of `COLOURS` of a model's name."""
  name = model.partition("-")[0]
  return name if name in COLOURS else "other"


# --- figures 2 and 3: accuracy against cost and data ------------------------------------------------


def figure2(found: Results) -> PaperFigure:
  """Left: accuracy against the cost of pre-training. Right: accuracy against the amount of data."""
  table = tables.table2(found)
  runs, _ = rows.match(found)
  figure, (left, right) = new_figure(2)
  _scatter(left, table, paper_numbers.rows("table2_transfer"), "tpuv3_core_days")
  left.set(title="transfer at the larger size", xlabel="TPUv3-core-days of pre-training")
  points = _draw_subsets(right, runs)
  sheet = ComparisonTable(
    title="Figure 2: accuracy against cost (left: table 2) and against data (right: JFT-300M subsets)",
    header=table.header,
    rows=table.rows,
    notes=(
      *table.notes,
      "Right: "
      + BEFORE
      + " The paper gives these as a picture alone, so that ours have nothing beside them.",
      "Right, ours: " + ("; ".join(points) if points else "none has been run."),
    ),
    missing=[*table.missing, *_missing_subsets(found, runs)],
    left_out=table.left_out,
  )
  return PaperFigure(figure, sheet)


def five_shot(run: Run, pretraining: Pretraining) -> float | None:
  """Returns the last ImageNet 5-shot accuracy of a run in per cent, None without one."""
  values = five_shot_curve(run, pretraining)
  return 100 * values[-1][1] if values else None


def five_shot_curve(run: Run, pretraining: Pretraining) -> list[tuple[int, float]]:
  """Returns (step, share) of a run's ImageNet 5-shot accuracy; none if it was measured otherwise."""
  wanted = vars(schema.Fewshot()) | _fewshot(pretraining)
  same = all(
    (run.value(f"evaluators.fewshot.{key}") or getattr(schema.Fewshot, key)) == wanted[key]
    for key in ("dataset", "train_split", "test_split", "ops")
  )
  return run.curve("fewshot/5shot") if same else []


def _fewshot(p: Pretraining) -> dict[str, str]:
  """Returns the section of the few-shot evaluator that figures 2 and 4 read."""
  ops = {"ops": rows.permuted(schema.Fewshot.ops, p.order)} if p.order else {}
  return {"type": "fewshot", "dataset": "imagenet2012", **ops}


def _draw_subsets(axes: Any, runs: dict[Pretraining, Run]) -> list[str]:
  texts = []
  for model in rows.SUBSET_MODELS:
    points = [
      (p.subset, value)
      for p, run in runs.items()
      if p.model == model and (value := five_shot(run, p)) is not None
    ]
    if points:
      points.sort()
      axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[family(model)], label=model)
      texts += [f"{model} {percent:g} %: {value:.2f}" for percent, value in points]
  axes.set(title="frozen features", xlabel="per cent of JFT-300M", ylabel="ImageNet 5-shot top-1 %")
  axes.set_xscale("log")
  axes.set_xlim(2, 130)
  axes.grid(alpha=0.3)
  if texts:
    axes.legend(fontsize=8)
  else:
    axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", color="tab:gray")
  return texts


def _missing_subsets(found: Results, runs: dict[Pretraining, Run]) -> list[MissingResult]:
  """Returns a command for each run of the right half that is not there, or without few-shot figures."""
  return [
    MissingResult(
      f"{p.model}, {p.subset:g} % of JFT-300M for {p.epochs:g} epochs: 5-shot",
      [_train_command(found, p)],
      costs.describe(dataclasses.replace(p, subset=100.0, epochs=7.0), {}) + ", as many steps",
    )
    for p in rows.of_figure2()
    if p not in runs or five_shot(runs[p], p) is None
  ]


def _train_command(found: Results, p: Pretraining) -> str:
  command = f"python train.py --config={p.file} --workdir={found.directory}/pretrain/{p.name}"
  command += f' --config.evaluators.fewshot="{_fewshot(p)}"'
  if p.order:
    config = config_files.load(p.file)
    for name, section in (("data", config.data), ("evaluators.val", config.evaluators.val)):
      command += f' --config.{name}.ops="{rows.permuted(section.ops, p.order)}"'
  return command


def figure3(found: Results) -> PaperFigure:
  """Accuracy of all JFT-300M models of table 3 at 224 px against training cost and throughput."""
  table = tables.table3(found)
  chosen = [
    i
    for i, row in enumerate(paper_numbers.rows("table3_scale"))
    if row["pretrain"] == "JFT-300M" and row["image_size"] == "224"
  ]
  kept = [paper_numbers.rows("table3_scale")[i] for i in chosen]
  sheet = dataclasses.replace(
    table,
    title="Figure 3: accuracy against training cost and throughput, JFT-300M, 224 px (of table 3)",
    rows=[table.rows[i] for i in chosen],
    missing=[
      m
      for m in table.missing
      if not m.what.startswith(("ImageNet", "JFT-300M, Mixer-L/16, 14 epochs, 448"))
    ],
  )
  figure, (left, right) = new_figure(2)
  _scatter(left, sheet, kept, "tpuv3_core_days")
  left.set(xlabel="TPUv3-core-days of pre-training")
  _scatter(right, sheet, kept, "images_per_sec_per_tpuv3_core")
  right.set(xlabel="images/s and core of inference (paper: TPU v3)")
  return PaperFigure(figure, sheet)


def _scatter(
  axes: Any, sheet: ComparisonTable, table: Sequence[dict[str, str]], column: str
) -> None:
  """Draws the paper's points filled and ours hollow, ours at the paper's place on the x axis."""
  index = list(sheet.header).index("ImageNet top-1 %")
  ours = 0
  for row, cells in zip(table, sheet.rows, strict=True):
    x, cell = number(row[column]), cells[index]
    if x is None or not isinstance(cell, Comparison):
      continue
    colour = COLOURS[family(row["model"])]
    axes.plot([x], [cell.paper], "o", color=colour)
    axes.annotate(
      row["model"], (x, cell.paper), fontsize=7, xytext=(4, 3), textcoords="offset points"
    )
    if cell.ours is not None:
      axes.plot([x], [cell.ours], "D", color=colour, fillstyle="none", markersize=9)
      ours += 1
  axes.plot([], [], "o", color="black", label="paper")
  axes.plot(
    [], [], "D", color="black", fillstyle="none", label=f"ours, at the paper's cost ({ours} run)"
  )
  axes.set_xscale("log")
  axes.margins(x=0.15)
  axes.set_ylabel("ImageNet top-1 %, after fine-tuning")
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8, loc="lower right" if column.startswith("tpu") else "lower left")


# --- figure 4: permutations -------------------------------------------------------------------------

# The losses that the paper's text gives, in per cent of the accuracy.
_LOST = {"Mixer-B/16": 45.0, "BiT-R50x1": 75.0}


def figure4(found: Results, photo: np.ndarray) -> PaperFigure:
  """Learning from permuted inputs: Mixer's curve does not move with patches and their pixels permuted.

  Args:
    found: the results.
    photo: uint8 (h, w, 3), shown as the three inputs.
  """
  wanted = rows.of_figure4()
  runs, left_out = rows.match(found)
  figure, axes = new_figure(3, 2, width=4.0, height=3.4)
  for one, (title, image) in zip(axes[:3], permuted_photos(photo, 224, 16), strict=True):
    one.imshow(image, interpolation="nearest")
    one.set_title(title, fontsize=10)
    one.set_axis_off()
  axes[5].set_axis_off()
  lines, missing = [], []
  for one, model in zip(axes[3:], rows.PERMUTED_MODELS, strict=False):
    curves = {
      p.order: five_shot_curve(runs[p], p) for p in wanted if p in runs and p.model == model
    }
    draw_curves(one, curves)
    one.set(title=model, ylabel="ImageNet 5-shot top-1 %")
  for p in wanted:
    value = five_shot(runs[p], p) if p in runs else None
    original = dataclasses.replace(p, order="")
    base = five_shot(runs[original], original) if original in runs else None
    lost = 100 * (1 - value / base) if value is not None and base and p.order else None
    paper = {"patches": 0.0 if p.model.startswith("Mixer") else None, "pixels": _LOST[p.model]}
    lines.append(
      [
        p.model,
        _ORDERS[p.order],
        Comparison(None, value, 2),
        Comparison(paper.get(p.order), lost, 1),
      ]
    )
    if value is None:
      cost = costs.describe(dataclasses.replace(p, order=""), {})
      missing.append(
        MissingResult(f"{p.model}, {_ORDERS[p.order]}", [_train_command(found, p)], cost)
      )
  sheet = ComparisonTable(
    title="Figure 4: permuted inputs, pre-training on JFT-300M",
    header=("model", "input", "ImageNet 5-shot %", "accuracy lost, % of the original's"),
    rows=lines,
    notes=(
      BEFORE,
      "The paper gives the curves as a picture alone; the losses under all pixels permuted are those of its text, about.",
    ),
    missing=missing,
    left_out=rows.grouped(left_out),
  )
  return PaperFigure(figure, sheet)


def permuted_photos(photo: np.ndarray, size: int, patch: int) -> list[tuple[str, np.ndarray]]:
  """Returns (title, image) of the three inputs, uint8 (size, size, 3)."""
  image = cv2.resize(photo, (size, size), interpolation=cv2.INTER_AREA)
  orders = (
    None,
    permutations.order_of_patches((size, size), patch, 0),
    permutations.order_of_pixels((size, size), 0),
  )
  images = [image if order is None else permutations.apply(image, order) for order in orders]
  return list(zip(_ORDERS.values(), images, strict=True))


def draw_curves(axes: Any, curves: dict[str, list[tuple[int, float]]]) -> None:
  """Draws shares by step in per cent, one curve for each order of the input."""
  styles = {"": "-", "patches": "--", "pixels": ":"}
  for order, curve in curves.items():
    if curve:
      steps, values = zip(*curve, strict=True)
      axes.plot(steps, [100 * v for v in values], styles[order], marker=".", label=_ORDERS[order])
  axes.set_xlabel("step")
  axes.grid(alpha=0.3)
  if any(curves.values()):
    axes.legend(fontsize=7)
  else:
    axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", color="tab:gray")


FIGURES = {"figure2": figure2, "figure3": figure3}
