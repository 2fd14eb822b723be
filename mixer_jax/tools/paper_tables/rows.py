"""The paper's pre-trainings as this project's configurations, and which runs are which of them.

A run belongs to a row if its configuration equals that of the row's file. Keys that do not change what is learned
(`FREE`) may differ. Every other run is left out, and the reason is given.
"""

import collections
import dataclasses
import functools
import pathlib
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from mixer_jax import configuration, schema
from mixer_jax.tools import config_files, paper_numbers
from mixer_jax.tools.paper_tables.comparison import Exclusion
from mixer_jax.tools.paper_tables.results import Results, Run
from mixer_jax.training import experiment

FILES = {"ImageNet": "imagenet.py", "ImageNet-21k": "imagenet21k.py", "JFT-300M": "jft.py"}
# The seed, the place of the data, and what only measures.
FREE = ("seed", "data.dataset", "data.label", "evaluators", "best")


@dataclasses.dataclass(frozen=True)
class Pretraining:
  """A model trained from scratch.

  Attributes:
    dataset: "ImageNet", "ImageNet-21k" or "JFT-300M".
    model: "Mixer-B/16", "ViT-L/16", "BiT-R50x1".
    epochs: of the data used.
    subset: per cent of the images that are used (figure 2, right).
    order: permutation of the input (figure 4): "", "patches" or "pixels".
  """

  dataset: str
  model: str
  epochs: float
  subset: float = 100.0
  order: str = ""

  @classmethod
  def of_table3(cls, row: paper_numbers.Row) -> "Pretraining":
    return cls(row["pretrain"], row["model"], float(row["pretrain_epochs"]))

  @property
  def name(self) -> str:
    """Directory of its run below RESULTS/pretrain."""
    parts = [self.dataset, self.model.replace("/", "_"), f"{self.epochs:g}ep"]
    parts += [f"{self.subset:g}percent"] * (self.subset != 100) + [self.order] * bool(self.order)
    return "-".join(parts).lower()

  @property
  def file(self) -> str:
    """The configuration, as --config takes it."""
    family, _, variant = self.model.partition("-")
    rest = f"epochs={self.epochs:g}" + (f",subset={self.subset:g}" if self.subset != 100 else "")
    if family == "Mixer":
      return f"configs/{FILES[self.dataset]}:{variant},{rest}"
    data = FILES[self.dataset].removesuffix(".py")
    return f"configs/baselines.py:{self.model},data={data},{rest}"

  @property
  def permutation(self) -> str:
    """The operation that figure 4 appends to the preprocessing."""
    return {"": "", "patches": "|permute_patches(16)", "pixels": "|permute_pixels"}[self.order]

  def permuted_ops(self) -> dict[str, str]:
    """Returns {key of the configuration: preprocessing}, with figure 4's permutation at its end."""
    config = config_files.load(self.file)
    sections = {"data": config.data, "evaluators.val": config.evaluators.val} if self.order else {}
    return {f"{name}.ops": section.ops + self.permutation for name, section in sections.items()}

  def train_command(self, results: pathlib.Path, flags: str = "") -> str:
    """Returns the command that trains it."""
    workdir = shlex.quote(f"--workdir={results}/pretrain/{self.name}")
    command = f"python train.py --config={self.file} {workdir}"
    ops = "".join(f' --config.{key}="{value}"' for key, value in self.permuted_ops().items())
    return command + flags + ops


SUBSET_MODELS = (
  "Mixer-B/32", "Mixer-L/32", "Mixer-L/16", "ViT-B/32", "ViT-L/32", "ViT-L/16", "BiT-R50x1", "BiT-R152x2",
)  # fmt: skip
PERMUTED_MODELS = ("Mixer-B/16", "BiT-R50x1")
_SUBSETS = ((3.0, 233.0), (10.0, 70.0), (30.0, 23.0), (100.0, 7.0))  # per cent, epochs
FIGURE2 = [
  Pretraining("JFT-300M", model, epochs, subset=percent)
  for model in SUBSET_MODELS
  for percent, epochs in _SUBSETS
]
"""Right panel: random subsets of JFT-300M, all trained for the same number of steps."""
FIGURE4 = [
  Pretraining("JFT-300M", model, 7.0, order=order)
  for model in PERMUTED_MODELS
  for order in ("", "patches", "pixels")
]


def model_fields(model: str) -> dict[str, str]:
  """Returns the arguments of models.build for the paper's name of a model."""
  family, _, variant = model.partition("-")
  return {"name": paper_numbers.FAMILIES[family], "variant": variant}


@functools.cache
def wanted(pretraining: Pretraining) -> Any:
  """Returns the configuration of a pre-training."""
  config = config_files.load(pretraining.file)
  config.update_from_flattened_dict(pretraining.permuted_ops())
  return config


@functools.cache
def total_steps(file: str) -> int:
  """Returns the steps of a configuration's whole run."""
  return experiment.total_steps(schema.read(config_files.load(file)))


@functools.cache
def everything() -> tuple[Pretraining, ...]:
  """Returns all pre-trainings of the paper's tables and figures."""
  table3 = map(Pretraining.of_table3, paper_numbers.rows("table3_scale"))
  return tuple(dict.fromkeys([*table3, *FIGURE2, *FIGURE4]))


def match(found: Results) -> tuple[dict[Pretraining, Run], list[Exclusion]]:
  """Returns the finished runs of `everything`, and the other runs from scratch with the reason why they are not used.

  If several runs belong to one pre-training, the first finished one is used and the others are named.
  """
  matched: dict[Pretraining, Run] = {}
  left_out = []
  for run in found.runs:
    if run.value("init.weights") is not None:
      continue
    pretraining, changed = _nearest(run)
    end = total_steps(pretraining.file)
    if changed:
      reason = f"another configuration than {pretraining.file}: {some(changed)}"
    elif run.last_step < end:
      reason = f"half a run: step {run.last_step} of {end}"
    elif pretraining in matched:
      reason = f"{matched[pretraining].path} is of the same configuration and was used"
    else:
      matched[pretraining] = run
      continue
    left_out.append(Exclusion(str(run.path), reason))
  return matched, left_out


def _nearest(run: Run) -> tuple[Pretraining, list[str]]:
  """Returns the pre-training whose configuration differs least from the run's, and the differences."""

  def candidates() -> Iterator[tuple[Pretraining, list[str]]]:
    for pretraining in everything():
      config = wanted(pretraining)
      yield pretraining, configuration.differences(run.config, config, (*config.may_change, *FREE))

  return min(candidates(), key=lambda pair: len(pair[1]))


def some(lines: list[str], most: int = 3) -> str:
  rest = len(lines) - most
  return "; ".join(lines[:most]) + (f"; and {rest} more" if rest > 0 else "")


def grouped(left_out: Iterable[Exclusion]) -> list[Exclusion]:
  """Returns one line for all runs of a directory that were left out for the same reason."""
  groups: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
  for item in dict.fromkeys(left_out):
    groups[str(pathlib.Path(item.path).parent), item.reason].append(item.path)
  return [
    Exclusion(paths[0] if len(paths) == 1 else f"{parent} ({len(paths)} runs)", reason)
    for (parent, reason), paths in groups.items()
  ]


def benchmark_config(model: str, image_size: int) -> Any:
  """Returns ImageNet's configuration with this model, to measure its inference."""
  fields = model_fields(model)
  config = config_files.module("configs/common.py").get_config(fields["name"])
  config.image_size = image_size
  config.model.variant = fields["variant"]
  return config
