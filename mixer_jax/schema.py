"""The configuration: every key but those of config.model with its type, range, default and meaning.

A comment stands above its key or behind it; `--config=NAME --help` prints them. The keys of
config.model are the fields of the family's module (models.schema). Defaults are those of Mixer-B/16 on
ImageNet where the paper gives them.
"""

import copy
import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from mixer_jax import configuration
from mixer_jax.configuration import (
  Field,
  Fraction,
  NonNegativeFloat,
  NonNegativeInt,
  PositiveFloat,
  PositiveInt,
  Range,
  Rate,
  Seed,
)
from mixer_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Init:
  # Name, address or file of weights (docs/weights.md), or the workdir of a run. If None, training starts at random.
  # Weights for 3 channels also start a model of another image_channels, a CycleMLP's also an MLP-3D.
  weights: str | None = None
  # How weights become those of another image size: "paper" is appendix C, "auto" takes it where it applies.
  resize: Literal["auto", "paper", "interpolate"] = "auto"
  new_head: bool = True  # start with a head of zeros instead of theirs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  # Name in mixer_jax/data/datasets.py, TFDS name, directory of a prepared TFDS data set, or "synthetic".
  dataset: str = "imagenet2012"
  data_dir: str | None = None  # default: $TFDS_DATA_DIR or ~/tensorflow_datasets
  split: str = "train"
  label: str | None = None  # name of its feature; default: the data set's usual one
  labels_per_image: PositiveInt = 1  # the most that an image has
  num_examples: PositiveInt = 1_281_167  # of the split; so a run is planned without its data
  # Train on a random subset, in per cent of the images; epochs are epochs of the subset.
  subset_percent: Annotated[float, Range(1e-6, 100)] = 100.0
  subset_seed: Seed = 0  # which subset
  ops: str = "decode|inception_crop|flip"  # mixer_jax/data/ops.py
  # Copies of an image in a batch, each processed anew (repeated augmentation).
  repeats: PositiveInt = 1
  split_copies: bool = False  # the copies may fall into two batches, as DeiT's 3 in batches of 1024
  drop_remainder: bool = False  # an epoch ends with its last whole batch, as with torch's drop_last
  on_bad_record: Literal["stop", "skip"] = "stop"  # stop the run, or skip the record and count it
  num_workers: NonNegativeInt = 0  # loader processes; with 0, threads load


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
  """Random changes of a training batch, on the device."""

  # Probability that a box of an image is filled with unit normals (random erasing, timm's mode "pixel").
  erasing_p: Fraction = 0.0
  label_smoothing: Rate = 0.0  # share of a target that is spread evenly over all classes
  mixup_p: NonNegativeFloat = 0.0  # p of Beta(p, p); 0 turns mixup off
  cutmix_p: NonNegativeFloat = 0.0  # p of Beta(p, p); 0 turns CutMix off
  switch_p: Fraction = 0.5  # probability of CutMix for a mixed batch, if mixup is on, too
  mix_p: Fraction = 1.0  # probability that a batch is mixed at all
  # Which images are mixed: neighbours in the batch, of which mixup takes at most half ("roll", big_vision's
  # way), or the first with the last and so on, with mixup's share as drawn ("flip", timm's).
  pairing: Literal["roll", "flip"] = "roll"
  # Version of timm whose rounding of CutMix's box is followed. The papers used 0.4.12.
  cutmix_box: Literal["timm_0.4.12", "timm_1.0.31"] = "timm_0.4.12"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification:
  """Top-1, top-5 and loss over a split."""

  type: Literal["classification"] = "classification"
  dataset: str | None = None  # default: data.dataset
  data_dir: str | None = None  # default: data.data_dir
  split: str = "validation"
  label: str | None = None  # name of its feature; default: the data set's usual one
  labels_per_image: PositiveInt = 1
  num_examples: PositiveInt = 50_000
  ops: str = "decode|resize_small|central_crop"
  batch_size: PositiveInt = 4096
  every_steps: NonNegativeInt = 5000  # and at the end; 0 leaves it out of training
  num_workers: NonNegativeInt = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fewshot:
  """Linear few-shot accuracy (docs/evaluate.md)."""

  type: Literal["fewshot"] = "fewshot"
  dataset: str | None = None  # default: data.dataset
  data_dir: str | None = None  # default: data.data_dir
  train_split: str = "train"
  test_split: str = "test"
  ops: str = "decode|resize|central_crop"
  batch_size: PositiveInt = 4096
  every_steps: NonNegativeInt = 5000  # and at the end; 0 leaves it out of training
  num_workers: NonNegativeInt = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
  """Pictures of a run, and a page of them: learning curves, images with their predictions, a Mixer's weights."""

  type: Literal["pictures"] = "pictures"
  of: str = "val"  # the classification evaluator whose predictions are drawn
  every_steps: NonNegativeInt | None = None  # default: as often as that one; 0 turns them off
  log_loss: bool = False  # whether the axis of the loss is logarithmic


