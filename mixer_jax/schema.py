"""The configuration's sections as typed objects, and the ranges of its numbers.

configs/common.py explains every key.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from mixer_jax import configuration
from mixer_jax.errors import InputError

_SMALLEST, _LARGEST = 1e-30, 1e38  # positive and finite, in float32 too


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """The configuration's top level. configs/common.py explains every key."""

  seed: int
  image_size: int
  normalize: str | tuple[float, ...]
  num_classes: int
  batch_size: int
  total_epochs: int | float | None
  total_steps: int | None
  grad_accum_steps: int
  learning_rate: float
  loss: Literal["sigmoid_xent", "softmax_xent"]
  mixup_p: float
  ema_decay: float
  model: Mapping
  init: Mapping
  data: Mapping
  optimizer: Mapping
  schedule: Mapping
  evaluation: Mapping
  fewshot: Mapping
  checkpoint: Mapping
  log: Mapping
  mesh: Mapping
  profile: Mapping
  may_change: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Init:
  """config.init: where training starts."""

  weights: str | None
  resize: Literal["auto", "paper", "interpolate"]
  new_head: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """config.data."""

  dataset: str
  data_dir: str | None
  split: str
  label: str | None
  labels_per_image: int
  num_examples: int
  subset_percent: float
  subset_seed: int
  ops: str
  on_bad_record: Literal["stop", "skip"]
  num_workers: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """config.evaluation."""

  dataset: str | None
  split: str
  label: str | None
  labels_per_image: int
  num_examples: int
  ops: str
  batch_size: int
  every_steps: int
  num_workers: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fewshot:
  """config.fewshot."""

  dataset: str | None
  train_split: str
  test_split: str
  ops: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
  """config.checkpoint."""

  every_steps: int
  keep_newest: int
  keep_best: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Log:
  """config.log."""

  every_steps: int
  plots: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshOptions:
  """config.mesh: what sharding.make_mesh and sharding.make_shardings take."""

  data: int
  fsdp: int
  rules: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
  """config.profile."""

  first_step: int | None
  num_steps: int


_RANGES = {
  "seed": (0, 2**32 - 1),
  "image_size": (1, 2**14),
  "num_classes": (1, math.inf),
  "batch_size": (1, math.inf),
  "grad_accum_steps": (1, math.inf),
  "total_epochs": (0, _LARGEST),
  "learning_rate": (_SMALLEST, _LARGEST),
  "mixup_p": (0, _LARGEST),
  "ema_decay": (0, 1 - 1e-9),
  "model.patch_size": (1, math.inf),
  "model.num_blocks": (1, math.inf),
  "model.hidden_dim": (1, math.inf),
  "model.tokens_mlp_dim": (1, math.inf),
  "model.channels_mlp_dim": (1, math.inf),
  "model.mlp_dim": (1, math.inf),
  "model.num_heads": (1, math.inf),
  "model.representation_size": (0, math.inf),
  "model.width": (1, math.inf),
  "model.num_groups": (1, math.inf),
  "model.dropout_rate": (0, 1 - _SMALLEST),
  "model.stoch_depth": (0, 1),
  "data.num_examples": (1, math.inf),
  "data.labels_per_image": (1, math.inf),
  "data.subset_percent": (_SMALLEST, 100),
  "data.subset_seed": (0, 2**32 - 1),
  "data.num_workers": (0, math.inf),
  "evaluation.num_examples": (1, math.inf),
  "evaluation.labels_per_image": (1, math.inf),
  "evaluation.batch_size": (1, math.inf),
  "evaluation.every_steps": (1, math.inf),
  "evaluation.num_workers": (0, math.inf),
  "optimizer.b1": (0, 1 - _SMALLEST),
  "optimizer.b2": (0, 1 - _SMALLEST),
  "optimizer.eps": (0, _LARGEST),
  "optimizer.momentum": (0, 1),
  "optimizer.weight_decay": (0, _LARGEST),
  "optimizer.clip_norm": (_SMALLEST, _LARGEST),
  "schedule.linear_end": (0, 1),
  "checkpoint.every_steps": (1, math.inf),
  "checkpoint.keep_newest": (1, math.inf),
  "checkpoint.keep_best": (0, math.inf),
  "log.every_steps": (1, math.inf),
  "mesh.fsdp": (1, math.inf),
  "profile.first_step": (1, math.inf),
  "profile.num_steps": (1, math.inf),
}


def check_ranges(config: Mapping[str, Any]) -> None:
  """Raises InputError for a number outside its range (NaN is outside of all)."""
  values = configuration.flatten(config)
  for name, (low, high) in _RANGES.items():
    value = values.get(name)  # other families have other fields
    if isinstance(value, int | float) and not low <= value <= high:
      limit = f"at least {low:g}" if value < low else f"at most {high:g}"
      raise InputError(f"config.{name} is {value}; it must be {limit}.")
