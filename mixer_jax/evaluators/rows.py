"""Batches of a split on the devices, and what a predict_fn makes of them, fetched as rows."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from mixer_jax import schema
from mixer_jax.data import loading, pipeline
from mixer_jax.parallel import sharding

Rows = dict[str, Any]


def device_batches(
  setup: Any,
  spec: pipeline.SplitSpec,
  source: Any,
  section: schema.Classification | schema.Fewshot,
) -> Iterator[dict[str, jax.Array]]:
  """Yields the split in order, in batches on the devices, padded with mask 0 to whole ones.

  Args:
    setup: the model; a batch's rows are filled up to a multiple of its devices.
    spec, source: the split, and what it was opened as.
    section: the evaluator's, for batch_size and num_workers.
  """
  sharded = setup.shardings.batch
  size = -(-section.batch_size // sharded.mesh.size) * sharded.mesh.size
  rows = sharding.local_rows(sharded, size)
  batches = pipeline.EvalBatches(spec, source, batch_size=section.batch_size, rows=rows)
  with loading.iterate(batches, num_workers=section.num_workers) as local:
    for batch in local:
      setup.serve()
      yield sharding.put_batch(batch, sharded, rows, size)


def collect(
  predict_fn: Callable[[Any], Rows], batches: Iterable[Any], *, batch_size: int
) -> dict[str, np.ndarray]:
  """Returns the rows of all images in the order of the data, as NumPy arrays; of the batches that `fetched` yields."""
  parts = [*fetched(predict_fn, batches, batch_size=batch_size)]
  return {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}


def fetched(
  predict_fn: Callable[[Any], Rows], batches: Iterable[Any], *, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
  """Yields the rows of each batch, without padding, as NumPy arrays.

  Args:
    predict_fn: batch -> rows, of shape (b, ...) each, one of them "mask".
    batches: batches on the devices; rows with mask 0 are left out.
    batch_size: rows of a batch; row r of batch i is row i·batch_size + r of all, its "index".
  """

  def fetch(rows: Rows, number: int) -> dict[str, np.ndarray]:
    part = jax.device_get(rows)
    part["index"] = number * batch_size + np.arange(len(part["mask"]))
    real = part["mask"] > 0
    return {key: value[real] for key, value in part.items()}

  pending, number = None, -1
  for number, batch in enumerate(batches):
    current = predict_fn(batch)
    # Fetching the results of a batch while the next one is computed keeps the device busy.
    if pending is not None:
      yield fetch(pending, number - 1)
    pending = current
  if pending is not None:
    yield fetch(pending, number)