EVALUATORS = {section.type: section for section in (Classification, Fewshot, Pictures)}
"""Type of an evaluator -> its section."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  name: Literal["adam", "momentum", "lamb"] = "adam"
  b1: Rate = 0.9  # decay of the first moment, of adam and lamb
  b2: Rate = 0.999  # decay of the second moment
  eps: NonNegativeFloat = 1e-8  # added to the root of the second moment
  momentum: Fraction = 0.9  # of the optimizer momentum
  # Type of Adam's first moment, or of the momentum.
  accumulator_dtype: Literal["float32", "bfloat16"] = "float32"
  weight_decay: NonNegativeFloat = 0.0
  # "kernels" alone, or all parameters with more than one dimension but biases ("multidimensional", timm).
  weight_decay_on: Literal["kernels", "multidimensional"] = "kernels"
  # A step removes schedule·learning_rate·weight_decay of a parameter ("learning_rate", the paper's
  # numbers and AdamW's) or schedule·weight_decay ("schedule", big_vision's numbers).
  weight_decay_scale: Literal["learning_rate", "schedule"] = "learning_rate"
  # Largest global norm of the gradients. None turns this clipping off.
  clip_norm: PositiveFloat | None = 1.0
  # Largest magnitude of a gradient's elements, instead of clip_norm.
  clip_value: PositiveFloat | None = None
  # "REGEX=FACTOR" for names of parameters, first match first; ("head/.*=1", ".*=0") trains the head alone.
  lr_multipliers: tuple[str, ...] = ()
  # Factor of the learning rate from a layer to the one below: the head's is 1, the last block's this (BEiT).
  layer_decay: Annotated[float, Range(1e-30, 1)] = 1.0
  # Sharpness-aware minimisation: gradients are taken this far up the slope, at twice the cost. 0 turns it off.
  sam_rho: NonNegativeFloat = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  warmup_steps: Annotated[int, Range(0, 2**31 - 1)] | None = 10_000  # length of linear warm-up
  warmup_epochs: NonNegativeFloat | None = None  # instead of warmup_steps, which is None then
  warmup_start: NonNegativeFloat = 0.0  # the learning rate that warm-up begins at
  decay: Literal["linear", "cosine", "constant"] = "linear"
  # From the end of warm-up, or from the start of the run, whose first part warm-up replaces ("start", timm).
  decay_from: Literal["warmup_end", "start"] = "warmup_end"
  linear_end: Fraction = 1e-5  # where linear decay ends
  # Whether linear_end is a share of the peak, or a learning rate.
  linear_end_unit: Literal["peak", "learning_rate"] = "peak"
  cosine_end: NonNegativeFloat = 0.0  # the learning rate that cosine ends at
  cooldown_epochs: NonNegativeFloat = 0.0  # the run's last, at the end of the decay
  every: Literal["step", "epoch"] = "step"  # how often the learning rate changes
  # 1: a step or epoch has the rate of the one before it, as where the scheduler is stepped late (DeiT).
  lag: Literal[0, 1] = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
  every_steps: PositiveInt = 1000
  keep_newest: PositiveInt = 2
  keep_best: NonNegativeInt = 1  # by config.best


@dataclasses.dataclass(frozen=True, kw_only=True)
class Log:
  every_steps: PositiveInt = 50
  wandb: str | None = None  # project at Weights & Biases that gets the metrics, too (docs/runs.md)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
  data: int = -1  # replicas of the state, each on `fsdp` devices; -1 takes all devices
  fsdp: PositiveInt = 1  # devices over which a replica's parameters and optimizer state are sharded
  # "REGEX=WHERE" for names of parameters, first match first; WHERE is "replicate", the number of the
  # dimension to shard, or "auto", as without a rule (docs/scale.md).
  rules: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
  first_step: PositiveInt | None = None  # if None, no trace is taken
  num_steps: PositiveInt = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """The whole configuration, checked: `options.data.dataset`."""

  seed: Seed = 0  # of parameters, order of the data, and all randomness
  # In pixels: a side, HEIGHTxWIDTH, or (height, width).
  image_size: int | str | tuple[int, ...] = 224
  frames: PositiveInt | None = None  # frames of a clip (docs/video.md). None: images
  # 1 is grey, 3 RGB, 4 RGB and alpha (docs/data.md).
  image_channels: Literal[1, 3, 4] = 3
  # Values of a pixel: "unit" (−1 to 1), "zero_one", "imagenet", or means and then deviations of pixel / 255.
  normalize: str | tuple[float, ...] = "unit"
  num_classes: PositiveInt = 1000  # outputs of the model
  batch_size: PositiveInt = 4096  # of all devices together
  total_epochs: NonNegativeFloat | None = None
  # Instead of total_epochs, which is None then.
  total_steps: Annotated[int, Range(1, 2**31 - 1)] | None = None
  grad_accum_steps: PositiveInt = 1  # parts that a step takes the batch in; the result is the same
  learning_rate: PositiveFloat = 0.001  # peak
  loss: Literal["sigmoid_xent", "softmax_xent"] = "sigmoid_xent"
  # Factors of the classes in the training loss, num_classes numbers. Evaluators' losses have none.
  class_weights: tuple[float, ...] = ()
  # Factors of the positive targets of the classes (torch's pos_weight), likewise; for sigmoid_xent alone.
  positive_weights: tuple[float, ...] = ()
  # Decay of an average of the variables (Polyak), which is then evaluated and converted; 0 turns it off.
  ema_decay: Rate = 0.0
  ema_warmup: bool = False  # the decay after step n is at most 1 − n^(−2/3) (timm)
  model: Mapping[str, Any]  # a family and its fields
  init: Init = Init()  # where training starts
  data: Data = Data()  # what is trained on
  augment: Augment = Augment()  # what is done to it on the device (docs/data.md)
  evaluators: Mapping[str, Any]  # name -> what is measured, while training and after: EVALUATORS
  # EVALUATOR/METRIC that chooses the best checkpoint; that evaluator's metrics are the run's result.
  best: str = "val/top1"
  optimizer: Optimizer = Optimizer()  # the paper's: Adam to pre-train, momentum SGD to fine-tune
  schedule: Schedule = Schedule()  # of the learning rate
  checkpoint: Checkpoint = Checkpoint()  # what is kept in the workdir
  log: Log = Log()  # what is printed
  mesh: Mesh = Mesh()  # how the devices are used (docs/scale.md)
  # How Mixer mixes tokens on an NVIDIA GPU: "pallas" in one fused kernel, "xla" as XLA compiles it, "auto" in the way that
  # was measured to be faster on that GPU (docs/speed.md). Elsewhere XLA does it.
  kernels: Literal["auto", "xla", "pallas"] = "auto"
  profile: Profile = Profile()  # a trace of some steps, in the workdir (docs/scale.md)
  # Keys and sections that may differ when a run is resumed; whole evaluators may come and go.
  may_change: tuple[str, ...] = (
    "grad_accum_steps",
    "data.data_dir",
    "data.on_bad_record",
    "data.num_workers",
    "evaluators.*.batch_size",
    "evaluators.*.num_workers",
    "evaluators.*.data_dir",
    "evaluators.*.log_loss",
    "checkpoint",
    "kernels",
    "log",
    "mesh",
    "profile",
    "may_change",
  )

  @property
  def input_shape(self) -> tuple[int, ...]:
    """What the model takes: an image (height, width, channels), or a clip (frames, height, width, channels)."""
    clip = () if self.frames is None else (self.frames,)
    return (*clip, *sides(self.image_size), self.image_channels)

  @property
  def size(self) -> int | str:
    """`image_size` in its shortest form, for people; of clips, "16x224x224"."""
    *clip, height, width, _ = self.input_shape
    return "x".join(map(str, (*clip, height, width))) if clip else joined(height, width)

  @property
  def examples(self) -> Literal["images", "videos"]:
    """What is counted, for people."""
    return "images" if self.frames is None else "videos"


EITHER = (
  ("total_epochs", "total_steps"),
  ("schedule.warmup_epochs", "schedule.warmup_steps"),
  ("optimizer.clip_norm", "optimizer.clip_value"),
)
"""Pairs of keys of which at most one is set. One that the command line sets is instead of the other."""


RENAMED: dict[str, tuple[str, Callable[[Any], Any]]] = {
  "model.ablation": ("model.token_mixing", lambda value: "mlp" if value == "none" else value),
  "optimizer.polyak_decay": ("ema_decay", lambda value: value),
  "mixup_p": ("augment.mixup_p", lambda value: value),
  "evaluation": ("evaluators.val", lambda value: {"type": "classification", **value}),
  "fewshot": (
    "evaluators.fewshot",
    lambda value: (
      {"type": "fewshot", **value} | ({} if value.get("dataset") else {"every_steps": 0})
    ),
  ),
  "log.plots": (
    "evaluators.pictures",
    lambda value: {"type": "pictures", "every_steps": None if value else 0},
  ),
  # It never was a key, but is looked for there.
  "model.num_classes": ("num_classes", lambda value: value),
}
"""Key, or section, of earlier versions -> the one that replaced it, and what its value is there."""


def tree(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of all keys, nested; raises InputError if the configuration names no family."""
  from mixer_jax import models  # It imports JAX.

  if not _has(config, "model.name"):
    raise InputError("config.model.name is missing; configs/common.py has every key.")
  if not isinstance(name := config["model"]["name"], str):
    raise InputError(f"config.model.name is {name!r}; expected the name of a family.")
  own = {
    "model": models.schema(name),
    "evaluators": _evaluators(config["evaluators"] if _has(config, "evaluators") else None),
  }
  return {**configuration.tree(Options), **own}


