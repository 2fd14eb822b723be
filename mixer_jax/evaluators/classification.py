"""Exact classification metrics over a split, whatever the batch size and the number of devices."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from mixer_jax import schema
from mixer_jax.data import splits
from mixer_jax.evaluators import rows as rows_lib
from mixer_jax.evaluators import views
from mixer_jax.evaluators.rows import Rows


class Classification:
  """Top-1, top-5 and loss over a split; see __init__.py."""

  SCORES = ("top1", "top5")

  def __init__(self, setup: Any, section: schema.Classification, where: str, *_: Any):
    self._setup, self._section = setup, section
    self.split = splits.make(setup.options, section, where)
    self.source = self.split.open()
    self.sources = {"split": self.source}
    self.every_steps = section.every_steps
    self.title = f"on {self.split.dataset} {self.split.split}"
    self._probabilities_step = setup.make_probabilities_step()  # for several views
    self._measured: tuple[int | None, Rows] = None, {}

  def rows(self, variables: Any, step: int) -> Rows:
    """Returns rows of loss, top1, top5, prediction, label and index of all examples, in their order.

    They are computed once a step, for whoever asks. Of several views the probabilities are averaged.
    """
    if self._measured[0] != step:
      batches = rows_lib.device_batches(self._setup, self.split, self.source, self._section)
      size = self._section.batch_size
      if self.split.ops.views == 1:
        eval_step = self._setup.eval_step
        rows = rows_lib.collect(lambda b: eval_step(variables, b), batches, batch_size=size)
      else:
        rows = self._of_views(variables, batches, size)
      self._measured = step, rows
    return self._measured[1]

  def _of_views(self, variables: Any, batches: Iterator[Any], batch_size: int) -> Rows:
    step = self._probabilities_step
    return views.score(
      rows_lib.fetched(lambda b: step(variables, b), batches, batch_size=batch_size),
      num_examples=self.split.num_examples,
      views=self.split.ops.views,
      loss=self._setup.options.loss,
    )

  def __call__(self, variables: Any, step: int) -> Iterator[tuple[str, float]]:
    """Yields loss (mean, summed exactly), top1, top5 (shares) and count (images, or videos)."""
    rows = self.rows(variables, step)
    count = len(rows["mask"])
    yield "loss", math.fsum(rows["loss"].tolist()) / max(count, 1)
    yield "top1", int(rows["top1"].sum()) / max(count, 1)
    yield "top5", int(rows["top5"].sum()) / max(count, 1)
    yield "count", count

  def line(self, values: Mapping[str, float]) -> str:
    skipped = self.split.num_examples - int(values["count"])
    several = self.split.labels_per_image > 1
    what = self._setup.options.examples
    reason = f"{what} without a label, or bad," if several else "bad records"
    return (
      f"top-1 {values['top1']:.4f}  top-5 {values['top5']:.4f}  loss {values['loss']:.4f}"
      f"  over {values['count']} {what}" + (f" ({skipped} {reason} skipped)" if skipped else "")
    )
