"""Exact classification metrics over a split, whatever the batch size and the number of devices."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

Rows = dict[str, Any]


def evaluate(
  predict_fn: Callable[[Any], Rows], batches: Iterable[Any], *, batch_size: int
) -> tuple[Rows, Rows]:
  """Evaluates all batches.

  Args:
    predict_fn: batch -> rows of loss, top1, top5, prediction, label and mask, of shape (b,) each.
    batches: batches on the devices; rows with mask 0 count for nothing.
    batch_size: examples of a batch; row r of batch i is example i·batch_size + r of the split.

  Returns:
    (metrics, rows): loss (mean, summed exactly), top1, top5 (shares) and count (images), and the rows
    of all images in the order of the data, without padding, with their "index" in the split.
  """
  parts = []
  pending = None
  for batch in batches:
    current = predict_fn(batch)
    # Fetching the results of a batch while the next one is computed keeps the device busy.
    if pending is not None:
      parts.append(jax.device_get(pending))
    pending = current
  if pending is not None:
    parts.append(jax.device_get(pending))
  for i, part in enumerate(parts):
    part["index"] = i * batch_size + np.arange(len(part["mask"]))
  rows = {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}
  real = rows["mask"] > 0
  rows = {key: value[real] for key, value in rows.items()}
  count = int(real.sum())
  metrics = {
    "loss": math.fsum(rows["loss"].tolist()) / max(count, 1),
    "top1": int(rows["top1"].sum()) / max(count, 1),
    "top5": int(rows["top5"].sum()) / max(count, 1),
    "count": count,
  }
  return metrics, rows