def _evaluators(sections: Any) -> dict[str, Any]:
  """Returns the fields of each evaluator; raises InputError for a name or type that there cannot be."""
  found = {}
  for name, section in sections.items() if hasattr(sections, "items") else ():
    where = f"config.evaluators.{name}"
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
      raise InputError(f"{where}: a name takes letters, digits and _, for it heads the metrics.")
    if not _has(section, "type"):
      raise InputError(f"{where}.type is missing; it is one of {', '.join(EVALUATORS)}.")
    if section["type"] not in [*EVALUATORS]:  # which asks for no hash of what a file may hold
      known = configuration.nearest(str(section["type"]), EVALUATORS)
      raise InputError(f"{where}.type is {section['type']!r}, which there is not.{known}")
    found[name] = configuration.tree(EVALUATORS[section["type"]])
  return found


def read(config: Mapping[str, Any]) -> Options:
  """Returns the configuration as an object; raises InputError that lists all that is wrong with it.

  An evaluator needs its type alone; its other keys have their defaults.
  """
  known, config = tree(config), completed(config)
  moved = {f"config.{old}": f"config.{new}" for old, (new, _) in RENAMED.items()}
  configuration.check(known, config, "config", moved)
  made = {k: configuration.make(EVALUATORS[v["type"]], v) for k, v in config["evaluators"].items()}
  options = configuration.make(Options, {**config, "evaluators": made})
  with configuration.placed(config):
    sides(options.image_size)
  return options


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the configuration with the defaults of the keys that its evaluators leave out, its data's paths absolute."""
  known = tree(config)["evaluators"]
  given = {name: _located(config["evaluators"][name]) for name in known}
  found = {**config, **({"evaluators": _completed(given, known)} if given else {})}
  return {**found, "data": _located(found["data"])} if _has(found, "data.dataset") else found


