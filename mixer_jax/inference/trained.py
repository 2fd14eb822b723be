"""A trained model: from a run's checkpoint or a weights file, and what it makes of images.

What evaluation, prediction, few-shot and export share.
"""

import contextlib
import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import linen as nn

from mixer_jax import configuration, evaluators, models, schema, weights
from mixer_jax.data import imagenet, sources
from mixer_jax.data.preprocess import Preprocess
from mixer_jax.errors import BadRecordError, InputError
from mixer_jax.training import experiment
from mixer_jax.training.state import Variables
from mixer_jax.weights.variables import flatten
from mixer_jax.workdir import checkpoint, metrics, provenance, restore
from mixer_jax.workdir import directory as workdirs


@dataclasses.dataclass(frozen=True, repr=False)
class Trained:
  """A trained model.

  Attributes:
    setup: the model that the configuration describes, on all devices.
    variables: of the model, on the devices: {"params", "batch_stats"?}.
    name: what messages call the model: its run and step, or its weights file.
    step: of the checkpoint. None for a weights file.
    class_names: as the checkpoint or the weights file has them. () if it has none.
  """

  setup: experiment.ModelSetup
  variables: Variables
  name: str
  step: int | None = None
  class_names: tuple[str, ...] = ()

  @property
  def module(self) -> nn.Module:
    """The Flax module: `module.apply(variables, images)`, of float32 images normalised as in training."""
    return self.setup.model

  def __repr__(self) -> str:
    return f"Trained({self.name!r}: {self.setup.title}, {self.setup.options.size} px, {self.setup.options.num_classes} classes)"

  def __iter__(self) -> Iterator[Any]:
    """Yields the module and the variables."""
    return iter((self.module, self.variables))

  def predict(self, images: Any, top: int = 5, batch_size: int = 64) -> list[list[dict[str, Any]]]:
    """Returns the likeliest classes of each image: {"class", "name", "probability"}, the likeliest first.

    Args:
      images: pixels of any size, uint8 (h, w, c) or (b, h, w, c), or a list of them; or a path of an image file, a
        directory or a glob, or a list of them.
      top: number of classes.
      batch_size: images computed at once.

    Raises:
      InputError: names the image that cannot be used.
    """
    from mixer_jax.inference import predict  # which imports this file

    paths, names = predict.listed(images, predict.kind_of(self.setup)), class_names(self)
    found = predict.predict(self, paths, names, top=top, batch_size=batch_size)
    return [predict.good(one["file"], one.get("error"), one.get("predictions")) for one in found]

  def features(self, images: Any, batch_size: int = 64) -> dict[str, np.ndarray]:
    """Returns what the model computes inside, float32: `logits` and `pre_logits` (b, c), `stage_<i>`, `block_<i>`.

    Arguments and errors are those of `predict`.
    """
    from mixer_jax.inference import features, predict

    paths = predict.listed(images, predict.kind_of(self.setup))
    step = self.jitted(features.make_features_step, "")
    found = predict.outputs(self, paths, step, batch_size=batch_size)
    rows = [
      predict.good(k, row if isinstance(row, BadRecordError) else None, row) for k, row in found
    ]
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

  def jitted(self, make: Callable[..., Any], *arguments: Any) -> Any:
    """Returns make(setup, *arguments), a jitted step, which is made and compiled once."""
    key = make, *arguments
    if key not in self._steps:
      self._steps[key] = make(self.setup, *arguments)
    return self._steps[key]

  @functools.cached_property
  def _steps(self) -> dict[Any, Any]:
    return {}


