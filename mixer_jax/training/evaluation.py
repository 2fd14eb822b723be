"""Evaluation of a state: exact over any batch size and number of devices."""

from collections.abc import Callable
from typing import Any

import numpy as np

from mixer_jax.evaluators import classification, fewshot_task
from mixer_jax.evaluators import rows as rows_lib
from mixer_jax.training import experiment
from mixer_jax.training.state import Variables


def evaluation_line(setup: experiment.ModelSetup, results: dict[str, float]) -> str:
  """Returns the printed line of an evaluation, with the count of images and of skipped records."""
  skipped = setup.eval_split.num_examples - int(results["count"])
  reason = (
    "bad records" if setup.eval_split.labels_per_image == 1 else "images without a label, or bad,"
  )
  return (
    f"evaluation {setup.eval_split.split}: top-1 {results['top1']:.4f}  top-5 {results['top5']:.4f}"
    f"  loss {results['loss']:.4f}  over {results['count']} images"
    + (f" ({skipped} {reason} skipped)" if skipped else "")
  )


def evaluate_split(
  setup: experiment.ModelSetup, variables: Variables, source: Any
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
  """Evaluates the evaluation split; see classification.evaluate for what it returns."""
  batches = rows_lib.device_batches(
    setup.eval_split,
    source,
    batch_size=setup.options.evaluation.batch_size,
    batch_sharding=setup.shardings.batch,
    num_workers=setup.options.evaluation.num_workers,
  )
  return classification.evaluate(
    lambda batch: setup.eval_step(variables, batch),
    batches,
    batch_size=setup.options.evaluation.batch_size,
  )


def make_fewshot(setup: experiment.ModelSetup) -> Callable[[Variables], dict[str, float]]:
  """Opens the data of config.fewshot and returns variables -> few-shot accuracies by name.

  Raises:
    InputError: the data cannot be opened, or have several labels an image.
  """
  options = setup.options.fewshot
  task = fewshot_task.open_task(
    setup.eval_split,
    dataset=str(options.dataset),
    data_dir=setup.options.data.data_dir,
    train_split=options.train_split,
    test_split=options.test_split,
    image_ops=options.ops,
    where="config.fewshot.ops",
  )
  features = experiment.make_features_step(setup)

  def evaluate_fewshot(variables: Variables) -> dict[str, float]:
    values = fewshot_task.evaluate(
      task,
      lambda batch: features(variables, batch),
      batch_size=setup.options.evaluation.batch_size,
      batch_sharding=setup.shardings.batch,
      num_workers=setup.options.evaluation.num_workers,
    )
    return dict(values)

  return evaluate_fewshot
