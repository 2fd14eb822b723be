"""What the transfer protocol (tools/transfer.py) and later evaluations say of a pre-trained model."""

import dataclasses
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from mixer_jax import schema, weights
from mixer_jax.data import datasets
from mixer_jax.errors import InputError
from mixer_jax.tools import config_files
from mixer_jax.tools.paper_tables import rows
from mixer_jax.tools.paper_tables.comparison import Exclusion, MissingResult
from mixer_jax.tools.paper_tables.results import Results, Run
from mixer_jax.tools.paper_tables.rows import Pretraining
from mixer_jax.tools.sweep import protocol

IMAGENET, REAL = protocol.FIVE[0], "imagenet2012_real"
_RELEASED = {"ImageNet": "imagenet1k", "ImageNet-21k": "imagenet21k"}


@dataclasses.dataclass(frozen=True)
class Setting:
  """How a table fine-tunes: the configuration's file, and the results' directory below RESULTS."""

  file: str
  directory: str


TABLE2 = Setting("configs/finetune.py", "table2")
TABLE3 = Setting("configs/finetune_table3.py", "table3")


@dataclasses.dataclass(frozen=True)
class TransferResult:
  """Means over seeds in per cent, after fine-tuning; None: not finished.

  Attributes:
    imagenet, real, avg5, vtab: top-1.
    source: the weights, None: there are none yet.
    left_out: runs that were found and not used.
  """

  imagenet: float | None = None
  real: float | None = None
  avg5: float | None = None
  vtab: float | None = None
  source: str | None = None
  left_out: list[Exclusion] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Job:
  """A row of table 2 or 3: a pre-training, fine-tuned at an image size.

  Attributes:
    found: the results.
    pretraining: where it starts.
    size: of the images in pixels; VTAB-1k has its own sizes.
    setting: the table's.
    run: the user's own run of that pre-training, if there is one.
  """

  found: Results
  pretraining: Pretraining
  size: int
  setting: Setting
  run: Run | None

  @property
  def source(self) -> str | None:
    """The weights: the run's, else those that the authors released.

    Released ViTs and ResNets are other papers', trained otherwise than the rows of this one.
    """
    if self.run is not None:
      return str(self.run.path)
    family, _, variant = self.pretraining.model.partition("-")
    name = f"{_RELEASED.get(self.pretraining.dataset)}/{family}-{variant.replace('/', '_')}"
    return name if family == "Mixer" and name in weights.RELEASED else None

  def read(self) -> TransferResult:
    """Returns what is known of these weights."""
    if (source := self.source) is None:
      return TransferResult()
    runs, left_out = _matching(self.found, source, self.setting)
    results = {name: run.top1 for name, run in runs.items() if run.top1 is not None}
    five = [protocol.Transfer(source, d, self.size) for d in protocol.FIVE]
    vtab = [
      protocol.Transfer(source, d, protocol.size_of(d, None, (224, 224))) for d in datasets.VTAB
    ]
    table = protocol.table([*five, *vtab], None, protocol.NUM_SEEDS, results)
    means = {row.dataset: row.mean for row in table if len(row.top1) == protocol.NUM_SEEDS}
    reported = protocol.test_runs(five[0], None, protocol.NUM_SEEDS, results)
    return TransferResult(
      imagenet=_percent(means.get(IMAGENET)),
      real=_percent(_mean_evaluation([runs.get(r.name) for r in reported], REAL)),
      avg5=_percent(means.get("Avg 5")),
      vtab=_percent(means.get("VTAB-1k")),
      source=source,
      left_out=left_out,
    )

  def missing(self, done: TransferResult, asked: Sequence[str], cost: str) -> MissingResult | None:
    """Returns the commands that produce what is asked for and not done, None if nothing is.

    Args:
      done: what is known.
      asked: fields of `TransferResult`.
      cost: of the pre-training, for the reader.
    """
    left = [a for a in asked if getattr(done, a) is None]
    if not left:
      return None
    p = self.pretraining
    what = f"{p.dataset}, {p.model}, {p.epochs:g} epochs, {self.size} px: {', '.join(left)}"
    return MissingResult(what, self._commands(left, done.imagenet is None), cost)

  def _commands(self, left: Sequence[str], no_imagenet: bool) -> list[str]:
    commands, source = [], self.source
    if source is None:
      source = f"{self.found.directory}/pretrain/{self.pretraining.name}"
      commands.append(f"python train.py --config={self.pretraining.file} --workdir={source}")
    results = f"{self.found.directory}/{self.setting.directory}"
    tool = f"python -m mixer_jax.tools.transfer --weights={source} --results={results}"
    tool += f" --config={self.setting.file}" * (self.setting is not TABLE2)
    if "avg5" in left:
      commands.append(f"{tool} --datasets=five --size={self.size}")
    elif no_imagenet:  # ReaL is measured on ImageNet's runs
      commands.append(f"{tool} --datasets={IMAGENET} --size={self.size}")
    if "real" in left:
      place = protocol.Transfer(source, IMAGENET, self.size).name
      commands.append(
        f"for run in {results}/{place}/test-*; do"
        f" python eval.py --workdir=$run --dataset={REAL} --record; done"
      )
    if "vtab" in left:
      commands.append(f"{tool} --datasets=vtab")
    return commands