def load(
  *,
  workdir: str | None,
  config: Any | None,
  which: str | int = "newest",
  weights_file: str | None = None,
) -> Trained:
  """Loads a checkpoint of a workdir, or a weights file.

  Args:
    workdir: a run's directory; its config.json is the configuration unless `config` is given.
    config: the configuration. Without one, a weights file alone is loaded as it is, see `load_model`.
    which: the checkpoint: "newest", "best", or its step.
    weights_file: name, address or file of parameters (weights.load), instead of a checkpoint.

  Raises:
    InputError: no such run, checkpoint or file, or parameters that do not fit the model.
  """
  directory = None if workdir is None else workdirs.path_of(workdir)
  if directory is None and weights_file is None:
    raise InputError("give --workdir or --weights.")
  if directory is None and config is None:
    return load_model(str(weights_file))
  setup = build_setup(directory, config)
  if weights_file is not None:
    return _of_weights(setup, weights.load(weights_file, setup.abstract_variables), weights_file)
  assert directory is not None
  return load_checkpoint(setup, directory, which)


def load_model(
  source: str | os.PathLike[str],
  *,
  image_size: int | str | tuple[int, int] | None = None,
  **fields: Any,
) -> Trained:
  """Returns a trained model that needs no configuration: with its own size, classes and preprocessing.

  Args:
    source: name of a released model, address or file of weights (weights.load), or a run's workdir, of which the
      newest checkpoint is taken.
    image_size: side of the images in pixels, or (height, width). Default: that of pre-training.
    fields: of the module, instead of what the shapes tell or the defaults: gelu="erf" for weights that timm
      trained, dtype="bfloat16".

  Raises:
    InputError: no such weights or run, or fields that the module does not have.
  """
  source = str(source)
  if workdirs.find_run(source) is not None:
    if fields or image_size:
      raise InputError(f"{source} is a run, whose model is known: leave out image_size and fields.")
    return load(workdir=source, config=None)
  variables = weights.load(source, num_heads=fields.get("num_heads"))
  spec = weights.describe(variables, source)
  known = weights.known(source)
  given = {**spec.fields, **(known.fields if known else {}), **fields}
  config = config_of_weights(source, spec._replace(fields=given), image_size)
  config["loss"] = (known and known.loss) or _loss_of(variables, spec.family)
  setup = build_setup(None, schema.translated(config))
  if guessed := sorted({*models.FAMILIES[spec.family].UNTOLD, "gelu"} - {*given}):
    _say_guesses(source, spec, setup.model, guessed)
  variables = weights.check_match(variables, setup.abstract_variables, source)
  return _of_weights(setup, variables, source)


def config_of_weights(
  source: str, spec: weights.ModelSpec, image_size: int | str | tuple[int, int] | None = None
) -> dict[str, Any]:
  """Returns the keys of a configuration that takes weights as they are.

  They are evaluated as their published accuracy was, if that is known (weights.RELEASED), else as in table 3; at
  another `image_size` than their own if asked to.
  """
  released = weights.known(source)
  if not image_size:
    image_size = released.image_size if released else schema.joined(*spec.sides())
  fields = {"name": spec.family, **spec.fields}
  told = released and released.frames
  clip = {"frames": told or spec.input_shape[0]} if len(spec.input_shape) == 4 else {}
  whole = (
    "segments(1)|decode|resize_small|central_crop" if clip else "decode|resize_small|central_crop"
  )
  crop = (released and released.crop) or whole
  return {
    **clip,
    "image_size": image_size,
    "image_channels": spec.input_shape[-1],
    "normalize": released.normalize if released else "unit",
    "num_classes": fields.pop("num_classes"),
    "loss": "softmax_xent",
    "model": fields,
    "evaluators": {"val": {"type": "classification", "ops": crop, "batch_size": 256}},
  }


def _loss_of(variables: Variables, family: str) -> str:
  """Returns the loss that a head was trained with, as its biases tell.

  The gradients of a softmax sum to zero over the classes, which leaves the mean of the biases where it began, at 0.
  Sigmoids of k classes, of which an image has one, take it to about −log k.
  """
  head = next(iter(models.FAMILIES[family].HEAD))
  bias = np.asarray(flatten(variables)[f"{head}/bias"], np.float64)
  return "sigmoid_xent" if bias.mean() < -math.log(bias.size) / 2 else "softmax_xent"


