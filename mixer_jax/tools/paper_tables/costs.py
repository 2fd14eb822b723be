"""What a pre-training would cost on TPU v3: planned where there is a plan, else what the paper reports.

A plan is what `python -m mixer_jax.tools.plan --topology=v3:… --json` prints, kept as
RESULTS/plans/NAME.json; so nothing is compiled to show a table.
"""

import json
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from mixer_jax.tools import paper_numbers
from mixer_jax.tools.paper_tables.comparison import Exclusion, MissingResult
from mixer_jax.tools.paper_tables.rows import Pretraining

_IMAGE_SIZE = 224
_TOPOLOGY = "v3:16x16"


class Plan(NamedTuple):
  """Bounds by the chip's published rates: of pre-training, and of inference at 224 px."""

  core_days: float
  inference_images_per_sec_per_core: float


Plans = dict[Pretraining, Plan]


def load(
  directory: pathlib.Path, pretrainings: Iterable[Pretraining]
) -> tuple[Plans, list[Exclusion]]:
  """Returns the plans of a results directory for TPU v3, and those that could not be used."""
  plans, left_out = {}, []
  for pretraining in pretrainings:
    path = directory / "plans" / f"{pretraining.name}.json"
    if not path.exists():
      continue
    try:
      plans[pretraining] = _read(path)
    except (OSError, ValueError, KeyError, TypeError) as e:
      left_out.append(Exclusion(str(path), f"no plan for TPU v3: {type(e).__name__}: {e}"))
  return plans, left_out


def _read(path: pathlib.Path) -> Plan:
  data: Any = json.loads(path.read_text())
  if not str(data["devices"]).startswith("v3:"):
    raise ValueError(f"it is for {data['devices']}")
  return Plan(*(float(data["estimate"][name]) for name in Plan._fields))


def throughput(plans: Plans, model: str, image_size: int | None) -> float | None:
  """Returns the planned images/s and core of inference, None without a plan for this size."""
  if image_size != _IMAGE_SIZE:
    return None
  found = [p.inference_images_per_sec_per_core for k, p in plans.items() if k.model == model]
  return found[0] if found else None


def missing(
  directory: pathlib.Path, pretrainings: Iterable[Pretraining], plans: Plans
) -> MissingResult | None:
  """Returns the commands that plan what has no plan yet."""
  unplanned = [p for p in pretrainings if p not in plans]
  if not unplanned:
    return None
  commands = [f"mkdir -p {directory}/plans"] + [
    f"python -m mixer_jax.tools.plan --config={p.file} --topology={_TOPOLOGY} --json"
    f" > {directory}/plans/{p.name}.json"
    for p in unplanned
  ]
  return MissingResult(
    f"plans of {len(unplanned)} pre-trainings for TPU v3", commands, "minutes each"
  )


def describe(pretraining: Pretraining, plans: Plans) -> str:
  """Returns the cost as the commands' list shows it."""
  if pretraining in plans:
    return f"planned: at least {plans[pretraining].core_days:,.1f} TPUv3-core-days of pre-training"
  for row in paper_numbers.rows("table3_scale"):
    key = (row["pretrain"], row["model"], float(row["pretrain_epochs"]))
    if key == (pretraining.dataset, pretraining.model, pretraining.epochs):
      extrapolated = ", extrapolated there" * (row["core_days_extrapolated"] == "yes")
      return f"paper: {row['tpuv3_core_days']} TPUv3-core-days of pre-training{extrapolated}"
  return "cost not reported"
