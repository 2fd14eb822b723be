"""The paper in miniature: which runs tell its story on a CPU, and what they found.

Nothing is run here (tools/paper_mini.py does): `pretrainings` and `transfers` say what is to be run,
`read` what is there.
"""

import dataclasses
import pathlib
from typing import Any

from mixer_jax.errors import InputError
from mixer_jax.tools import config_files
from mixer_jax.tools.paper_tables import rows
from mixer_jax.tools.paper_tables.results import Found, Run

MODELS = {"mixer": "Mixer", "vit": "ViT", "resnet": "ResNet"}
SIZES = ("S", "M", "L")
ORDERS = ("patches", "pixels")
PERMUTED = ("mixer", "resnet")
SEEDS = (0, 1)
NUM_POINTS = 3  # evaluations of the runs whose course is drawn
FINETUNE_STEPS, FINETUNE_LR, FINETUNE_BATCH = 60, 0.03, 64


@dataclasses.dataclass(frozen=True)
class Setting:
  """What the story is told on.

  Attributes:
    dataset: pre-training's, a name or a directory.
    target: data set of few-shot and transfer.
    percents: shares of the training images, ascending.
    steps: of a pre-training.
    image_size: of pre-training, in pixels; transfer takes this and twice as much.
    sizes: of the models, ascending.
  """

  dataset: str
  target: str
  percents: tuple[float, ...]
  steps: int
  image_size: int = 28
  sizes: tuple[str, ...] = SIZES

  @property
  def largest(self) -> str:
    return self.sizes[-1]


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

  def command(self, setting: Setting) -> str:
    """Returns what follows `python train.py`, the workdir apart."""
    points = NUM_POINTS if self.model in PERMUTED and _is_drawn(self, setting) else 1
    parts = [self.size, f"model={self.model}", f"percent={self.percent:g}"]
    parts += [f"order={self.order}"] if self.order else []
    parts += [f"dataset={setting.dataset}", f"fewshot={setting.target}", f"steps={setting.steps}"]
    return f"--config=configs/mini.py:{','.join(parts)},points={points}"


def _is_drawn(run: Pretrain, setting: Setting) -> bool:
  return run.size == setting.largest and run.percent == setting.percents[-1]


@dataclasses.dataclass(frozen=True)
class Transfer:
  """The largest model of a family, pre-trained on all images, fine-tuned on the target."""

  model: str
  size_px: int
  seed: int

  @property
  def name(self) -> str:
    return f"transfer/{self.model}-{self.size_px}px-seed{self.seed}"

  def command(self, setting: Setting, results: pathlib.Path) -> str:
    source = results / Pretrain(self.model, setting.largest, setting.percents[-1]).name
    file = (
      f"configs/finetune.py:weights={source},dataset={setting.target},size={self.size_px},"
      f"lr={FINETUNE_LR},steps={FINETUNE_STEPS}"
    )
    changes = {
      "batch_size": FINETUNE_BATCH,
      "seed": self.seed,
      "evaluation.batch_size": 180,
      "evaluation.every_steps": FINETUNE_STEPS,
      "checkpoint.every_steps": FINETUNE_STEPS,
      "log.plots": False,
    }
    return f"--config={file} " + " ".join(f"--config.{k}={v}" for k, v in changes.items())


def pretrainings(setting: Setting) -> list[Pretrain]:
  """Returns all families, sizes and shares, then the permuted inputs; cheap ones first."""
  grid = [Pretrain(m, s, p) for s in setting.sizes for m in MODELS for p in setting.percents]
  permuted = [
    Pretrain(m, setting.largest, setting.percents[-1], order) for m in PERMUTED for order in ORDERS
  ]
  return grid + permuted


def transfers(setting: Setting) -> list[Transfer]:
  sizes = (setting.image_size, 2 * setting.image_size)
  return [Transfer(m, px, seed) for m in MODELS for px in sizes for seed in SEEDS]


def load_config(command: str) -> Any:
  """Returns the configuration of "--config=FILE:ARG --config.KEY=VALUE …", as train.py reads it."""
  first, *changes = command.split(" --config.")
  config = config_files.load(first.removeprefix("--config="))
  for change in changes:
    key, _, value = change.partition("=")
    *sections, name = key.split(".")
    target = config
    for section in sections:
      target = target[section]
    target[name] = (
      {"True": True, "False": False}[value] if value in ("True", "False") else int(value)
    )
  return config


def finished(found: Found, name: str, config: Any) -> Run | None:
  """Returns the run if it is there and whole.

  Raises:
    InputError: the directory holds a run of another configuration.
  """
  wanted = (found.directory / name).resolve()
  run = next((r for r in found.runs if r.path.resolve() == wanted), None)
  if run is None:
    return None
  if changed := rows.differences(run.config, config, ()):
    raise InputError(
      f"{run.path} is of another configuration: {rows.some(changed)}. Remove it, or choose another "
      "--results."
    )
  return run if run.last_step == config.total_steps and run.curve("evaluation/top1") else None


@dataclasses.dataclass(frozen=True)
class Seen:
  """What was found: figures in per cent by run; absent ones were not run.

  Attributes:
    top1: of the evaluation split, the pre-training's own or, of a transfer, the target's.
    five_shot: 5-shot accuracy on the target, of pre-trainings.
    count: images of the evaluation split.
    curves: (step, share) of top-1.
    speed: images a second while training.
  """

  top1: dict[Pretrain | Transfer, float]
  five_shot: dict[Pretrain, float]
  count: dict[Pretrain | Transfer, int]
  curves: dict[Pretrain, list[tuple[int, float]]]
  speed: dict[Pretrain, float]


def read(found: Found, setting: Setting) -> Seen:
  """Returns what the finished runs found; raises InputError for runs of another configuration."""
  seen = Seen({}, {}, {}, {}, {})
  for key in [*pretrainings(setting), *transfers(setting)]:
    if not (found.directory / key.name).exists():
      continue  # a transfer's configuration needs its pre-training
    run = finished(found, key.name, load_config(command_of(key, setting, found.directory)))
    if run is None:
      continue
    seen.top1[key] = 100 * run.curve("evaluation/top1")[-1][1]
    seen.count[key] = round(run.curve("evaluation/count")[-1][1])
    if isinstance(key, Pretrain):
      seen.curves[key] = run.curve("evaluation/top1")
      seen.five_shot[key] = 100 * run.curve("fewshot/5shot")[-1][1]
      speeds = sorted(v for _, v in run.curve("images_per_sec"))
      seen.speed[key] = speeds[len(speeds) // 2]
  return seen


def command_of(key: Pretrain | Transfer, setting: Setting, results: pathlib.Path) -> str:
  return key.command(setting) if isinstance(key, Pretrain) else key.command(setting, results)