def _located(section: Any) -> dict[str, Any]:
  """Returns a section whose relative directories of data are absolute, so that it holds in another directory."""
  found = dict(section.items())
  for key in {"data_dir", "dataset"} & {*found}:
    path = found[key]
    if isinstance(path, str) and path.strip() and "://" not in path and not path.startswith("~"):
      is_path = key == "data_dir" or path.startswith(".") or ("/" in path and os.path.isdir(path))
      found[key] = os.path.abspath(path) if is_path else path
  return found


MAX_SIDE = 2**14


def sides(image_size: int | str | Sequence[int]) -> tuple[int, int]:
  """Returns (height, width) of a side in pixels, of both sides, or of a text: "224" or "224x448".

  Raises:
    InputError: it is none of these, or a side is not in 1…MAX_SIDE.
  """
  pair = (image_size, image_size) if isinstance(image_size, int) else image_size
  if isinstance(pair, str):
    numbers = [int(n) if re.fullmatch(r"[0-9]{1,5}", n) else 0 for n in pair.split("x")]
    pair = numbers * 2 if len(numbers) == 1 else numbers
  if len(pair) != 2 or not all(1 <= n <= MAX_SIDE for n in pair):
    raise InputError(
      f"image_size is {image_size!r}; expected a side or HEIGHTxWIDTH, of 1 to {MAX_SIDE} pixels."
    )
  return pair[0], pair[1]


