"""Where configuration becomes objects; touches no device and no data.

`build_model(config)` is for all who only infer; `build(config)`, on top of it, is what training, benchmarks and
planning call, so what is planned and measured is what trains. Derived numbers are computed here, once.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh

from mixer_jax import configuration, evaluators, losses, models, schema
from mixer_jax.data import pipeline, splits
from mixer_jax.errors import InputError
from mixer_jax.models import kernels
from mixer_jax.parallel import sharding
from mixer_jax.training import augment, normalization, optimizer, state, step
from mixer_jax.training import schedule as schedules


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSetup:
  """A model on a mesh, and what it makes of images.

  Attributes:
    options: the configuration, checked.
    model: module.
    normalize: image uint8 -> float32, what the model sees.
    abstract_variables: shapes and types of the model's variables.
    shardings: of variables, batch and small results on the mesh.
    init_variables: jitted () -> the model's random variables.
    eval_step: jitted (variables, batch) -> rows of results, replicated.
    serve: called before each batch of an evaluation; may raise to end it.
  """

  options: schema.Options
  mesh: Mesh
  model: nn.Module
  normalize: normalization.Normalize
  abstract_variables: state.Variables
  shardings: sharding.Shardings
  init_variables: Callable[[], state.Variables]
  eval_step: Any
  serve: Callable[[], None] = lambda: None

  @property
  def title(self) -> str:
    """What messages call the model: "Mixer"."""
    return models.FAMILIES[self.options.model["name"]].TITLE

  def learning_rate(self, steps: np.ndarray) -> np.ndarray:
    """Returns the learning rate of steps of the run, the first of which is 1."""
    return self.options.learning_rate * np.asarray(_make_schedule(self.options)(steps - 1))

  def make_probabilities_step(self) -> Any:
    """Returns the jitted (variables, batch) -> rows of probabilities (float32), label and mask, replicated."""
    of_logits = losses.PROBABILITIES[self.options.loss]
    return self._make_rows_step(
      "probabilities", lambda o: of_logits(o["logits"].astype(jnp.float32))
    )

  def make_features_step(self) -> Any:
    """Returns the jitted (variables, batch) -> rows of pre_logits, label and mask, replicated."""
    return self._make_rows_step("pre_logits", lambda o: o["pre_logits"])

  def _make_rows_step(self, name: str, value: Callable[[dict[str, Any]], jax.Array]) -> Any:
    def rows(batch: dict[str, Any], outputs: dict[str, Any]) -> dict[str, Any]:
      return {name: value(outputs), "label": batch["label"], "mask": batch["mask"]}

    return make_predict_step(self, rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(ModelSetup):
  """All objects of a training run; `shardings` has the state's, too.

  Attributes:
    tx, schedule: optimizer, step -> multiplier of the learning rate.
    abstract_state: shapes and types of the train state.
    init_state: jitted () -> TrainState before the first step.
    first_state: jitted variables -> the state before the first step, at these.
    train_step: jitted (state, batch) -> (state, metrics); the state is donated.
    total_steps: steps of the whole run.
    train_split: what to train on, unopened.
  """

  tx: optax.GradientTransformation
  schedule: schedules.Schedule
  abstract_state: state.TrainState
  init_state: Callable[[], state.TrainState]
  first_state: Callable[[state.Variables], state.TrainState]
  train_step: Any
  total_steps: int
  train_split: pipeline.SplitSpec


def make_mesh(config: Mapping[str, Any], devices: Sequence[Any] | None = None) -> Mesh:
  """Returns the mesh that config.mesh asks for, over the given devices or those there are."""
  options = schema.read(config).mesh
  with configuration.placed(config, "mesh"):
    return sharding.make_mesh(data=options.data, fsdp=options.fsdp, devices=devices)


def build_model(config: Mapping[str, Any], mesh: Mesh | None = None) -> ModelSetup:
  """Returns the model that the configuration describes; what concerns training is not looked at.

  Args:
    config: schema.py's keys, all of them and no others.
    mesh: devices; they may be absent ones (ahead-of-time compilation). Default: config.mesh of those there are.

  Raises:
    InputError: names the key at fault and the way out.
  """
  mesh = make_mesh(config) if mesh is None else mesh
  options = schema.read(config)
  with configuration.placed(config, *_SECTIONS):
    return _build_model(options, mesh)


def build(config: Mapping[str, Any], mesh: Mesh | None = None) -> Experiment:
  """Returns the experiment that the configuration describes; see build_model."""
  mesh = make_mesh(config) if mesh is None else mesh
  options = schema.read(config)
  with configuration.placed(config, *_SECTIONS):
    _check_batches(options, mesh)
    return _build(_build_model(options, mesh))


_SECTIONS = ("model", "optimizer", "schedule", "mesh")  # whose keys leaves name


def _build_model(options: schema.Options, mesh: Mesh) -> ModelSetup:
  # With automatic axes, whatever kind the given mesh has: XLA propagates the shardings.
  mesh = Mesh(mesh.devices, mesh.axis_names)
  model: Any = models.build(**options.model, num_classes=options.num_classes)
  if model.takes_kernel(options.input_shape):
    model = model.clone(kernels=kernels.choose(options.kernels, mesh.devices.flat[0]))
  normalize = normalization.make_normalize(options.normalize, options.image_channels)
  init_variables = functools.partial(state.init_variables, model, options.input_shape, options.seed)
  abstract_variables = models.abstract_variables(model, options.input_shape)
  shardings = sharding.make_shardings(mesh, abstract_variables, options.mesh.rules)
  gather = sharding.make_gather(shardings.variables)
  eval_step = step.make_eval_step(
    model=model, loss=losses.LOSSES[options.loss], normalize=normalize
  )
  return ModelSetup(
    options=options,
    mesh=mesh,
    model=model,
    normalize=normalize,
    abstract_variables=abstract_variables,
    shardings=shardings,
    init_variables=jax.jit(init_variables, out_shardings=shardings.variables),
    eval_step=jax.jit(
      lambda variables, batch: eval_step(gather(variables), batch),
      in_shardings=(shardings.variables, shardings.batch),
      out_shardings=shardings.replicated,
    ),
  )


def _build(setup: ModelSetup) -> Experiment:
  options, model = setup.options, setup.model
  evaluators.best(options)
  _check_augment(options)
  steps, split = total_steps(options), _train_split(options)
  _check_profile(options.profile, steps)
  schedule = _make_schedule(options)
  layers = functools.partial(models.layer_numbers, options.model["name"])
  tx = optimizer.make_optimizer(
    **vars(options.optimizer), learning_rate=options.learning_rate, layers=layers, schedule=schedule
  )
  first_state = functools.partial(
    state.first_state, tx=tx, seed=options.seed, ema_decay=options.ema_decay
  )

  def init_state() -> state.TrainState:
    return first_state(state.init_variables(model, options.input_shape, options.seed))

  abstract_state = jax.eval_shape(init_state)
  _check_state(options, abstract_state)
  shardings = sharding.make_shardings(
    setup.mesh, setup.abstract_variables, options.mesh.rules, abstract_state
  )
  train_step = step.make_train_step(
    model=model,
    tx=tx,
    schedule=schedule,
    learning_rate=options.learning_rate,
    loss=losses.make_loss(
      options.loss,
      options.num_classes,
      class_weights=options.class_weights,
      positive_weights=options.positive_weights,
    ),
    augment=augment.make_augment(
      normalize=setup.normalize, num_classes=options.num_classes, **vars(options.augment)
    ),
    grad_accum_steps=options.grad_accum_steps,
    ema_decay=options.ema_decay,
    ema_warmup=options.ema_warmup,
    multipliers=optimizer.make_multipliers(
      options.optimizer.lr_multipliers, layer_decay=options.optimizer.layer_decay, layers=layers
    ),
    param_shardings=shardings.variables["params"],
  )
  return Experiment(
    **{**vars(setup), "shardings": shardings},
    tx=tx,
    schedule=schedule,
    abstract_state=abstract_state,
    init_state=jax.jit(init_state, out_shardings=shardings.state),
    first_state=jax.jit(first_state, out_shardings=shardings.state),
    train_step=jax.jit(
      train_step,
      in_shardings=(shardings.state, shardings.batch),
      out_shardings=(shardings.state, shardings.replicated),
      donate_argnums=0,
    ),
    total_steps=steps,
    train_split=split,
  )


def _check_state(options: schema.Options, abstract_state: state.TrainState) -> None:
  if abstract_state.batch_stats and options.grad_accum_steps > 1:
    raise InputError(
      "config.grad_accum_steps must be 1 for a model with batch statistics: those of a part are not "
      "those of the batch."
    )
  if options.ema_warmup and not options.ema_decay:
    raise InputError("config.ema_warmup is True, but no average is kept; set config.ema_decay.")


def _check_batches(options: schema.Options, mesh: Mesh) -> None:
  parts = mesh.size * options.grad_accum_steps
  if options.batch_size % parts:
    upper = -(-options.batch_size // parts) * parts
    around = " or ".join(f"{n}" for n in (upper - parts, upper) if n)
    raise InputError(
      f"config.batch_size {options.batch_size} is not divisible by {mesh.size} devices × "
      f"{options.grad_accum_steps} accumulation steps; {around} would be."
    )
  data = options.data
  if options.batch_size % data.repeats and not data.split_copies:
    raise InputError(
      f"config.data.repeats is {data.repeats}, which does not divide config.batch_size {options.batch_size}. "
      "Change one of them, or let the copies of an image fall into two batches, as DeiT does: "
      "config.data.split_copies=True."
    )


def _check_augment(options: schema.Options) -> None:
  several = options.data.labels_per_image
  for key in ("cutmix_p", "label_smoothing"):
    value = getattr(options.augment, key)
    if value and several > 1:
      raise InputError(
        f"config.augment.{key} is {value}, but config.data.labels_per_image is {several}: it is for images "
        f"with one label. Set config.augment.{key}=0, or labels_per_image=1."
      )


def _make_schedule(options: schema.Options) -> schedules.Schedule:
  return schedules.make_schedule(
    **vars(options.schedule),
    total_steps=total_steps(options),
    steps_per_epoch=_train_split(options).epoch_size(options.batch_size) / options.batch_size,
    learning_rate=options.learning_rate,
  )


def total_steps(options: schema.Options) -> int:
  """Returns the steps of the whole run; raises InputError if there are none.

  The last epoch is cut to whole batches. With data.drop_remainder every epoch is.
  """
  num_examples = _train_split(options).epoch_size(options.batch_size)
  if not num_examples:
    raise InputError(
      f"config.data.drop_remainder leaves nothing of {_train_split(options).num_used} examples: lower "
      f"config.batch_size ({options.batch_size})."
    )
  if options.total_steps is not None and options.total_epochs is not None:
    raise InputError(
      f"config.total_steps is {options.total_steps} and config.total_epochs is {options.total_epochs}; set one of "
      "them to None."
    )
  if options.total_steps is not None:
    steps = options.total_steps
  elif options.total_epochs is not None:
    steps = int(options.total_epochs * num_examples) // options.batch_size
  else:
    raise InputError("set config.total_epochs or config.total_steps.")
  if steps < 1:
    raise InputError(
      f"the run has {steps} steps: raise config.total_epochs or total_steps, or lower batch_size "
      f"({options.batch_size}, of {num_examples} examples)."
    )
  return steps


def _check_profile(profile: schema.Profile, total_steps: int) -> None:
  if profile.first_step is not None and profile.first_step + profile.num_steps - 1 > total_steps:
    raise InputError(
      f"config.profile wants {profile.num_steps} steps from {profile.first_step} on, but the run has "
      f"{total_steps} steps."
    )


def _train_split(options: schema.Options) -> pipeline.SplitSpec:
  names = ("subset_percent", "subset_seed", "repeats", "drop_remainder")
  order = {name: getattr(options.data, name) for name in names}
  return splits.make(options, options.data, "config.data.", **order)


def make_predict_step(
  setup: ModelSetup, output: Callable[[dict[str, Any], dict[str, Any]], Any]
) -> Any:
  """Returns the jitted predict_step(variables, batch), replicated on all devices.

  Args:
    output: (batch, outputs of the model: logits (b, k) and what models.features returns) -> what is returned;
      what it does not use is not computed.
  """
  gather = sharding.make_gather(setup.shardings.variables)

  def predict_step(variables: state.Variables, batch: dict[str, Any]) -> Any:
    logits, sown = setup.model.apply(
      gather(variables), setup.normalize(batch["image"]), mutable=["intermediates"]
    )
    return output(batch, {"logits": logits, **models.sown_by_name(sown["intermediates"])})

  return jax.jit(
    predict_step,
    in_shardings=(setup.shardings.variables, setup.shardings.batch),
    out_shardings=setup.shardings.replicated,
  )
