"""Where fine-tuning starts: the parameters of a released model, a file or a run, made to fit."""

from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from mixer_jax import configuration, experiment, inference, models, weights
from mixer_jax.errors import InputError
from mixer_jax.weights import resize

RELEASED_IMAGE_SIZE = 224
FIELDS = (
  "patch_size", "num_blocks", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim", "num_classes",
)  # fmt: skip


class Origin(NamedTuple):
  """What starting weights were made for.

  Attributes:
    fields: of the model (weights.model_fields).
    grid: of its tokens, (rows, columns).
  """

  fields: dict[str, Any]
  grid: resize.Grid


def describe(source: str) -> Origin:
  """Returns what weights were made for; a released model is not downloaded for this.

  Args:
    source: see `config.init.weights`.

  Raises:
    InputError: no such weights, or not a Mixer's for square images.
  """
  if source in weights.RELEASED:
    fields = weights.RELEASED[source].fields
    return Origin(fields, weights.token_grid(RELEASED_IMAGE_SIZE, fields["patch_size"]))
  if (path := _config_of_run(source)) is None:
    return _origin(load(source), source)
  # Read off the configuration: no device may be touched yet (jax.distributed), and no state restored.
  config = configuration.load(path)
  model = models.build(**{**config["model"], "num_classes": config["num_classes"]})
  fields = {name: getattr(model, name) for name in FIELDS}
  return Origin(fields, weights.token_grid(config["image_size"], fields["patch_size"]))


def load(source: str) -> dict[str, Any]:
  """Returns the parameters of a released model, an address, a file or a run's newest checkpoint."""
  if _config_of_run(source) is not None:
    return jax.device_get(inference.load(workdir=source, config=None).params)
  return weights.load(source)


def _config_of_run(source: str) -> epath.Path | None:
  """Returns where a workdir keeps its configuration, None if the source is no workdir."""
  if source in weights.RELEASED or source.startswith(("http://", "https://")):
    return None
  path = epath.Path(source).expanduser() / "config.json"
  return path if path.exists() else None


def _origin(params: dict[str, Any], source: str) -> Origin:
  fields, tokens = weights.model_fields(params, source), weights.num_tokens(params)
  side = round(tokens**0.5)
  if side * side != tokens:
    raise InputError(
      f"{source} is for {tokens} tokens, which are no square. Convert it first: "
      "python -m mixer_jax.tools.convert --from_image_size=HEIGHTxWIDTH --image_size=SIDE"
    )
  return Origin(fields, (side, side))


def initial_params(exp: experiment.Experiment) -> tuple[Any, str]:
  """Returns the parameters that `config.init` asks for, on the devices, and a line on what was done.

  Token mixing is resized to the configuration's image size, the head replaced by zeros if asked for.

  Raises:
    InputError: no such weights, or not those of the configuration's model; what differs is listed.
  """
  source = str(exp.init.weights)
  params = load(source)
  origin = _origin(params, source)
  patch_size = origin.fields["patch_size"]
  new_grid = weights.token_grid(exp.options.image_size, patch_size)
  method = resize.resize_method(origin.grid, new_grid, exp.init.resize)
  line = f"parameters of {source}"
  if new_grid != origin.grid:
    how = "appendix C" if method == "paper" else "interpolation, not the paper's"
    line += (
      f", from {origin.grid[0]}x{origin.grid[1]} to {new_grid[0]}x{new_grid[1]} tokens ({how})"
    )
  params = weights.resize_tokens(params, origin.grid, new_grid, method)
  if exp.init.new_head:
    bias = getattr(exp.model, "head_bias_init", 0.0)
    params = weights.replace_head(params, exp.options.num_classes, bias)
    line += ", with a new head"
  wanted = exp.abstract_state.params
  weights.check_match(params, wanted, f"{source} for {exp.options.image_size} px")
  params = jax.tree.map(lambda p, w: np.asarray(p).astype(w.dtype), params, wanted)
  return jax.device_put(params, exp.shardings.state.params), line
