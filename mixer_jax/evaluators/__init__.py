"""What is measured of a model while it trains and after: one class for each type of config.evaluators.

An evaluator is built with what it measures, whose data it opens, and is called with (variables, step) as
often as one likes. `title` and `line` say what was measured, `SCORES` which of its metrics, the larger the
better, may choose the best checkpoint.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from etils import epath

from mixer_jax import configuration, schema
from mixer_jax.errors import InputError
from mixer_jax.evaluators.classification import Classification
from mixer_jax.evaluators.fewshot_task import Fewshot
from mixer_jax.evaluators.pictures import Pictures


class Evaluator(Protocol):
  """A type of evaluator.

  Attributes:
    every_steps: 0: not while training.
    title: what it measures ("on digits test").
    sources: the key of its section that names a split -> what was opened.
  """

  SCORES: ClassVar[tuple[str, ...]]
  every_steps: int
  title: str
  sources: Mapping[str, Any]

  def __call__(self, variables: Any, step: int) -> Iterable[tuple[str, float]]:
    """Yields (metric, value)."""
    ...

  def line(self, values: Mapping[str, float]) -> str:
    """Returns what is printed of these metrics."""
    ...


TYPES: dict[str, Any] = {
  "classification": Classification,
  "fewshot": Fewshot,
  "pictures": Pictures,
}


def build(
  setup: Any,
  sections: Mapping[str, Any],
  directory: epath.Path | None,
  class_names: Sequence[str] = (),
) -> dict[str, Evaluator]:
  """Returns the evaluators of these sections by name, with their data opened.

  Args:
    setup: the model (experiment.ModelSetup): options, shardings, eval_step, make_features_step.
    sections: of config.evaluators.
    directory: of the run; None: there is none.
    class_names: of the model, which the labels of data with names follow; () if it has none.

  Raises:
    InputError: data that cannot be opened or evaluated.
  """
  built: dict[str, Evaluator] = {}
  # Pictures are of what another evaluator measured.
  for name in sorted(sections, key=lambda name: sections[name].type == "pictures"):
    where, kind = f"config.evaluators.{name}.", TYPES[sections[name].type]
    one = built[name] = kind(setup, sections[name], where, built, directory)
    if isinstance(one, Classification):  # few-shot has classes of its own
      one.source.number_classes_as(class_names)
  return built


def opened(evaluators: Mapping[str, Evaluator]) -> dict[str, Any]:
  """Returns what they have opened, by the key of the configuration that names the split."""
  return {
    f"evaluators.{name}.{key}": source
    for name, one in evaluators.items()
    for key, source in one.sources.items()
  }


def in_training(options: schema.Options) -> dict[str, Any]:
  """Returns the sections of the evaluators that a run has while it trains."""
  every = options.evaluators

  def on(section: Any) -> bool:
    if isinstance(section, schema.Pictures) and section.every_steps is None:
      section = every.get(section.of, section)  # as often as the evaluator that they follow
    return section.every_steps != 0

  return {name: section for name, section in every.items() if on(section)}


def best(options: schema.Options) -> tuple[str, str]:
  """Returns the evaluator and the metric of config.best; raises InputError if there are none."""
  known = [
    f"{name}/{score}"
    for name, section in in_training(options).items()
    for score in TYPES[section.type].SCORES
  ]
  if options.best not in known:
    none = " No evaluator that scores is on: give one its every_steps."
    raise InputError(
      f"config.best is {options.best!r}, which is no score that is measured while training."
      f"{configuration.nearest(options.best, known) or none}"
    )
  name, _, metric = options.best.partition("/")
  return name, metric


def measure(options: schema.Options, evaluators: Mapping[str, Evaluator]) -> str:
  """Returns what config.best measures: evaluator, metric, and all that its value depends on, as text.

  Only scores of one measure can be compared. Of the data, a few records stand for all.
  """
  section = dataclasses.asdict(options.evaluators[best(options)[0]])
  how = {k: v for k, v in section.items() if k not in _SAME_RESULT}
  sources = evaluators[best(options)[0]].sources
  records = {key: source.fingerprint() for key, source in sources.items()}
  return f"{options.best} {json.dumps(how | {'records': records}, sort_keys=True)}"


_SAME_RESULT = ("type", "every_steps", "batch_size", "num_workers", "dataset", "data_dir")
