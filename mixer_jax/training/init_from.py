"""Where fine-tuning starts: the parameters of a released model, a file or a run, made to fit."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from mixer_jax import models, weights
from mixer_jax.errors import InputError
from mixer_jax.training import experiment
from mixer_jax.training.state import TrainState
from mixer_jax.weights import resize
from mixer_jax.workdir import checkpoint, metrics
from mixer_jax.workdir import directory as workdirs

RELEASED_IMAGE_SIZE = 224  # of a ResNet's file, which does not tell
# Fields of a module that parameters do not depend on.
_NOT_OF_PARAMETERS = {
  "dropout_rate", "stoch_depth", "head_bias_init", "dtype", "param_dtype", "remat", "parent", "name",
}  # fmt: skip


class Origin(NamedTuple):
  """What starting weights were made for.

  Attributes:
    family: key of models.FAMILIES.
    fields: of the family's module (weights.model_fields), num_classes included.
    image_size: side of the images in pixels.
  """

  family: str
  fields: dict[str, Any]
  image_size: int


def describe(source: str) -> Origin:
  """Returns what weights were made for; a released model is not downloaded for this.

  Args:
    source: see `config.init.weights`.

  Raises:
    InputError: no such weights, or not a known model's for square images.
  """
  if source in weights.RELEASED:
    released = weights.RELEASED[source]
    return Origin(released.family, released.fields, released.image_size)
  if (path := _config_of_run(source)) is None:
    return _origin_of_file(load(source), source)
  return _origin_of_run(path)


def _origin_of_run(path: epath.Path) -> Origin:
  # Read off the configuration: no device may be touched yet (jax.distributed), and no state restored.
  config = workdirs.load_config(path.parent)
  model = models.build(**{**config["model"], "num_classes": config["num_classes"]})
  names = {field.name for field in dataclasses.fields(model)} - _NOT_OF_PARAMETERS
  fields = {name: getattr(model, name) for name in sorted(names)}
  return Origin(config["model"]["name"], fields, config["image_size"])


def _origin_of_file(params: dict[str, Any], source: str) -> Origin:
  family, fields = weights.family(params, source), weights.model_fields(params, source)
  if "patch_size" not in fields:
    return Origin(family, fields, RELEASED_IMAGE_SIZE)
  tokens = weights.num_tokens(params)
  side = round(tokens**0.5)
  if side * side != tokens:
    raise InputError(
      f"{source} is for {tokens} tokens, which are no square. Convert it first: "
      "python -m mixer_jax.tools.convert --from_image_size=HEIGHTxWIDTH --image_size=SIDE"
    )
  return Origin(family, fields, side * fields["patch_size"])


def fields_at(origin: Origin, image_size: int, method: resize.Method = "auto") -> dict[str, Any]:
  """Returns the fields of the model that weights become at another image size with a new head.

  Args:
    origin: what they were made for.
    image_size: side of the images in pixels.
    method: `config.init.resize`.

  Raises:
    InputError: the patch does not divide the image, or the method does not fit.
  """
  fields = {k: v for k, v in origin.fields.items() if k != "num_classes"}
  if origin.family == "mixer":
    fields["tokens_mlp_dim"] = weights.resized_tokens_mlp_dim(
      fields["tokens_mlp_dim"], *_grids(origin, image_size), method
    )
  elif origin.family == "vit":
    resize.resize_method(*_grids(origin, image_size), method, "vit")
    fields["representation_size"] = 0  # weights.replace_head
  return fields


def _grids(origin: Origin, image_size: int) -> tuple[resize.Grid, resize.Grid]:
  """Returns the old and the new grid of tokens."""
  patch_size = origin.fields["patch_size"]
  old, new = (weights.token_grid(size, patch_size) for size in (origin.image_size, image_size))
  return old, new


def load(source: str) -> dict[str, Any]:
  """Returns the parameters of a released model, an address, a file or a run's newest checkpoint."""
  if _config_of_run(source) is not None:
    directory = workdirs.path_of(source)
    step, _ = checkpoint.choose(directory, "newest")
    return checkpoint.load_params(directory, step)
  return weights.load(source)


def _config_of_run(source: str) -> epath.Path | None:
  """Returns where a workdir keeps its configuration, None if the source is no workdir."""
  if source in weights.RELEASED or source.startswith(("http://", "https://")):
    return None
  path = epath.Path(source).expanduser() / "config.json"
  return path if path.exists() else None


def initial_params(exp: experiment.Experiment) -> tuple[Any, str]:
  """Returns the parameters that `config.init` asks for, on the devices, and a line on what was done.

  They are made for the configuration's image size, the head is replaced by zeros if asked for.

  Raises:
    InputError: no such weights, or not those of the configuration's model; what differs is listed.
  """
  source = str(exp.options.init.weights)
  params = load(source)
  weights.check_family(params, exp.options.model["name"], source)
  path = _config_of_run(source)
  origin = _origin_of_file(params, source) if path is None else _origin_of_run(path)
  params, resized = _resized(params, origin, exp)
  line = f"parameters of {source}{resized}"
  if exp.options.init.new_head:
    bias = getattr(exp.model, "head_bias_init", 0.0)
    params = weights.replace_head(params, exp.options.num_classes, bias)
    line += ", with a new head"
  wanted = exp.abstract_state.params
  weights.check_match(params, wanted, f"{source} for {exp.options.image_size} px")
  params = jax.tree.map(lambda p, w: np.asarray(p).astype(w.dtype), params, wanted)
  return jax.device_put(params, exp.shardings.state.params), line


def _resized(
  params: dict[str, Any], origin: Origin, exp: experiment.Experiment
) -> tuple[dict[str, Any], str]:
  """Returns the parameters for the configuration's image size, and what to say of that."""
  if "patch_size" not in origin.fields:
    return params, ""
  old, new = _grids(origin, exp.options.image_size)
  method = resize.resize_method(old, new, exp.options.init.resize, origin.family)
  if old == new:
    return params, ""
  if origin.fields.get("ablation", "none") != "none" or origin.fields.get("pyramid"):
    raise InputError(
      f"the token mixing of {exp.options.init.weights} is one of appendix A's ablations: it stays at "
      f"{origin.image_size} px."
    )
  how = "interpolation" if origin.family == "vit" else "interpolation, not the paper's"
  how = "appendix C" if method == "paper" else how
  line = f", from {old[0]}x{old[1]} to {new[0]}x{new[1]} tokens ({how})"
  return weights.resize_tokens(params, old, new, method), line


def initial_state(exp: experiment.Experiment, directory: epath.Path) -> TrainState:
  """Returns the newest intact checkpoint's state, or the one before the first step.

  Damaged checkpoints are said and moved aside.

  Raises:
    InputError: all checkpoints are damaged, or there are no such weights to start from.
  """
  step, damaged = checkpoint.find_intact(directory, quarantine=True)
  for line in damaged:
    metrics.say(f"WARNING: {line}; moved to damaged_checkpoints, continuing from step {step}")
  if step is None:
    state = exp.init_state()
    if exp.options.init.weights is None:
      return state
    params, line = initial_params(exp)
    metrics.say(line)
    return state.replace(params=params, opt_state=exp.init_opt_state(params))
  return checkpoint.restore(directory, step, exp.abstract_state, exp.shardings.state)
