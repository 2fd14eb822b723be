"""Results of the transfer protocol (tools/transfer.py) for the rows of tables 2 and 3, and its commands."""

import pathlib
import shlex
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from mixer_jax import configuration, schema, weights
from mixer_jax.data import datasets
from mixer_jax.errors import InputError
from mixer_jax.tools import config_files
from mixer_jax.tools.paper_tables import rows
from mixer_jax.tools.paper_tables.comparison import Exclusion
from mixer_jax.tools.paper_tables.results import Results, Run
from mixer_jax.tools.paper_tables.rows import Pretraining
from mixer_jax.tools.sweep import protocol

IMAGENET, REAL = protocol.FIVE[0], "imagenet2012_real"
CONFIGS = {"table2": "configs/finetune.py", "table3": "configs/finetune_table3.py"}
"""Table, and directory below RESULTS -> configuration of fine-tuning."""
_FREE = ("evaluators.fewshot", "evaluators.pictures")  # not part of the protocol
_RELEASED = {"ImageNet": "imagenet1k", "ImageNet-21k": "imagenet21k"}


class Job(NamedTuple):
  """A row of table 2 or 3: a pre-training, fine-tuned at an image size.

  Attributes:
    table: "table2" or "table3".
    pretraining: where it starts.
    size: of the images in pixels; VTAB-1k has its own sizes.
    run: the user's own run of that pre-training, if there is one.
  """

  found: Results
  table: str
  pretraining: Pretraining
  size: int
  run: Run | None

  @property
  def source(self) -> str | None:
    """The weights: the run's, else those that the authors released.

    Released ViTs and ResNets are from other papers, which trained them differently from the rows of this one.
    """
    if self.run is not None:
      return str(self.run.path)
    family, _, variant = self.pretraining.model.partition("-")
    name = f"{_RELEASED.get(self.pretraining.dataset)}/{family}-{variant.replace('/', '_')}"
    return name if family == "Mixer" and name in weights.RELEASED else None

  def read(self) -> tuple[dict[str, float], list[Exclusion]]:
    """Returns the finished means over seeds in per cent, by metric, and the runs that were not used.

    Metrics are "imagenet", "real", "avg5" and "vtab": top-1 after fine-tuning.
    """
    if (source := self.source) is None:
      return {}, []
    runs, left_out = _matching(self.found, source, CONFIGS[self.table])
    top1 = {name: run.top1 for name, run in runs.items() if run.top1 is not None}
    five = [protocol.Transfer(source, d, self.size) for d in protocol.FIVE]
    sizes = {d: protocol.size_of(d, None, (224, 224)) for d in datasets.VTAB}
    vtab = [protocol.Transfer(source, d, size) for d, size in sizes.items()]
    sweep = protocol.Sweep([*five, *vtab])
    means = {row.dataset: row.mean for row in sweep.table(top1) if len(row.top1) == sweep.num_seeds}
    reported = sweep.reported(five[0], top1)
    means[REAL] = _mean_on_real([runs[r.name] for r in reported if r.name in runs])
    titles = {"imagenet": IMAGENET, "real": REAL, "avg5": "Avg 5", "vtab": "VTAB-1k"}
    values = {metric: means.get(title) for metric, title in titles.items()}
    return {metric: 100 * v for metric, v in values.items() if v is not None}, left_out

  def commands(self, missing: Sequence[str], imagenet_is_done: bool) -> list[str]:
    """Returns the commands that produce these metrics."""
    commands, source, directory = [], self.source, self.found.directory
    if source is None:
      source = f"{directory}/pretrain/{self.pretraining.name}"
      commands.append(self.pretraining.train_command(directory))
    results = f"{directory}/{self.table}"
    flags = shlex.join([f"--weights={source}", f"--results={results}"])
    tool = f"python -m mixer_jax.tools.transfer {flags}"
    if self.table != "table2":  # whose configuration is the default
      tool += f" --config={CONFIGS[self.table]}"
    if "avg5" in missing:
      commands.append(f"{tool} --datasets=five --size={self.size}")
    elif not imagenet_is_done:  # ReaL is measured on ImageNet's runs
      commands.append(f"{tool} --datasets={IMAGENET} --size={self.size}")
    if "real" in missing:
      name = protocol.Transfer(source, IMAGENET, self.size).name
      runs = f"{shlex.quote(f'{results}/{name}')}/test-*"
      evaluation = f"python eval.py --workdir=$run --dataset={REAL} --record"
      commands.append(f"for run in {runs}; do {evaluation}; done")
    if "vtab" in missing:
      commands.append(f"{tool} --datasets=vtab")
    return commands


def _mean_on_real(runs: Sequence[Run]) -> float | None:
  """Returns the mean over all seeds of the last top-1 of final checkpoints, or None unless all seeds have one."""
  values = []
  for run in runs:
    evaluations = [e for e in run.evaluations if (e["dataset"], e["step"]) == (REAL, run.last_step)]
    values += [e["top1"] for e in evaluations[-1:]]
  return statistics.mean(values) if len(values) == protocol.NUM_SEEDS else None


def _matching(found: Results, source: str, file: str) -> tuple[dict[str, Run], list[Exclusion]]:
  """Returns {protocol's name: run} of the runs that start from these weights, and those left out."""
  runs: dict[str, Run] = {}
  left_out = []
  for run in found.runs:
    if not _starts_from(run, source):
      continue
    name = _in_protocol(run, source).name
    try:
      config = _config(run, file)
    except InputError as e:
      left_out.append(Exclusion(str(run.path), f"not a run of the protocol: {e}"))
      continue
    if changed := configuration.differences(run.config, config, (*config.may_change, *_FREE)):
      reason = f"another configuration than {file}: {rows.some(changed)}"
    elif run.top1 is None:
      reason = f"half a run: step {run.last_step} of {config.total_steps}"
    elif name in runs:
      reason = f"{runs[name].path} is the same and was used"
    else:
      runs[name] = run
      continue
    left_out.append(Exclusion(str(run.path), reason))
  return runs, left_out


def _starts_from(run: Run, source: str) -> bool:
  own = run.value("init.weights")
  if own is None or own == source or own in weights.RELEASED:
    return own == source
  return pathlib.Path(own).expanduser().resolve() == pathlib.Path(source).resolve()


def _in_protocol(run: Run, source: str) -> protocol.Run:
  """Returns the protocol's run that has this run's data set, size, learning rate, seed and split."""
  size = schema.joined(*schema.sides(run.value("image_size")))
  transfer = protocol.Transfer(source, run.value("data.dataset"), size)
  evaluator, _, _ = run.value("best").partition("/")
  eval_split = "dev" if run.value(f"evaluators.{evaluator}.split") == "dev" else "test"
  return protocol.Run(transfer, run.value("learning_rate"), run.value("seed"), eval_split)


def _config(run: Run, file: str) -> Any:
  """Returns the configuration that the protocol has for such a run."""
  asked = _in_protocol(run, run.value("init.weights"))
  config = config_files.load(f"{file}:{asked.argument}")
  config.seed = asked.seed
  return config
