"""Where training starts: at random, from weights or another run made to fit, or from its own checkpoint."""

from typing import Any

import jax
from etils import epath

from mixer_jax import models, schema, weights
from mixer_jax.models import mlp_3d, resizing
from mixer_jax.training import experiment
from mixer_jax.training.state import TrainState
from mixer_jax.workdir import checkpoint, metrics, provenance, restore
from mixer_jax.workdir import directory as workdirs


def describe(source: str) -> weights.ModelSpec:
  """Returns the model that weights (`config.init.weights`) belong to. It does not download a released model.

  Raises:
    InputError: no such weights, or not a known model's.
  """
  if source in weights.RELEASED:
    released = weights.RELEASED[source]
    sides = schema.sides(released.image_size)
    return weights.ModelSpec(released.family, released.fields, (*sides, 3))
  if (directory := workdirs.find_run(source)) is None:
    return weights.describe(weights.load(source), source)
  return _spec_of_run(directory)


def _spec_of_run(directory: epath.Path) -> weights.ModelSpec:
  # Read off the configuration: no device may be touched yet (jax.distributed), and no state restored.
  config = workdirs.load_config(directory)
  model = models.build(**{**config["model"], "num_classes": config["num_classes"]})
  shape = schema.read(config).input_shape
  return weights.ModelSpec(config["model"]["name"], models.function_fields(model), shape)


def fields_at(
  spec: weights.ModelSpec, image_size: tuple[int, int], method: str = "auto"
) -> dict[str, Any]:
  """Returns the fields of the model that weights become at another image size with a new head.

  Args:
    image_size: (height, width) of the images in pixels.
    method: `config.init.resize`.

  Raises:
    InputError: the patch does not divide the image, or the method does not fit.
  """
  family = models.FAMILIES[spec.family]
  fields = {k: v for k, v in spec.fields.items() if k not in family.HEAD.values()}
  if not spec.resize_methods:
    return fields
  grids = _grids(spec, image_size)
  return family.resize_fields(
    fields, *grids, resizing.choose_method(*grids, method, spec.resize_methods)
  )


def _grids(
  spec: weights.ModelSpec, image_size: tuple[int, int]
) -> tuple[resizing.Grid, resizing.Grid]:
  """Returns the old and the new grid of tokens; of equally many and no square, the old one is the new one."""
  patch_size = spec.fields["patch_size"]
  new = resizing.token_grid(image_size, patch_size, spec.halvings)
  *_, height, width, _ = spec.input_shape
  as_many = height * width == new[0] * new[1] * patch_size**2
  return new if as_many and not spec.knows_sides else weights.grid_of(spec), new


def load(source: str) -> weights.Variables:
  """Returns the variables of a released model, an address, a file or a run's newest checkpoint."""
  if (directory := workdirs.find_run(source)) is None:
    return weights.load(source)
  step, _ = checkpoint.choose(directory, "newest")
  return restore.load_variables(directory, step)


def class_names(
  exp: experiment.Experiment, directory: epath.Path, step: int | None
) -> tuple[str, ...]:
  """Returns the names of the classes that the parameters to start from have a head for, () if they have none.

  A run starts from the checkpoint of `step` in its directory; from `config.init` if that is None.
  """
  if step is None and (exp.options.init.weights is None or exp.options.init.new_head):
    return ()
  if step is None:
    source = str(exp.options.init.weights)
    if (run := workdirs.find_run(source)) is None:
      return weights.class_names(source)
    directory, (step, _) = run, checkpoint.choose(run, "newest")
  origin = provenance.read(directory, step)
  return origin.class_names if origin else ()


def initial_variables(exp: experiment.Experiment) -> tuple[weights.Variables, str]:
  """Returns the variables that `config.init` asks for, on the devices, and a line on what was done.

  They are made for the configuration's image size and channels, the head is replaced by zeros if asked for. A CycleMLP's
  are inflated for an MLP-3D.

  Raises:
    InputError: no such weights, or not those of the configuration's model; what differs is listed.
  """
  source = str(exp.options.init.weights)
  variables = load(source)
  directory = workdirs.find_run(source)
  spec = _spec_of_run(directory) if directory else weights.describe(variables, source)
  line, channels = f"parameters of {source}", exp.options.image_channels
  if (spec.family, exp.options.model["name"]) == ("cycle_mlp", "mlp3d"):
    arrangement = getattr(exp.model, "arrangement", ())
    variables = {"params": mlp_3d.inflate(variables["params"], arrangement)}
    line += ", inflated from a CycleMLP of images"
  weights.check_family(variables, exp.options.model["name"], source)
  if spec.input_shape[-1] != channels:
    variables = weights.replace_channels(variables, channels)
    line += f", {weights.channels_line(channels)}"
  variables, resized = _resized(variables, spec, exp)
  line += resized
  wanted = exp.abstract_variables
  if exp.options.init.new_head:
    model: Any = exp.model
    variables = weights.replace_head(variables, wanted, model.head_bias_init)
    line += ", with a new head"
  line += _other_function(spec, exp, known=directory is not None or bool(spec.variant))
  variables = weights.check_match(variables, wanted, f"{source} for {exp.options.size} px")
  return jax.device_put(variables, exp.shardings.variables), line


def _other_function(spec: weights.ModelSpec, exp: experiment.Experiment, *, known: bool) -> str:
  """Returns what is to be said of the fields that shapes do not tell, as the end of a line.

  They are `known` if the weights' `spec` has them from a run or a published size.
  """
  names = [n for n in (*models.FAMILIES[spec.family].UNTOLD, "gelu") if hasattr(exp.model, n)]
  now = {name: getattr(exp.model, name) for name in names}
  if not known:
    told = " ".join(f"{name}={value!r}" for name, value in now.items() if name not in spec.fields)
    return f", taken as trained with {told}" if told else ""
  other = [n for n in names if n in spec.fields and spec.fields[n] != now[n]]
  listed = " ".join(f"{n}={spec.fields[n]!r}, now {now[n]!r}" for n in other)
  return f", WARNING: trained with {listed}" if other else ""


def _resized(
  variables: weights.Variables, spec: weights.ModelSpec, exp: experiment.Experiment
) -> tuple[weights.Variables, str]:
  """Returns the variables for the configuration's image size, and what to say of that."""
  family = models.FAMILIES[spec.family]
  if not spec.resize_methods:
    return variables, ""
  old, new = _grids(spec, schema.sides(exp.options.image_size))
  method = resizing.choose_method(old, new, exp.options.init.resize, spec.resize_methods)
  if old == new:
    return variables, ""
  family.resize_fields(spec.fields, old, new, method)  # raises what fields alone can tell
  return weights.resize(variables, old, new, method), f", {weights.resize_line(old, new, method)}"


def initial_state(
  exp: experiment.Experiment, directory: epath.Path, intact: checkpoint.Intact
) -> TrainState:
  """Returns the newest intact checkpoint's state, or the one before the first step.

  Damaged checkpoints are reported and moved to `damaged_checkpoints/`.

  Raises:
    InputError: there are no such weights to start from.
  """
  step = intact.step
  checkpoint.quarantine(directory, intact)
  for line in intact.damaged.values():
    metrics.log(f"WARNING: {line}; moved to damaged_checkpoints, continuing from step {step}")
  if step is None:
    if exp.options.init.weights is None:
      return exp.init_state()
    variables, line = initial_variables(exp)
    metrics.log(line)
    return exp.first_state(variables)
  return restore.restore_state(directory, step, exp.abstract_state, exp.shardings.state)
