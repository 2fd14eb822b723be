"""The paper in miniature: which runs tell its story on a CPU, and what they found.

Nothing is run here (tools/paper_mini.py does): `pretrainings` and `transfers` say what is to be run,
`read` what is there.
"""

import dataclasses
import pathlib
import shlex
from typing import Any

from mixer_jax.errors import InputError
from mixer_jax.tools import config_files
from mixer_jax.tools.paper_tables import rows
from mixer_jax.tools.paper_tables.results import Results, Run

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
    del results
    is_drawn = self.model in PERMUTED and (self.size, self.percent) == largest(setting)
    parts = [self.size, f"model={self.model}", f"percent={self.percent:g}"]
    parts += [f"order={self.order}"] if self.order else []
    parts += [f"dataset={setting.dataset}", f"fewshot={setting.target}", f"steps={setting.steps}"]
    return f"configs/mini.py:{','.join(parts)},points={NUM_POINTS if is_drawn else 1}"

  @property
  def changes(self) -> dict[str, Any]:
    """Keys of that configuration that are set otherwise."""
    return {}


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
    source = results / Pretrain(self.model, *largest(setting)).name
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


def largest(setting: Setting) -> tuple[str, float]:
  """Returns the size and the share of the images that most of the story is told of."""
  return setting.sizes[-1], setting.percents[-1]


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


def pretrainings(setting: Setting) -> list[Pretrain]:
  """Returns all families, sizes and shares, then the permuted inputs; cheap ones first."""
  grid = [Pretrain(m, s, p) for s in setting.sizes for m in MODELS for p in setting.percents]
  return grid + [Pretrain(m, *largest(setting), order) for m in PERMUTED for order in ORDERS]


def transfers(setting: Setting) -> list[Transfer]:
  sizes = (setting.image_size, 2 * setting.image_size)
  return [Transfer(m, px, seed) for m in MODELS for px in sizes for seed in SEEDS]


def finished(found: Results, name: str, config: Any) -> Run | None:
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
  return run if run.last_step == config.total_steps and run.curve(config.best) else None


@dataclasses.dataclass(frozen=True)
class Outcomes:
  """What was found: figures in per cent by run; absent ones were not run.

  Attributes:
    top1: of the evaluation split, the pre-training's own or, of a transfer, the target's.
    five_shot: 5-shot accuracy on the target, of pre-trainings.
    count: images of the evaluation split.
    curves: (step, share) of top-1.
    speed: images a second while training.
  """

  top1: dict[Key, float]
  five_shot: dict[Pretrain, float]
  count: dict[Key, int]
  curves: dict[Pretrain, list[tuple[int, float]]]
  speed: dict[Pretrain, float]


def read(found: Results, setting: Setting) -> Outcomes:
  """Returns what the finished runs found; raises InputError for runs of another configuration."""
  seen = Outcomes({}, {}, {}, {}, {})
  for key in [*pretrainings(setting), *transfers(setting)]:
    if not (found.directory / key.name).exists():
      continue  # a transfer's configuration needs its pre-training
    run = finished(found, key.name, config_of(key, setting, found.directory))
    if run is None:
      continue
    best = run.config["best"]
    seen.top1[key] = 100 * run.curve(best)[-1][1]
    seen.count[key] = round(run.curve(f"{best.partition('/')[0]}/count")[-1][1])
    if isinstance(key, Pretrain):
      seen.curves[key] = run.curve(best)
      seen.five_shot[key] = 100 * run.curve("fewshot/5shot")[-1][1]
      speeds = sorted(v for _, v in run.curve("images_per_sec"))
      seen.speed[key] = speeds[len(speeds) // 2]
  return seen
