"""Where configuration becomes objects; touches no device and no data.

`build(config, mesh)` is what training, evaluation, benchmarks and planning all call, so what is
planned and measured is what trains. Derived numbers are computed here, once.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from flax import linen as nn
from jax.sharding import Mesh

from mixer_jax import configuration, losses, models, schema
from mixer_jax.data import ops, pipeline
from mixer_jax.errors import InputError
from mixer_jax.parallel import sharding
from mixer_jax.training import augment, optimizer, state, step


@dataclasses.dataclass(frozen=True)
class Experiment:
  """All objects of a run.

  Attributes:
    options: the configuration, checked.
    model, tx, schedule: module, optimizer, step -> multiplier of the learning rate.
    abstract_state: shapes and types of the train state.
    shardings: of state, batch and small results on the mesh.
    init_state: jitted () -> TrainState before the first step.
    first_state: jitted variables -> the state before the first step, at these.
    normalize: image uint8 -> float32, what the model sees.
    train_step: jitted (state, batch) -> (state, metrics); the state is donated.
    eval_step: jitted (variables, batch) -> rows of results, replicated.
    total_steps: steps of the whole run.
    train_split, eval_split: what to load, unopened.
  """

  options: schema.Options
  mesh: Mesh
  model: nn.Module
  tx: optax.GradientTransformation
  schedule: optimizer.Schedule
  abstract_state: state.TrainState
  shardings: sharding.Shardings
  init_state: Callable[[], state.TrainState]
  first_state: Callable[[state.Variables], state.TrainState]
  normalize: augment.Normalize
  train_step: Any
  eval_step: Any
  total_steps: int
  train_split: pipeline.SplitSpec
  eval_split: pipeline.SplitSpec


def make_mesh(config: Mapping[str, Any], devices: Sequence[Any] | None = None) -> Mesh:
  """Returns the mesh that config.mesh asks for, over the given devices or those there are."""
  options = schema.read(config, models.schema).mesh
  with configuration.placed(config, "mesh"):
    return sharding.make_mesh(data=options.data, fsdp=options.fsdp, devices=devices)


def build(config: Mapping[str, Any], mesh: Mesh) -> Experiment:
  """Returns the experiment that the configuration describes, for this mesh.

  Args:
    config: schema.py's keys, all of them and no others.
    mesh: devices; they may be absent ones (ahead-of-time compilation).

  Raises:
    InputError: names the key at fault and the way out.
  """
  options = schema.read(config, models.schema)
  with configuration.placed(config, "model", "optimizer", "schedule", "mesh"):
    return _build(options, mesh)


def _build(options: schema.Options, mesh: Mesh) -> Experiment:
  # With automatic axes, whatever kind the given mesh has: XLA propagates the shardings.
  mesh = Mesh(mesh.devices, mesh.axis_names)
  _check_batches(options, mesh)
  model = models.build(**options.model, num_classes=options.num_classes)
  train_split, eval_split = _splits(options)
  total_steps = _total_steps(options, train_split.num_used)
  _check_profile(options.profile, total_steps)
  schedule = optimizer.make_schedule(
    **vars(options.schedule), total_steps=total_steps, learning_rate=options.learning_rate
  )
  tx = optimizer.make_optimizer(
    **vars(options.optimizer), learning_rate=options.learning_rate, schedule=schedule
  )
  loss = losses.LOSSES[options.loss]
  normalize = augment.normalization(options.normalize, options.image_channels)
  first_state = functools.partial(
    state.first_state, tx=tx, seed=options.seed, ema_decay=options.ema_decay
  )

  def init_state() -> state.TrainState:
    return first_state(state.init_variables(model, options.input_shape, options.seed))

  abstract_state = jax.eval_shape(init_state)
  if abstract_state.batch_stats and options.grad_accum_steps > 1:
    raise InputError(
      "config.grad_accum_steps must be 1 for a model with batch statistics: those of a part are not "
      "those of the batch."
    )
  shardings = sharding.make_shardings(mesh, abstract_state, options.mesh.rules)
  variables = shardings.state.variables()
  gather = sharding.make_gather(variables)
  train_step = step.make_train_step(
    model=model,
    tx=tx,
    schedule=schedule,
    learning_rate=options.learning_rate,
    loss=loss,
    augment=augment.make_augment(
      normalize=normalize, num_classes=options.num_classes, mixup_p=options.mixup_p
    ),
    grad_accum_steps=options.grad_accum_steps,
    ema_decay=options.ema_decay,
    multipliers=optimizer.make_multipliers(options.optimizer.lr_multipliers),
    param_shardings=shardings.state.params,
  )
  eval_step = step.make_eval_step(model=model, loss=loss, normalize=normalize)
  return Experiment(
    options=options,
    mesh=mesh,
    model=model,
    tx=tx,
    schedule=schedule,
    abstract_state=abstract_state,
    shardings=shardings,
    init_state=jax.jit(init_state, out_shardings=shardings.state),
    first_state=jax.jit(first_state, out_shardings=shardings.state),
    normalize=normalize,
    train_step=jax.jit(
      train_step,
      in_shardings=(shardings.state, shardings.batch),
      out_shardings=(shardings.state, shardings.replicated),
      donate_argnums=0,
    ),
    eval_step=jax.jit(
      lambda variables, batch: eval_step(gather(variables), batch),
      in_shardings=(variables, shardings.batch),
      out_shardings=shardings.replicated,
    ),
    total_steps=total_steps,
    train_split=train_split,
    eval_split=eval_split,
  )


def _check_batches(options: schema.Options, mesh: Mesh) -> None:
  parts = mesh.size * options.grad_accum_steps
  if options.batch_size % parts:
    upper = -(-options.batch_size // parts) * parts
    around = " or ".join(f"{n}" for n in (upper - parts, upper) if n)
    raise InputError(
      f"config.batch_size {options.batch_size} is not divisible by {mesh.size} devices × "
      f"{options.grad_accum_steps} accumulation steps; {around} would be."
    )


def _total_steps(options: schema.Options, num_examples: int) -> int:
  """Epochs are whole batches drawn from an endless sequence of permutations, so the last is cut."""
  if options.total_steps is not None:
    total_steps = options.total_steps
  elif options.total_epochs is not None:
    total_steps = int(options.total_epochs * num_examples) // options.batch_size
  else:
    raise InputError("set config.total_epochs or config.total_steps.")
  if total_steps < 1:
    raise InputError(
      f"the run has {total_steps} steps: raise config.total_epochs or total_steps, or lower batch_size "
      f"({options.batch_size}, of {num_examples} examples)."
    )
  return total_steps


def _check_profile(profile: schema.Profile, total_steps: int) -> None:
  if profile.first_step is not None and profile.first_step + profile.num_steps - 1 > total_steps:
    raise InputError(
      f"config.profile wants {profile.num_steps} steps from {profile.first_step} on, but the run has "
      f"{total_steps} steps."
    )


def _splits(options: schema.Options) -> tuple[pipeline.SplitSpec, pipeline.SplitSpec]:
  data, evaluation = options.data, options.evaluation

  def split(
    section: schema.Data | schema.Evaluation, where: str, **fields: Any
  ) -> pipeline.SplitSpec:
    return pipeline.SplitSpec(
      data_dir=data.data_dir,
      split=section.split,
      label=section.label,
      labels_per_image=section.labels_per_image,
      num_examples=section.num_examples,
      num_classes=options.num_classes,
      ops=ops.Preprocess(section.ops, options.input_shape, f"{where}.ops"),
      on_bad_record=data.on_bad_record,
      **fields,
    )

  return (
    split(
      data,
      "config.data",
      dataset=data.dataset,
      subset_percent=data.subset_percent,
      subset_seed=data.subset_seed,
    ),
    split(evaluation, "config.evaluation", dataset=evaluation.dataset or data.dataset),
  )


def make_predict_step(
  exp: Experiment, output: Callable[[dict[str, Any], dict[str, Any]], Any]
) -> Any:
  """Returns the jitted predict_step(variables, batch), replicated on all devices.

  Args:
    exp: the experiment.
    output: (batch, outputs of the model: logits (b, k) and pre_logits (b, c)) -> what is returned;
      what it does not use is not computed.
  """

  def predict_step(variables: state.Variables, batch: dict[str, Any]) -> Any:
    logits, sown = exp.model.apply(
      variables, exp.normalize(batch["image"]), mutable=["intermediates"]
    )
    (pre_logits,) = sown["intermediates"]["pre_logits"]
    return output(batch, {"logits": logits, "pre_logits": pre_logits})

  return jax.jit(
    predict_step,
    in_shardings=(exp.shardings.state.variables(), exp.shardings.batch),
    out_shardings=exp.shardings.replicated,
  )


def make_features_step(exp: Experiment) -> Any:
  """Returns the jitted (variables, batch) -> rows of pre_logits, label and mask."""

  def rows(batch: dict[str, Any], outputs: dict[str, Any]) -> dict[str, Any]:
    return {
      "pre_logits": outputs["pre_logits"],
      "label": batch["label"],
      "mask": batch["mask"],
    }

  return make_predict_step(exp, rows)
