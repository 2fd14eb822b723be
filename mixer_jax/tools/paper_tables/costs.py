"""What a pre-training would cost on TPU v3: the plan's number if there is a plan, else the paper's.

A plan is the output of `python -m mixer_jax.tools.plan --topology=v3:… --json`, kept as RESULTS/plans/NAME.json. So
showing a table compiles nothing.
"""

import json
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

from mixer_jax.tools import paper_numbers
from mixer_jax.tools.paper_tables.comparison import Exclusion, MissingResult
from mixer_jax.tools.paper_tables.rows import Pretraining

_IMAGE_SIZE = 224


class Plan(NamedTuple):
  """Bounds by the chip's published rates: of pre-training, and of inference at 224 px."""

  core_days: float
  inference_images_per_sec_per_core: float


Plans = dict[Pretraining, Plan]


def load(
  directory: pathlib.Path, pretrainings: Iterable[Pretraining]
) -> tuple[Plans, list[Exclusion]]:
  """Returns the plans of a results directory for TPU v3, and those for other devices."""
  plans, left_out = {}, []
  for pretraining in pretrainings:
    path = directory / "plans" / f"{pretraining.name}.json"
    if not path.exists() or not path.stat().st_size:  # a plan that failed leaves an empty file
      continue
    plan = json.loads(path.read_text())
    if plan["devices"].startswith("v3:") and plan["estimate"]:
      plans[pretraining] = Plan(*(plan["estimate"][name] for name in Plan._fields))
    else:
      left_out.append(Exclusion(str(path), f"no estimate for TPU v3, but for {plan['devices']}"))
  return plans, left_out


def throughput(plans: Plans, model: str, image_size: int | None) -> float | None:
  """Returns the planned images/s and core of inference, None if there is no plan for this size."""
  if image_size != _IMAGE_SIZE:
    return None
  found = (p.inference_images_per_sec_per_core for k, p in plans.items() if k.model == model)
  return next(found, None)


def missing(
  directory: pathlib.Path, pretrainings: Iterable[Pretraining], plans: Plans
) -> list[MissingResult]:
  """Returns the commands that plan the pre-trainings without a plan."""
  commands = [
    f"python -m mixer_jax.tools.plan --config={p.file} --topology=v3:16x16 --json"
    f" > {directory}/plans/{p.name}.json"
    for p in pretrainings
    if p not in plans
  ]
  what = f"plans of {len(commands)} pre-trainings for TPU v3"
  make_directory = f"mkdir -p {directory}/plans"
  return [MissingResult(what, [make_directory, *commands], "minutes each")] if commands else []


def describe(pretraining: Pretraining, plans: Plans) -> str:
  """Returns the cost of a pre-training for the list of what has not been run."""
  if pretraining in plans:
    return f"planned: at least {plans[pretraining].core_days:,.1f} TPUv3-core-days of pre-training"
  for row in paper_numbers.rows("table3_scale"):
    if Pretraining.of_table3(row) == pretraining:
      extrapolated = ", extrapolated there" * (row["core_days_extrapolated"] == "yes")
      return f"paper: {row['tpuv3_core_days']} TPUv3-core-days of pre-training{extrapolated}"
  return "cost not reported"