def _percent(share: float | None) -> float | None:
  return None if share is None else 100 * share


def _mean_evaluation(runs: Sequence[Run | None], dataset: str) -> float | None:
  """Returns the mean over all seeds of the last top-1 of final checkpoints, None unless all have one."""
  values = [
    [
      e["top1"]
      for e in run.evaluations
      if e.get("dataset") == dataset and e.get("step") == run.last_step
    ]
    for run in runs
    if run is not None
  ]
  if len(values) < protocol.NUM_SEEDS or not all(values):
    return None
  return statistics.mean(v[-1] for v in values)


def _matching(
  found: Results, source: str, setting: Setting
) -> tuple[dict[str, Run], list[Exclusion]]:
  """Returns {protocol's name: run} of the runs that start from these weights, and those left out."""
  runs: dict[str, Run] = {}
  left_out = []
  for run in found.runs:
    own = run.value("init.weights")
    if own is None or not _same(str(own), source):
      continue
    try:
      asked = _asked(run, source)
      wanted = _wanted(asked, str(own), setting)
      changed = rows.differences(run.config, wanted, ())
    except (InputError, KeyError, TypeError, ValueError) as e:
      left_out.append(Exclusion(str(run.path), f"not a run of the protocol: {e}"))
      continue
    if changed:
      reason = f"another configuration than {setting.file}: {rows.some(changed)}"
      left_out.append(Exclusion(str(run.path), reason))
    elif run.top1 is None:
      reason = f"half a run: step {run.last_step} of {wanted.total_steps}"
      left_out.append(Exclusion(str(run.path), reason))
    elif asked.name in runs:
      left_out.append(Exclusion(str(run.path), f"{runs[asked.name].path} is the same and was used"))
    else:
      runs[asked.name] = run
  return runs, left_out


def _same(a: str, b: str) -> bool:
  return a == b or (
    a not in weights.RELEASED
    and pathlib.Path(a).expanduser().resolve() == pathlib.Path(b).resolve()
  )


def _asked(run: Run, source: str) -> protocol.Run:
  config = run.config
  size = schema.joined(*schema.sides(config["image_size"]))
  transfer = protocol.Transfer(source, config["data"]["dataset"], size)
  best, _, _ = config["best"].partition("/")
  judge = "dev" if config["evaluators"][best]["split"] == "dev" else "test"
  return protocol.Run(transfer, float(config["learning_rate"]), int(config["seed"]), judge)


def _wanted(asked: protocol.Run, own: str, setting: Setting) -> Any:
  t = asked.transfer
  config = config_files.load(
    f"{setting.file}:weights={own},dataset={t.dataset},size={t.size},lr={asked.lr},judge={asked.judge}"
  )
  config.seed = asked.seed
  return config
