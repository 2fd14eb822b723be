"""A trained model: from a run's checkpoint or a weights file, and what it makes of images.

What evaluation, prediction, few-shot and export share.
"""

import contextlib
import dataclasses
import math
from typing import Any

import jax
from etils import epath

from mixer_jax import configuration, evaluators, weights
from mixer_jax.data import sources
from mixer_jax.data.preprocess import Preprocess
from mixer_jax.errors import InputError
from mixer_jax.training import experiment
from mixer_jax.training.state import Variables
from mixer_jax.workdir import checkpoint, metrics, provenance, restore
from mixer_jax.workdir import directory as workdirs


@dataclasses.dataclass(frozen=True)
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
    config: the configuration; needed with `weights_file` alone.
    which: the checkpoint: "newest", "best", or its step.
    weights_file: name, address or file of parameters (weights.load), instead of a checkpoint.

  Raises:
    InputError: no such run, checkpoint or file, or parameters that do not fit the model.
  """
  directory = None if workdir is None else workdirs.path_of(workdir)
  if directory is None and (config is None or weights_file is None):
    raise InputError("give --workdir, or --weights together with --config.")
  setup = build_setup(directory, config)
  if weights_file is not None:
    return _load_weights(setup, weights_file)
  assert directory is not None
  return load_checkpoint(setup, directory, which)


def build_setup(directory: epath.Path | None, config: Any) -> experiment.ModelSetup:
  """Returns the model of a workdir, of a configuration, or of both; see `load`."""
  if directory is not None:
    config = _here(workdirs.load_config(directory), config)
  return experiment.build_model(config, experiment.make_mesh(config))


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


def _load_weights(setup: experiment.ModelSetup, path: str) -> Trained:
  variables = weights.load(path, setup.abstract_variables)
  variables = jax.device_put(variables, setup.shardings.variables)
  return Trained(setup, variables, path, class_names=weights.class_names(path))


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
  """Returns the names of the model's classes. A class without a name gets its number.

  If the model has no names, TFDS's description of the data set gives them, even without the data.
  """
  data, num_classes = trained.setup.options.data, trained.setup.options.num_classes
  names = list(trained.class_names)
  if not names:
    with contextlib.suppress(InputError):  # TFDS may not know the data set
      names = sources.class_names(dataset=data.dataset, data_dir=data.data_dir, label=data.label)
  return [*names[:num_classes], *map(str, range(len(names), num_classes))]
