"""The paper in miniature: its runs (`runs_of`), which tools/paper_mini.py takes, and their results (`read`)."""

import dataclasses
import pathlib
import shlex
import statistics
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from mixer_jax import configuration
from mixer_jax.errors import InputError
from mixer_jax.tools import config_files
from mixer_jax.tools.paper_tables import results, rows
from mixer_jax.tools.paper_tables.results import Run

MODELS = {"mixer": "Mixer", "vit": "ViT", "resnet": "ResNet"}
SIZES = ("S", "M", "L")
ORDERS = ("patches", "pixels")
PERMUTED = ("mixer", "resnet")
SEEDS = (0, 1)
IMAGE_SIZE = 28  # of pre-training, in pixels
TRANSFER_PX = (IMAGE_SIZE, 2 * IMAGE_SIZE)
NUM_POINTS = 3  # evaluations of the runs whose course is drawn
TOP1, COUNT, FIVE_SHOT = "val/top1", "val/count", "fewshot/5shot"
FINETUNE_STEPS, FINETUNE_LR, FINETUNE_BATCH = 60, 0.03, 64


@dataclasses.dataclass(frozen=True)
class Setting:
  """Data, steps and models of the runs.

  Attributes:
    dataset: data set of pre-training, a name or a directory.
    target: data set of few-shot and transfer.
    percents: shares of the training images, ascending.
    steps: training steps of a pre-training.
    sizes: of the models, ascending.
  """

  dataset: str
  target: str
  percents: tuple[float, ...]
  steps: int
  sizes: tuple[str, ...] = SIZES

  @property
  def largest(self) -> tuple[str, float]:
    """The largest size and the largest share of the images: the runs that most sections show."""
    return self.sizes[-1], self.percents[-1]


@dataclasses.dataclass(frozen=True)
class Pretrain:
  """A model from scratch."""

  model: str
  size: str
  percent: float
  order: str = ""

  @property
  def name(self) -> str:
    """Its directory below the results."""
    order = f"-{self.order}" if self.order else ""
    return f"pretrain/{self.model}-{self.size}-{self.percent:g}percent{order}".lower()

  def file(self, setting: Setting, results: pathlib.Path) -> str:
    """Returns its configuration, as --config takes it."""
    del results  # transfers start from runs there
    is_drawn = self.model in PERMUTED and (self.size, self.percent) == setting.largest
    parts = [self.size, f"model={self.model}", f"percent={self.percent:g}"]
    parts += [f"order={self.order}"] if self.order else []
    parts += [f"dataset={setting.dataset}", f"fewshot={setting.target}", f"steps={setting.steps}"]
    return f"configs/mini.py:{','.join(parts)},points={NUM_POINTS if is_drawn else 1}"

  changes: ClassVar[dict[str, Any]] = {}
  """Values of that configuration that differ from the file's."""


@dataclasses.dataclass(frozen=True)
class Transfer:
  """The largest model of a family, pre-trained on all images, fine-tuned on the target."""

  model: str
  size_px: int
  seed: int

  @property
  def name(self) -> str:
    return f"transfer/{self.model}-{self.size_px}px-seed{self.seed}"

  def file(self, setting: Setting, results: pathlib.Path) -> str:
    source = results / Pretrain(self.model, *setting.largest).name
    return (
      f"configs/finetune.py:weights={source},dataset={setting.target},size={self.size_px},"
      f"lr={FINETUNE_LR},steps={FINETUNE_STEPS}"
    )

  @property
  def changes(self) -> dict[str, Any]:
    return {
      "batch_size": FINETUNE_BATCH,
      "seed": self.seed,
      "evaluators.val.batch_size": 180,
      "evaluators.val.every_steps": FINETUNE_STEPS,
      "checkpoint.every_steps": FINETUNE_STEPS,
      "evaluators.pictures.every_steps": 0,
    }


Key = Pretrain | Transfer


def config_of(key: Key, setting: Setting, results: pathlib.Path) -> Any:
  """Returns a run's configuration."""
  config = config_files.load(key.file(setting, results))
  config.update_from_flattened_dict(key.changes)
  return config


def command_of(key: Key, setting: Setting, results: pathlib.Path) -> str:
  """Returns the command that runs it alone."""
  changes = [f"--config.{name}={value}" for name, value in key.changes.items()]
  flags = [f"--config={key.file(setting, results)}", *changes, f"--workdir={results / key.name}"]
  return shlex.join(["python", "train.py", *flags])


def runs_of(setting: Setting) -> list[Key]:
  """Returns all families, sizes and shares, then the permuted inputs, then fine-tuning; cheap ones first."""
  grid = [Pretrain(m, s, p) for s in setting.sizes for m in MODELS for p in setting.percents]
  permuted = [Pretrain(m, *setting.largest, order) for m in PERMUTED for order in ORDERS]
  transfers = [Transfer(m, px, s) for m in MODELS for px in TRANSFER_PX for s in SEEDS]
  return [*grid, *permuted, *transfers]


def finished(path: pathlib.Path, config: Any) -> Run | None:
  """Returns the run of a workdir. None if there is none, or if it has not reached its end.

  Raises:
    InputError: the directory holds a run of another configuration.
  """
  if not (path / "config.json").exists():
    return None
  run = results.read(path)
  if changed := configuration.differences(run.config, config, config.may_change):
    raise InputError(
      f"{path} has another configuration: {rows.some(changed)}. Remove it, or choose another "
      "--results."
    )
  return run if run.last_step == config.total_steps and run.curve(TOP1) else None


class Outcome(NamedTuple):
  """The results of a finished run.

  Attributes:
    top1: on the evaluation split in per cent. The split is the pre-training's own, or the target's for a transfer.
    num_images: of that split.
    five_shot: 5-shot accuracy on the target in per cent. None for a transfer.
    curve: (step, share) of top-1.
    speed: median of the images per second in training.
  """

  top1: float
  num_images: int = 1
  five_shot: float | None = None
  curve: Sequence[tuple[float, float]] = ()
  speed: float = 0.0
  core_hours: float = 0.0


Outcomes = dict[Key, Outcome]
"""The results by run. Runs that are absent or not finished are left out."""


def read(directory: pathlib.Path, setting: Setting) -> Outcomes:
  """Returns the results of the finished runs; raises InputError for runs of another configuration."""
  seen = {}
  for key in runs_of(setting):
    path = directory / key.name
    # A transfer's configuration needs its pre-training.
    if path.exists() and (run := finished(path, config_of(key, setting, directory))):
      shots = run.curve(FIVE_SHOT) if isinstance(key, Pretrain) else []
      seen[key] = Outcome(
        top1=100 * run.curve(TOP1)[-1][1],
        num_images=round(run.curve(COUNT)[-1][1]),
        five_shot=100 * shots[-1][1] if shots else None,
        curve=run.curve(TOP1),
        speed=statistics.median_high(v for _, v in run.curve("images_per_sec")),
        core_hours=run.curve("core_hours")[-1][1],
      )
  return seen