def joined(height: int, width: int) -> int | str:
  """Returns the side of a square, or else "HEIGHTxWIDTH"; `sides` undoes it."""
  return height if height == width else f"{height}x{width}"


def translated(saved: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a saved configuration of any version with today's keys.

  Keys that it lacks are of later versions, and get their defaults.

  Raises:
    InputError: it names no family, or one that there is not.
  """
  today, config = tree(saved), copy.deepcopy(dict(saved))
  for old, (new, convert) in RENAMED.items():
    if _has(config, old) and not _has(today, old):
      section, key = _find(config, old)
      try:
        value = convert(section[key])
        new_section, new_key = _find(config, new)
        new_section[new_key] = value
      except (TypeError, AttributeError, ValueError):  # damaged, as the reader will say
        continue
      del section[key]
  # Earlier versions took the steps where both were set.
  if "total_steps" in config and config["total_steps"] is not None:
    config["total_epochs"] = None
  return _completed(config, {**today, "evaluators": {}})  # theirs are optional


def _has(nested: Any, dotted: str) -> bool:
  key, _, rest = dotted.partition(".")
  found = hasattr(nested, "items") and key in nested  # a ConfigDict is no registered Mapping
  return found and (not rest or _has(nested[key], rest))


def _find(nested: dict[str, Any], dotted: str) -> tuple[dict[str, Any], str]:
  """Returns the section of a key, made where there is none, and the key's own name."""
  *sections, key = dotted.split(".")
  for name in sections:
    nested = nested.setdefault(name, {})
  return nested, key


def _completed(section: Any, today: configuration.Tree) -> Any:
  """Returns the section with the defaults of the keys that it lacks."""
  if not isinstance(section, Mapping):  # damaged, as the reader will say
    return section
  filled = dict(section)
  for key, field in today.items():
    if not isinstance(field, Field):
      filled[key] = _completed(section.get(key, {}), field)
    elif key not in section:
      filled[key] = field.default
  return filled