def _say_guesses(source: str, spec: weights.ModelSpec, model: Any, names: list[str]) -> None:
  taken = [f"{name}={getattr(model, name)!r}" for name in names if hasattr(model, name)]
  if taken and not spec.variant:
    print(
      f"{source}: parameters do not tell {' '.join(taken)}, which is taken; mixer_jax.load takes another as a keyword",
      file=sys.stderr,
      flush=True,
    )


def build_setup(directory: epath.Path | None, config: Any) -> experiment.ModelSetup:
  """Returns the model of a workdir, of a configuration, or of both; see `load`."""
  if directory is not None:
    config = _here(workdirs.load_config(directory), config)
  return experiment.build_model(config)


def _here(own: dict[str, Any], config: Any | None) -> dict[str, Any]:
  """Returns the workdir's configuration on all devices here, or the given one if its model is the same."""
  if config is None:
    return {**own, "mesh": _mesh_here(own["mesh"])}
  state = ("frames", "image_size", "image_channels", "normalize", "num_classes", "model")
  changed = configuration.differences({k: own[k] for k in state}, {k: config[k] for k in state}, ())
  if changed:
    listed = "\n  ".join(changed)
    raise InputError(f"the workdir's checkpoints are of another configuration:\n  {listed}")
  return dict(config.items())


def _mesh_here(own: dict[str, Any]) -> dict[str, Any]:
  """Returns the run's mesh on the devices that there are here: its parameters in as many shards, if they allow."""
  shards = math.gcd(own["fsdp"], jax.device_count())
  if shards != own["fsdp"]:
    metrics.log(
      f"parameters in {shards} shards on {jax.device_count()} devices (in training: {own['fsdp']})"
    )
  return {**own, "data": -1, "fsdp": shards}


def _of_weights(setup: experiment.ModelSetup, variables: Variables, source: str) -> Trained:
  variables = jax.device_put(variables, setup.shardings.variables)
  return Trained(setup, variables, source, class_names=weights.class_names(source))


def load_checkpoint(
  setup: experiment.ModelSetup, directory: epath.Path, which: str | int
) -> Trained:
  """Loads a checkpoint of a workdir into its model; see `load`."""
  chosen, damaged = checkpoint.choose(directory, which)
  for line in damaged:
    metrics.log(f"WARNING: {line}; the newest intact checkpoint is step {chosen}")
  variables = restore.load_variables(
    directory, chosen, setup.abstract_variables, setup.shardings.variables
  )
  origin = provenance.read(directory, chosen)
  names = origin.class_names if origin else ()
  return Trained(setup, variables, f"{directory} step {chosen}", chosen, names)


def preprocess(setup: experiment.ModelSetup) -> Preprocess:
  """Returns the preprocessing of config.best's evaluator, which also serves images without a label."""
  name, _ = evaluators.best(setup.options)
  text = setup.options.evaluators[name].ops
  return Preprocess(text, setup.options.input_shape, f"config.evaluators.{name}.ops")


def class_names(trained: Trained) -> list[str]:
  """Returns the names of the model's classes; ImageNet's in words. A class without a name gets its number.

  If the model has no names, they are ImageNet's for as many classes as one of its lists has, or those of TFDS's description of
  the data set, which needs no data.
  """
  data, num_classes = trained.setup.options.data, trained.setup.options.num_classes
  names = list(trained.class_names)
  if not names and data.dataset.startswith("imagenet"):
    names = imagenet.class_ids(num_classes)
  elif not names:
    with contextlib.suppress(InputError):  # TFDS may not know the data set
      names = sources.class_names(dataset=data.dataset, data_dir=data.data_dir, label=data.label)
  named = [*names[:num_classes], *map(str, range(len(names), num_classes))]
  return imagenet.in_words(named)
