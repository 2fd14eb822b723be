"""Evaluation of a state or of a finished model: exact over any batch size and number of devices."""

import json
from typing import Any

import jax
from etils import epath

from mixer_jax import inference, weights
from mixer_jax.data import sources
from mixer_jax.errors import InputError
from mixer_jax.evaluators import confusion
from mixer_jax.training import evaluation
from mixer_jax.workdir import directory as workdirs
from mixer_jax.workdir import metrics


def evaluate(
  *,
  workdir: str | None,
  config: Any | None,
  which: str | int = "newest",
  weights_file: str | None = None,
  dataset: str | None = None,
  split: str | None = None,
  data_dir: str | None = None,
  details: str | None = None,
  record: bool = False,
) -> dict[str, float]:
  """Evaluates a checkpoint of a workdir, or a weights file.

  Args:
    workdir: a run's directory; its config.json is the configuration unless `config` is given.
    config: the configuration; needed with `weights_file` alone.
    which: the checkpoint: "newest", "best", or its step.
    weights_file: name, address or file of parameters, instead of a checkpoint.
    dataset: name of the table of data sets, or directory of a prepared one; None: the
      configuration's evaluation split.
    split: of the data set; None: the one that is reported.
    data_dir: where TFDS keeps it; the configuration's own for its own data.
    details: directory for the accuracy of each class and the confusions, which are printed too.
    record: add the result to the workdir's evaluations.jsonl, where tools.paper looks for it.

  Raises:
    InputError: no such run, checkpoint or file, or parameters that do not fit the model.
  """
  directory = None if details is None else _details_directory(details)
  if record and (workdir is None or weights_file is not None):
    raise InputError("--record needs a checkpoint of a run: give --workdir, without --weights.")
  trained = inference.load(
    workdir=workdir,
    config=config,
    which=which,
    weights_file=weights_file,
    evaluation=_evaluation_on(dataset, split, data_dir),
  )
  setup = trained.setup
  if directory is not None and setup.eval_split.labels_per_image > 1:
    raise InputError("--details needs data with one label an image.")
  source = setup.eval_split.open()
  num_classes = setup.options.num_classes
  if dataset is not None and source.num_classes not in (None, num_classes):
    raise InputError(
      f"{source.name} has {source.num_classes} classes, the model {num_classes}: its head is for others. "
      "Fine-tune it first (configs/finetune.py)."
    )
  results, rows = evaluation.evaluate_split(setup, trained.variables, source)
  metrics.say(
    f"{trained.name} on {setup.eval_split.dataset} {evaluation.evaluation_line(setup, results)}"
  )
  if record and workdir is not None and jax.process_index() == 0:
    metrics.say(f"recorded: {_record(workdirs.path_of(workdir), trained, results)}")
  if (released := weights.RELEASED.get(str(weights_file))) and released.top1:
    crop = f" with {released.crop}" if released.crop else ""
    metrics.say(f"published: ImageNet top-1 {released.top1} %{crop} ({released.source})")
  if directory is not None and jax.process_index() == 0:
    counted = confusion.count(rows, setup.options.num_classes, inference.class_names(trained))
    metrics.say(confusion.table(counted))
    paths = confusion.save(directory, counted)
    metrics.say(f"written: {', '.join(str(p) for p in paths)}")
  return results


def _evaluation_on(dataset: str | None, split: str | None, data_dir: str | None) -> dict[str, Any]:
  """Returns the keys of config.evaluation that name this data set and split; raises InputError."""
  if dataset is None:
    if split is not None:
      raise InputError("--split needs --dataset; a configuration's own is config.evaluation.split.")
    return {}
  entry = sources.describe(dataset, data_dir)
  name = split or entry.test
  if name is None:
    known = ", ".join(entry.splits)
    raise InputError(f"data set {dataset!r} has no test split; give --split, one of {known}.")
  if name in entry.splits:
    num_examples = entry.splits[name].num_examples
  else:  # in TFDS's syntax
    num_examples = len(
      sources.open_source(dataset=dataset, data_dir=data_dir, split=name, label=None)
    )
  return {
    "dataset": dataset,
    "split": name,
    "label": None,
    "num_examples": num_examples,
    "labels_per_image": entry.labels_per_image,
  }


def _record(
  directory: epath.Path, trained: inference.Trained, results: dict[str, float]
) -> epath.Path:
  """Adds a line to the workdir's evaluations.jsonl: what was evaluated, how, and the result."""
  path, split = directory / "evaluations.jsonl", trained.setup.eval_split
  line = {
    "step": trained.step,
    "dataset": split.dataset,
    "split": split.split,
    "ops": trained.setup.options.evaluation.ops,
    **results,
  }
  before = path.read_text() if path.exists() else ""
  try:
    path.write_text(f"{before}{json.dumps(line)}\n")  # object stores cannot append
  except OSError as e:
    raise InputError(f"--record: {path} cannot be written: {e}") from e
  return path


def _details_directory(details: str) -> epath.Path:
  """Creates the directory, before the evaluation that it is for."""
  directory = epath.Path(details).expanduser()
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise InputError(f"--details={details} cannot be written: {e}") from e
  return directory
