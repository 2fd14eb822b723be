"""Few-shot accuracy on a data set: opened and drawn once, evaluated as often as one likes."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from mixer_jax import schema
from mixer_jax.data import pipeline, sources
from mixer_jax.data.preprocess import Preprocess
from mixer_jax.errors import BadRecordError, InputError
from mixer_jax.evaluators import fewshot
from mixer_jax.evaluators import rows as rows_lib


class Selected:
  """The examples of a source at some indices, as a source."""

  def __init__(self, source: sources.Source, indices: Int[np.ndarray, " n"]):
    self.name, self.num_classes = source.name, source.num_classes
    self._source, self._indices = source, indices

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, i: int) -> dict[str, Any]:
    return self._source[int(self._indices[i])]


class Fewshot:
  """Linear few-shot accuracy; see __init__.py.

  Attributes:
    train, test: (split, source) of what is loaded; of the training split only the drawn images.
    drawn: which images train which classifier.
    num_train: images of the whole training split.
  """

  SCORES = tuple(f"{shots}shot" for shots in fewshot.SHOTS)

  def __init__(self, setup: Any, section: schema.Fewshot, where: str, *_: Any):
    """Opens both splits and draws the training images by their labels.

    Raises:
      InputError: no such data, or not of images with one label each.
    """
    self._setup, self._section, data = setup, section, setup.options.data
    self._features_step = setup.make_features_step()
    ops = Preprocess(section.ops, setup.options.input_shape, f"{where}ops")
    ops.check_views(several=False, drawn=False)
    place: dict[str, Any] = {
      "dataset": section.dataset or data.dataset,
      "data_dir": section.data_dir or data.data_dir,
      "label": data.label if section.dataset in (None, data.dataset) else None,
    }
    train, test = (
      sources.open_source(split=split, **place)
      for split in (section.train_split, section.test_split)
    )
    if not train.num_classes:
      raise InputError(f"few-shot needs data with one class label an image; {train.name} has none.")
    labels = read_labels(train, on_bad_record=data.on_bad_record)
    self.sources = {"train_split": train, "test_split": test}
    self.num_train, self.drawn = len(train), fewshot.draw(labels, num_classes=train.num_classes)

    def opened(split: str, source: Any) -> tuple[pipeline.SplitSpec, Any]:
      spec = pipeline.SplitSpec(
        split=split,
        labels_per_image=1,
        num_examples=len(source),
        num_classes=self.drawn.num_classes,
        ops=ops,
        on_bad_record=data.on_bad_record,
        **place,
      )
      spec.check_ops(source)
      return spec, source

    self.train = opened(section.train_split, Selected(train, self.drawn.rows))
    self.test = opened(section.test_split, test)
    self.every_steps = section.every_steps
    self.title = f"on {place['dataset']}"

  def __call__(self, variables: Any, step: int) -> Iterator[tuple[str, float]]:
    """Yields (name, value) as fewshot.evaluate does."""
    del step
    yield from fewshot.evaluate(
      lambda batch: self._features_step(variables, batch),
      rows_lib.device_batches(self._setup, *self.train, self._section),
      rows_lib.device_batches(self._setup, *self.test, self._section),
      self.drawn,
      batch_size=self._section.batch_size,
    )

  def line(self, values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {values[name]:.4f}" for name in self.SCORES)


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
