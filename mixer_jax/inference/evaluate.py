"""Evaluation of a trained model by its evaluators: exact over any batch size and number of devices."""

import json
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from mixer_jax import configuration, files, inference, schema, weights
from mixer_jax.data import sources
from mixer_jax.errors import InputError
from mixer_jax.evaluators import Classification, best, build, confusion
from mixer_jax.workdir import directory as workdirs
from mixer_jax.workdir import metrics


def choose(
  options: schema.Options,
  *,
  evaluators: Sequence[str] | None = None,
  dataset: str | None = None,
  split: str | None = None,
  data_dir: str | None = None,
) -> dict[str, Any]:
  """Returns the sections of the evaluators that are asked for, by name.

  Args:
    options: the configuration.
    evaluators: names in config.evaluators. Default: all evaluators of type classification.
    dataset: a name in the table of data sets, or the directory of a prepared one, to use instead.
    split: of the data set. Default: its test split.
    data_dir: where TFDS keeps the data set. Default: as in the configuration.

  Raises:
    InputError: no such evaluator, data set or split, or one with other classes than the model has.
  """
  if dataset is not None:
    return {"evaluation": _on_dataset(options, dataset, split, data_dir or options.data.data_dir)}
  if split is not None:
    raise InputError("--split needs --dataset; a configuration's own are those of its evaluators.")
  known = options.evaluators
  for name in evaluators or ():
    if name not in known:
      raise InputError(f"--evaluators: there is no {name!r}.{configuration.nearest(name, known)}")
  every = [n for n, s in known.items() if isinstance(s, schema.Classification)]
  return {name: known[name] for name in evaluators or every}


def _on_dataset(
  options: schema.Options, dataset: str, split: str | None, data_dir: str | None
) -> schema.Classification:
  """Returns an evaluator of another data set, with the preprocessing of config.best's evaluator."""
  entry = sources.describe(dataset, data_dir)
  name = split or entry.test
  if name is None:
    known = ", ".join(entry.splits)
    raise InputError(f"data set {dataset!r} has no test split; give --split, one of {known}.")
  source = sources.open_source(dataset=dataset, data_dir=data_dir, split=name, label=None)
  if source.num_classes not in (None, options.num_classes):
    raise InputError(
      f"{source.name} has {source.num_classes} classes, the model {options.num_classes}: its head does not fit. "
      "Fine-tune it first (configs/finetune.py)."
    )
  like = options.evaluators[best(options)[0]]
  return schema.Classification(
    dataset=dataset,
    data_dir=data_dir,
    split=name,
    labels_per_image=entry.labels_per_image,
    num_examples=len(source),
    ops=like.ops,
    batch_size=like.batch_size,
    num_workers=like.num_workers,
  )


def evaluate(
  trained: inference.Trained,
  sections: dict[str, Any],
  *,
  workdir: str | None = None,
  details: str | None = None,
  record: bool = False,
) -> dict[str, dict[str, float]]:
  """Evaluates a model by the evaluators of these sections, prints the results and returns the metrics by evaluator.

  Args:
    workdir: the run's directory. None if the model does not come from a run.
    details: directory for the accuracy of each class and the confusions, which are printed too.
    record: add the results to the run's evaluations.jsonl, where tools.paper looks for them.

  Raises:
    InputError: data that cannot be evaluated, or nowhere to write.
  """
  run = None if workdir is None else workdirs.path_of(workdir)
  written = None if details is None else _details_directory(details, sections)
  if record and (run is None or trained.step is None):
    raise InputError("--record needs a checkpoint of a run: give --workdir, without --weights.")
  if record and (others := [n for n, s in sections.items() if s.type != "classification"]):
    raise InputError(f"--record is for evaluators of type classification, not for {others}.")
  if trained.step is None:
    options = trained.setup.options
    metrics.log(
      f"{trained.name}: {trained.setup.title}, {options.size} px, normalize={options.normalize}, "
      f"{options.evaluators[best(options)[0]].ops}"
    )
  found, step = {}, -1 if trained.step is None else trained.step
  for name, one in build(trained.setup, sections, run, trained.class_names).items():
    found[name] = dict(one(trained.variables, step))
    metrics.log(f"{trained.name} {name} {one.title}: {one.line(found[name])}")
    if not isinstance(one, Classification) or jax.process_index() > 0:
      continue
    if record and run is not None:
      line = {"step": step, **measured(trained.setup.options, sections[name]), **found[name]}
      metrics.log(f"recorded: {_record(run, line)}")
    if written is not None:
      rows, num_classes = one.rows(trained.variables, step), trained.setup.options.num_classes
      names = one.source.class_names or inference.class_names(trained)
      counted = confusion.count(rows, num_classes, names)
      metrics.log(confusion.table(counted))
      metrics.log(f"written: {', '.join(str(p) for p in confusion.save(written, counted))}")
  if (released := weights.RELEASED.get(trained.name)) and released.top1:
    crop = f" with {released.crop}" if released.crop else ""
    metrics.log(f"published: ImageNet top-1 {released.top1} %{crop} ({released.source})")
  return found


def measured(options: schema.Options, section: schema.Classification) -> dict[str, str]:
  """Returns what an evaluator measures, as its records say: data and preprocessing."""
  dataset = section.dataset or options.data.dataset
  return {"dataset": dataset, "split": section.split, "ops": section.ops}


def _record(directory: epath.Path, line: dict[str, Any]) -> epath.Path:
  """Adds a line to the workdir's evaluations.jsonl: what was evaluated, how, and the result."""
  path = directory / "evaluations.jsonl"
  text = f"{json.dumps(line)}\n"
  try:
    if "://" not in str(path):
      with path.open("a") as file:
        file.write(text)
    else:  # object stores cannot append
      path.write_text(f"{path.read_text() if path.exists() else ''}{text}")
  except OSError as e:
    raise InputError(f"--record: {path} cannot be written: {e}") from e
  return path


def _details_directory(details: str, sections: dict[str, Any]) -> epath.Path:
  """Creates the directory, before the evaluation that it is for."""
  several = [getattr(section, "labels_per_image", 0) for section in sections.values()]
  if several != [1]:
    raise InputError(
      "--details needs one evaluator of data with one label an image; give --evaluators=NAME."
    )
  directory = files.path_of(details, "--details")
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise InputError(f"--details={details} cannot be written: {e}") from e
  return directory
