"""Batches of numbered pictures, and whether two are the same."""

import numpy as np

from mixer_jax.data import pipeline, sources
from mixer_jax.data.preprocess import Preprocess
from tests.tfds_sets import Numbered

SIZE = 8


def spec(num_examples, text="decode|inception_crop(area_min=50)", **changes):
  fields = dict(
    dataset="numbered", data_dir=None, split="train", label=None, num_examples=num_examples,
    num_classes=1000, labels_per_image=1, ops=Preprocess(text, (SIZE, SIZE, 3)), on_bad_record="stop",
  )  # fmt: skip
  return pipeline.SplitSpec(**{**fields, **changes})


def train_batches(
  num_examples=50, source=None, seed=0, batch_size=12, rows=None, total_steps=100, **changes
):
  rows = np.arange(batch_size) if rows is None else rows
  return pipeline.TrainBatches(
    spec(num_examples, **changes), source or numbered(num_examples), seed=seed, batch_size=batch_size, rows=rows,
    total_steps=total_steps,
  )  # fmt: skip


def eval_batches(source, batch_size, rows=None, **changes):
  choice = spec(len(source), **changes)
  return pipeline.EvalBatches(
    choice, source, batch_size=batch_size, rows=np.arange(rows or batch_size)
  )


def numbered(length, bad=None):
  return sources.Source("numbered train", Numbered(length, bad))


def assert_same(a, b):
  for key in ("image", "label", "mask"):
    np.testing.assert_array_equal(a[key], b[key])
