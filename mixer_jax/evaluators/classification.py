"""Exact classification metrics over a split, whatever the batch size and the number of devices."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from mixer_jax.evaluators import rows as rows_lib
from mixer_jax.evaluators.rows import Rows


def evaluate(
  predict_fn: Callable[[Any], Rows], batches: Iterable[Any], *, batch_size: int
) -> tuple[Rows, Rows]:
  """Evaluates all batches.

  Args:
    predict_fn: batch -> rows of loss, top1, top5, prediction, label and mask, of shape (b, ...) each.
    batches: batches on the devices; rows with mask 0 count for nothing.
    batch_size: examples of a batch; row r of batch i is example i·batch_size + r of the split.

  Returns:
    (metrics, rows): loss (mean, summed exactly), top1, top5 (shares) and count (images), and the rows
    of all images in the order of the data, without padding, with their "index" in the split.
  """
  rows = rows_lib.collect(predict_fn, batches, batch_size=batch_size)
  count = len(rows["mask"])
  metrics = {
    "loss": math.fsum(rows["loss"].tolist()) / max(count, 1),
    "top1": int(rows["top1"].sum()) / max(count, 1),
    "top5": int(rows["top5"].sum()) / max(count, 1),
    "count": count,
  }
  return metrics, rows
