"""Tables 1 to 4 of the paper, each beside what this project computes or has run."""

import re
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mixer_jax import models, weights
from mixer_jax.tools import config_files, paper_numbers, throughput
from mixer_jax.tools.paper_numbers import number
from mixer_jax.tools.paper_tables import costs, rows, transfers
from mixer_jax.tools.paper_tables.comparison import (
  NOTHING,
  Cell,
  Comparison,
  ComparisonTable,
  MissingResult,
)
from mixer_jax.tools.paper_tables.results import Results
from mixer_jax.tools.paper_tables.rows import Pretraining

_IMAGE_SIZE, _NUM_CLASSES = 224, 1000
AFTER = (
  "ImageNet top-1 and ReaL are after fine-tuning on ImageNet, the paper's and ours; ours are means of "
  "three seeds at the learning rate that the development split chose."
)


# --- table 1: architectures ------------------------------------------------------------------------


_SIZES = (
  "num_blocks", "patch_size", "hidden_dim", "sequence_length", "channels_mlp_dim", "tokens_mlp_dim",
  "params_millions_no_head", "params_exact_1000_class_head",
)  # fmt: skip


def table1() -> ComparisonTable:
  """Computed from the models' abstract parameters; nothing has to be run."""
  lines = []
  for row in paper_numbers.rows("table1_architectures"):
    params = abstract_params("Mixer-" + row["model"], _NUM_CLASSES)
    fields = weights.describe({"params": params}).fields
    without_head = count({k: v for k, v in params.items() if k != "head"})
    ours = fields | {
      "sequence_length": (_IMAGE_SIZE // fields["patch_size"]) ** 2,
      "params_millions_no_head": round(without_head / 1e6),
      "params_exact_1000_class_head": count(params),
    }
    lines.append([row["model"], *(Comparison(number(row[k]), ours[k]) for k in _SIZES)])
  return ComparisonTable(
    title="Table 1: the sizes of Mixer",
    header=(
      "model", "blocks", "patch", "hidden dim", "tokens", "channels MLP", "tokens MLP",
      "parameters without head, M", "parameters with 1000-class head",
    ),
    rows=lines,
    notes=("Counted from the models' own parameters, abstractly, at 224 px. No ImageNet figures.",),
  )  # fmt: skip


def abstract_params(model: str, num_classes: int) -> Any:
  """Returns the shapes of a model's parameters, by the paper's name; touches no device."""
  module = models.build(**rows.model_fields(model), num_classes=num_classes)  # pyright: ignore
  return models.abstract_variables(module, (_IMAGE_SIZE, _IMAGE_SIZE, 3))["params"]


def count(tree: Any) -> int:
  """Returns the number of values of a tree of arrays or shapes."""
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


# --- tables 2 and 3: results -----------------------------------------------------------------------

_PX448 = {"Mixer-L/16": 448, "Mixer-H/14": 448}
_TABLE2_EPOCHS = {"ImageNet-21k": 300.0, "JFT-300M": 14.0}
_METRICS = {
  "imagenet": ("imagenet_top1", "ImageNet top-1 %"),
  "real": ("real_top1", "ReaL top-1 %"),
  "avg5": ("avg5_top1", "Avg 5 %"),
  "vtab": ("vtab1k_19", "VTAB-1k %"),
}
"""Metric of `transfers.Job.read` -> column of the CSV file, title."""


class PaperRow(NamedTuple):
  """A row of the paper's table 2 or 3; pretraining and size are None if this project does not run it.

  Attributes:
    printed: the paper's cells.
    pretraining: which model is fine-tuned.
    size: of the images in fine-tuning, in pixels.
  """

  printed: paper_numbers.Row
  pretraining: Pretraining | None
  size: int | None


def rows_of(table: str) -> list[PaperRow]:
  """Returns the rows of table2 or table3."""
  if table == "table3":
    printed = paper_numbers.rows("table3_scale")
    return [PaperRow(r, Pretraining.of_table3(r), int(r["image_size"])) for r in printed]
  return [_row_of_table2(r) for r in paper_numbers.rows("table2_transfer")]


def _row_of_table2(row: paper_numbers.Row) -> PaperRow:
  data, model = row["pretrain"], row["model"]
  if data not in _TABLE2_EPOCHS or model not in _PX448:
    return PaperRow(row, None, None)
  return PaperRow(row, Pretraining(data, model, _TABLE2_EPOCHS[data]), _PX448[model])


def table2(found: Results) -> ComparisonTable:
  """Mixer beside the best of its time, fine-tuned at the larger size."""
  notes = (
    AFTER,
    "Ours: at 448 px (appendix C), VTAB-1k at 224 and 448 by task; images squashed to a square, centre crop.",
    "Rows without a size in pixels are other authors' models, or baselines that this project does not "
    "fine-tune at the size used there.",
  )
  title = "Table 2: transfer, Mixer beside the best published models"
  return results_table(found, "table2", title, rows_of("table2"), tuple(_METRICS), notes)


def table3(found: Results) -> ComparisonTable:
  """Mixer, ViT and BiT at all scales."""
  title = "Table 3: Mixer, ViT and BiT over scales and data"
  return results_table(found, "table3", title, rows_of("table3"))


def results_table(
  found: Results,
  name: str,
  title: str,
  paper: Sequence[PaperRow],
  metrics: Sequence[str] = ("imagenet", "real", "avg5"),
  notes: Sequence[str] = (
    AFTER,
    "Ours: short side resized, centre crop (configs/finetune_table3.py).",
  ),
) -> ComparisonTable:
  """Returns rows of table 2 or 3 beside our results, with the commands for those that are missing.

  Args:
    found: our results.
    name: "table2" or "table3", which fine-tune in different ways.
    title, notes: of the table.
    paper: the rows.
    metrics: those of `_METRICS` that the table has.
  """
  runs, left_out = rows.match(found)
  measured = throughput.load(found.directory)
  pretrainings = list(dict.fromkeys(row.pretraining for row in paper if row.pretraining))
  plans, other_plans = costs.load(found.directory, pretrainings)
  left_out += other_plans
  lines, missing = [], []
  for row in paper:
    ours, source = {}, None
    if row.pretraining and row.size:
      job = transfers.Job(found, name, row.pretraining, row.size, runs.get(row.pretraining))
      (ours, unused), source = job.read(), job.source
      left_out += unused
      absent = [m for m in metrics if row.printed[_METRICS[m][0]] and m not in ours]
      cost = costs.describe(row.pretraining, plans)
      missing += _missing(job, absent, "imagenet" in ours, cost)
    top1 = [Comparison(number(row.printed[_METRICS[m][0]]), ours.get(m), 2) for m in metrics]
    lines.append(_line(row, top1, measured, plans, source))
  return ComparisonTable(
    title=title,
    header=(
      "pre-trained on", "model", "px", "epochs", *(_METRICS[m][1] for m in metrics),
      "images/s/core", "planned for TPU v3", "TPUv3-core-days (planned)", "our weights",
    ),
    rows=lines,
    notes=(
      *notes,
      "images/s and core of inference, best over batch sizes: the paper's on TPU v3, ours "
      f"{'' if measured else 'not '}measured on {throughput.here()}.",
      "Planned: bounds by the chip's published rates (tools.plan), which real runs do not reach.",
    ),
    missing=[
      *missing,
      *_unmeasured(found, name, measured),
      *costs.missing(found.directory, pretrainings, plans),
    ],
    left_out=rows.grouped(left_out),
  )  # fmt: skip


def _missing(
  job: transfers.Job, absent: Sequence[str], imagenet_is_done: bool, cost: str
) -> list[MissingResult]:
  if not absent:
    return []
  p = job.pretraining
  what = f"{p.dataset}, {p.model}, {p.epochs:g} epochs, {job.size} px: {', '.join(absent)}"
  return [MissingResult(what, job.commands(absent, imagenet_is_done), cost)]


def models_of(table: str) -> list[tuple[str, int]]:
  """Returns (model, image size) of the rows of table2 or table3 whose throughput can be measured here."""
  return list(dict.fromkeys((r.printed["model"], r.size) for r in rows_of(table) if r.size))


def _unmeasured(found: Results, table: str, measured: dict[str, float]) -> list[MissingResult]:
  left = sum(throughput.key(*m) not in measured for m in models_of(table))
  command = f"python -m mixer_jax.tools.paper {table} {shlex.quote(f'--results={found.directory}')} --measure_throughput"
  what = f"throughput of {left} models on this device"
  return [MissingResult(what, [command], "minutes a model")] if left else []


def _line(
  row: PaperRow,
  top1: Sequence[Comparison],
  measured: dict[str, float],
  plans: costs.Plans,
  source: str | None,
) -> list[Cell]:
  printed = row.printed
  speed = measured.get(throughput.key(printed["model"], row.size)) if row.size else None
  planned_speed = costs.throughput(plans, printed["model"], row.size)
  plan = plans.get(row.pretraining) if row.pretraining else None
  return [
    printed["pretrain"],
    printed["model"],
    str(row.size or NOTHING),
    printed.get("pretrain_epochs", NOTHING),
    *top1,
    Comparison(number(printed["images_per_sec_per_tpuv3_core"]), speed),
    NOTHING if planned_speed is None else f"{planned_speed:,.0f}",
    Comparison(number(printed["tpuv3_core_days"]), plan.core_days if plan else None),
    source or NOTHING,
  ]


# --- table 4: hyper-parameters ---------------------------------------------------------------------

_VARIANTS = {"S": ("S/32", "S/16"), "B": ("B/32", "B/16"), "L": ("L/32", "L/16"), "H": ("H/14",)}
_COLUMNS = (
  "epochs", "learning_rate", "weight_decay", "randaugment_layers", "randaugment_magnitude",
  "mixup_p", "dropout", "stochastic_depth",
)  # fmt: skip


def table4() -> ComparisonTable:
  """Read off the configurations themselves."""
  lines = []
  for row in paper_numbers.rows("table4_pretraining"):
    file = f"configs/{rows.FILES[row['dataset']]}"
    args = list(_VARIANTS[row["model"].removeprefix("Mixer-")])
    # The row "7 or 14" is the file's default and an argument.
    args += [f"{args[-1]},epochs={e}" for e in row["epochs"].split(" or ")[1:]]
    read = [hyperparameters(config_files.load(f"{file}:{arg}")) for arg in args]
    ours = {name: " or ".join(dict.fromkeys(r[name] for r in read)) for name in _COLUMNS}
    cells = [Comparison(_normal(row[name]), ours[name]) for name in _COLUMNS]
    lines.append([row["model"], row["dataset"], *cells, f"{file}:{args[0]}"])
  return ComparisonTable(
    title="Table 4: hyper-parameters of pre-training",
    header=("model", "data set", *(c.replace("_", " ") for c in _COLUMNS), "configuration"),
    rows=lines,
    notes=("Read off the configurations, every patch size of a row. No ImageNet figures.",),
  )


def hyperparameters(config: Any) -> dict[str, str]:
  """Returns table 4's columns of a configuration."""
  found = re.search(r"randaugment\((\d+), *([\d.]+)\)", config.data.ops)
  layers, magnitude = found.groups() if found else ("0", NOTHING)
  values = (
    config.total_epochs, config.learning_rate, config.optimizer.weight_decay, layers, magnitude,
    config.augment.mixup_p, config.model.dropout_rate, config.model.stoch_depth,
  )  # fmt: skip
  return {k: _normal(str(v)) for k, v in zip(_COLUMNS, values, strict=True)}


def _normal(text: str) -> str:
  """Returns numbers in one form ("0" and "0.0" are equal), an empty cell as `NOTHING`."""
  try:
    return f"{float(text):g}"
  except ValueError:
    return text or NOTHING


TABLES = {"table1": lambda _: table1(), "table2": table2, "table3": table3, "table4": lambda _: table4()}  # fmt: skip
