"""Splits as sections of the configuration name them."""

from typing import Any

from mixer_jax import schema
from mixer_jax.data import pipeline
from mixer_jax.data.preprocess import Preprocess


def make(
  options: schema.Options, section: schema.Data | schema.Classification, where: str, **fields: Any
) -> pipeline.SplitSpec:
  """Returns the split of config.data or of an evaluator, unopened.

  Args:
    options: the configuration.
    section: which split, and how its images are processed.
    where: what stands before its keys in messages: "config.data.".
    fields: further fields of the SplitSpec.

  Raises:
    InputError: `ops` make several views where one trains, or draw frames at random where one evaluates.
  """
  ops = Preprocess(section.ops, options.input_shape, f"{where}ops")
  training = isinstance(section, schema.Data)
  ops.check_views(several=not training, drawn=training)
  return pipeline.SplitSpec(
    dataset=section.dataset or options.data.dataset,
    data_dir=section.data_dir or options.data.data_dir,
    split=section.split,
    label=section.label,
    labels_per_image=section.labels_per_image,
    num_examples=section.num_examples,
    num_classes=options.num_classes,
    ops=ops,
    on_bad_record=options.data.on_bad_record,
    where=where,
    **fields,
  )
