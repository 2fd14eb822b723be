"""A data set for few-shot evaluation: opened and drawn once, evaluated as often as one likes."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Int

from mixer_jax.data import ops, pipeline, sources
from mixer_jax.errors import BadRecordError, InputError
from mixer_jax.evaluators import fewshot, rows


class Selected:
  """The examples of a source at some indices, as a source."""

  def __init__(self, source: sources.Source, indices: Int[np.ndarray, " n"]):
    self.name, self.num_classes = source.name, source.num_classes
    self._source, self._indices = source, indices

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, i: int) -> dict[str, Any]:
    return self._source[int(self._indices[i])]


@dataclasses.dataclass(frozen=True)
class Task:
  """Training images drawn from one split, tested on another.

  Attributes:
    train_split, test_split: what is loaded; of the training split only the drawn images.
    train_source, test_source: what they were opened as.
    drawn: which images train which classifier.
    num_train: images of the whole training split.
  """

  train_split: pipeline.SplitSpec
  test_split: pipeline.SplitSpec
  train_source: Any
  test_source: Any
  drawn: fewshot.Draw
  num_train: int


def open_task(
  like: pipeline.SplitSpec,
  *,
  dataset: str,
  data_dir: str | None,
  train_split: str,
  test_split: str,
  image_ops: str,
  where: str = "ops",
) -> Task:
  """Opens both splits and draws the training images by their labels.

  Args:
    like: a split of the run, for the image size and what to do with bad records.
    dataset, data_dir: see sources.open_source.
    train_split, test_split: splits of the data set.
    image_ops: pre-processing of both; the reference's is "decode|resize|central_crop".
    where: what to call `image_ops` in messages.

  Raises:
    InputError: no such data, or not of images with one label each.
  """
  label = like.label if dataset == like.dataset else None
  train, test = (
    sources.open_source(dataset=dataset, data_dir=data_dir, split=s, label=label)
    for s in (train_split, test_split)
  )
  if not train.num_classes:
    raise InputError(f"few-shot needs data with one class label an image; {train.name} has none.")
  drawn = fewshot.draw(
    read_labels(train, on_bad_record=like.on_bad_record), num_classes=train.num_classes
  )

  def split(name: str, num_examples: int) -> pipeline.SplitSpec:
    return dataclasses.replace(
      like,
      dataset=dataset,
      data_dir=data_dir,
      split=name,
      label=label,
      labels_per_image=1,
      num_examples=num_examples,
      num_classes=drawn.num_classes,
      ops=ops.Preprocess(image_ops, like.ops.input_shape, where),
    )

  return Task(
    train_split=split(train_split, len(drawn.rows)),
    test_split=split(test_split, len(test)),
    train_source=Selected(train, drawn.rows),
    test_source=test,
    drawn=drawn,
    num_train=len(train),
  )


def read_labels(source: sources.Source, *, on_bad_record: str) -> Int[np.ndarray, " n"]:
  """Returns the label of every example, −1 for bad records that are skipped; decodes no image.

  Raises:
    InputError: a bad record where those stop the run, or images with several labels.
  """
  labels = np.full(len(source), -1)
  for i in range(len(source)):
    try:
      label = source[i]["label"]
      if np.ndim(label):
        raise InputError(f"few-shot needs data with one label an image; {source.name} has several.")
      labels[i] = label
    except BadRecordError as e:
      if on_bad_record == "stop":
        raise InputError(f"bad record {i} of {source.name}: {e}") from e
  return labels


def evaluate(
  task: Task,
  predict_fn: Callable[[Any], rows.Rows],
  *,
  batch_size: int,
  batch_sharding: NamedSharding,
  num_workers: int,
) -> Iterator[tuple[str, float]]:
  """Yields (name, value) as fewshot.evaluate does.

  Args:
    task: the opened data.
    predict_fn: batch -> rows of pre_logits, label and mask.
    batch_size, batch_sharding, num_workers: see rows.device_batches.
  """

  def batches(split: pipeline.SplitSpec, source: Any) -> Iterator[Any]:
    return rows.device_batches(
      split,
      source,
      batch_size=batch_size,
      batch_sharding=batch_sharding,
      num_workers=num_workers,
    )

  yield from fewshot.evaluate(
    predict_fn,
    batches(task.train_split, task.train_source),
    batches(task.test_split, task.test_source),
    task.drawn,
    batch_size=batch_size,
  )
