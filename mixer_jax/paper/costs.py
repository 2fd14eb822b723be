"""What a run would cost: planned where there is a plan, else what the paper says that it cost."""

from mixer_jax.paper import numbers
from mixer_jax.paper.rows import Pretraining


def planned_core_days(pretraining: Pretraining) -> float | None:
  """Returns the planned TPUv3-core-days of a pre-training, None: no plan."""
  del pretraining
  return None


def planned_throughput(model: str, image_size: int) -> float | None:
  """Returns the planned images/s and core of inference on a TPU v3, None: no plan."""
  del model, image_size
  return None


def describe(pretraining: Pretraining) -> str:
  """Returns the cost as the commands' list shows it."""
  if (days := planned_core_days(pretraining)) is not None:
    return f"planned: {days:,.0f} TPUv3-core-days of pre-training"
  for row in numbers.rows("table3_scale"):
    key = (row["pretrain"], row["model"], float(row["pretrain_epochs"]))
    if key == (pretraining.dataset, pretraining.model, pretraining.epochs):
      extrapolated = ", extrapolated there" * (row["core_days_extrapolated"] == "yes")
      return f"paper: {row['tpuv3_core_days']} TPUv3-core-days of pre-training{extrapolated}"
  return "cost not reported"
