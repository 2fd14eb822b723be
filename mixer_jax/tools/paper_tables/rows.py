"""The paper's pre-trainings as this project's configurations, and which of the runs found is which.

A run is a row's if its configuration is that of the row's file, apart from what does not change what is
learned (`FREE`); everything else is named and left out.
"""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from mixer_jax import configuration, models, schema
from mixer_jax.errors import InputError
from mixer_jax.tools import config_files, paper_numbers
from mixer_jax.tools.paper_tables.comparison import Exclusion
from mixer_jax.tools.paper_tables.results import Results, Run
from mixer_jax.training import experiment

FILES = {"ImageNet": "imagenet.py", "ImageNet-21k": "imagenet21k.py", "JFT-300M": "jft.py"}
# The seed; where the data lie; what only measures.
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


SUBSET_MODELS = (
  "Mixer-B/32", "Mixer-L/32", "Mixer-L/16", "ViT-B/32", "ViT-L/32", "ViT-L/16", "BiT-R50x1", "BiT-R152x2",
)  # fmt: skip
PERMUTED_MODELS = ("Mixer-B/16", "BiT-R50x1")


def model_fields(model: str) -> dict[str, str]:
  """Returns the arguments of models.build for the paper's name of a model.

  Raises:
    InputError: a model that this project does not have.
  """
  family, _, variant = model.partition("-")
  if family not in paper_numbers.FAMILIES:
    raise InputError(f"{model} is not a model of this project.")
  return {"name": paper_numbers.FAMILIES[family], "variant": variant}


@functools.cache
def wanted(pretraining: Pretraining) -> Any:
  """Returns the configuration of a pre-training."""
  config = config_files.load(pretraining.file)
  if pretraining.order:
    for section in (config.data, config.evaluators.val):
      section.ops = permuted(section.ops, pretraining.order)
  return config


def permuted(ops: str, order: str) -> str:
  """Returns the pre-processing with figure 4's permutation of patches or pixels behind it."""
  return f"{ops}|{'permute_patches(16)' if order == 'patches' else 'permute_pixels'}"


@functools.cache
def total_steps(file: str) -> int:
  """Returns the steps of a configuration's whole run."""
  return experiment.total_steps(schema.read(config_files.load(file), models.schema))


def of_figure2() -> list[Pretraining]:
  """Returns figure 2's, right: random subsets of JFT-300M for as many steps."""
  subsets = ((3.0, 233.0), (10.0, 70.0), (30.0, 23.0), (100.0, 7.0))
  return [
    Pretraining("JFT-300M", model, epochs, subset=percent)
    for model in SUBSET_MODELS
    for percent, epochs in subsets
  ]


def of_figure4() -> list[Pretraining]:
  """Returns figure 4's: both models on each of the three inputs."""
  return [
    Pretraining("JFT-300M", model, 7.0, order=order)
    for model in PERMUTED_MODELS
    for order in ("", "patches", "pixels")
  ]


@functools.cache
def everything() -> tuple[Pretraining, ...]:
  """Returns all pre-trainings of the paper's tables and figures that this project has a model for."""
  table = [
    Pretraining(r["pretrain"], r["model"], float(r["pretrain_epochs"]))
    for r in paper_numbers.rows("table3_scale")
    if r["model"].partition("-")[0] in paper_numbers.FAMILIES
  ]
  return tuple(dict.fromkeys([*table, *of_figure2(), *of_figure4()]))


def differences(saved: Mapping[str, Any], asked: Any, free: Iterable[str] = FREE) -> list[str]:
  """Returns a line for each key in which a run's configuration is not the wanted one."""
  return configuration.differences(saved, asked, (*asked.may_change, *free))


def match(found: Results) -> tuple[dict[Pretraining, Run], list[Exclusion]]:
  """Returns the finished runs of `everything`, and the runs from scratch that are none of them.

  Of several runs of one pre-training the first finished one counts; the others are named.
  """
  matched: dict[Pretraining, Run] = {}
  left_out = []
  for run in found.runs:
    if run.value("init.weights") is not None:
      continue
    reason, pretraining = _judge(run)
    if pretraining is not None and pretraining in matched:
      reason = f"{matched[pretraining].path} is of the same configuration and was used"
    if pretraining is None or reason:
      left_out.append(Exclusion(str(run.path), reason))
    else:
      matched[pretraining] = run
  return matched, left_out


def _judge(run: Run) -> tuple[str, Pretraining | None]:
  """Returns (why the run cannot be used, "" if it can; the pre-training that it is)."""
  nearest: tuple[list[str], str] | None = None
  for pretraining in everything():
    try:
      changed = differences(run.config, wanted(pretraining))
    except InputError:  # no such configuration
      continue
    if not changed:
      end = total_steps(pretraining.file)
      if run.last_step < end:
        return f"half a run: step {run.last_step} of {end}", pretraining
      return "", pretraining
    if nearest is None or len(changed) < len(nearest[0]):
      nearest = changed, pretraining.file
  if nearest is None:
    return "no configuration of this project's to compare with", None
  return f"another configuration than {nearest[1]}: {some(nearest[0])}", None


def some(lines: list[str], most: int = 3) -> str:
  rest = len(lines) - most
  return "; ".join(lines[:most]) + (f"; and {rest} more" if rest > 0 else "")


def grouped(left_out: Iterable[Exclusion]) -> list[Exclusion]:
  """Returns one line for all runs of a directory that were left out for the same reason."""
  groups: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
  for item in left_out:
    groups[str(pathlib.Path(item.path).parent), item.reason].append(item.path)
  return [
    Exclusion(paths[0] if len(paths) == 1 else f"{parent} ({len(paths)} runs)", reason)
    for (parent, reason), paths in groups.items()
  ]


def benchmark_config(model: str, image_size: int) -> Any:
  """Returns ImageNet's configuration with this model, to measure or plan its inference.

  Raises:
    InputError: not a model of this project.
  """
  fields = model_fields(model)
  config = config_files.module("configs/common.py").get_config(fields["name"])
  config.image_size = image_size
  config.model.variant = fields["variant"]
  return config
