"""Where configuration becomes objects; touches no device and no data.

`build(config, mesh)` is what training, evaluation, benchmarks and planning all call, so what is
planned and measured is what trains. Derived numbers are computed here, once.
"""

import dataclasses
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
from mixer_jax.training import optimizer, state, step


@dataclasses.dataclass(frozen=True)
class Experiment:
  """All objects of a run.

  Attributes:
    options: the configuration's top level, checked.
    model, tx, schedule: module, optimizer, step -> multiplier of the learning rate.
    abstract_state: shapes and types of the train state.
    shardings: of state, batch and small results on the mesh.
    init_state: jitted () -> TrainState before the first step.
    init_opt_state: jitted params -> the optimizer's state before the first step.
    train_step: jitted (state, batch) -> (state, metrics); the state is donated.
    eval_step: jitted (params, model_state, batch) -> rows of results, replicated.
    total_steps: steps of the whole run.
    train_split, eval_split: what to load, unopened.
    init, data, evaluation, fewshot, checkpoint, log, profile: the sections of that name.
  """

  options: schema.Options
  mesh: Mesh
  model: nn.Module
  tx: optax.GradientTransformation
  schedule: optimizer.Schedule
  abstract_state: state.TrainState
  shardings: sharding.Shardings
  init_state: Callable[[], state.TrainState]
  init_opt_state: Callable[[Any], Any]
  train_step: Any
  eval_step: Any
  total_steps: int
  train_split: pipeline.SplitSpec
  eval_split: pipeline.SplitSpec
  init: schema.Init
  data: schema.Data
  evaluation: schema.Evaluation
  fewshot: schema.Fewshot
  checkpoint: schema.Checkpoint
  log: schema.Log
  profile: schema.Profile


def make_mesh(config: Mapping[str, Any], devices: Sequence[Any] | None = None) -> Mesh:
  """Returns the mesh that config.mesh asks for, over the given devices or those there are."""
  options = configuration.call(schema.MeshOptions, config["mesh"], "config.mesh")
  return sharding.make_mesh(data=options.data, fsdp=options.fsdp, devices=devices)


def build(config: Mapping[str, Any], mesh: Mesh) -> Experiment:
  """Returns the experiment that the configuration describes, for this mesh.

  Args:
    config: configs/common.py's keys, all of them and no others.
    mesh: devices; they may be absent ones (ahead-of-time compilation).

  Raises:
    InputError: names the key at fault and the way out.
  """
  options = configuration.call(schema.Options, config, "config")
  # With automatic axes, whatever kind the given mesh has: XLA propagates the shardings.
  mesh = Mesh(mesh.devices, mesh.axis_names)
  init = configuration.call(schema.Init, options.init, "config.init")
  data = configuration.call(schema.Data, options.data, "config.data")
  evaluation = configuration.call(schema.Evaluation, options.evaluation, "config.evaluation")
  fewshot = configuration.call(schema.Fewshot, options.fewshot, "config.fewshot")
  checkpoint = configuration.call(schema.Checkpoint, options.checkpoint, "config.checkpoint")
  log = configuration.call(schema.Log, options.log, "config.log")
  profile = configuration.call(schema.Profile, options.profile, "config.profile")
  rules = configuration.call(schema.MeshOptions, options.mesh, "config.mesh").rules
  schema.check_ranges(config)
  _check_batches(options, mesh)
  model = models.build(**_model_fields(options))
  _check_grid(options, model)
  train_split, eval_split = _splits(options, data, evaluation)
  total_steps = _total_steps(options, train_split.num_used)
  _check_profile(profile, total_steps)
  schedule = configuration.call(
    optimizer.make_schedule,
    options.schedule,
    "config.schedule",
    total_steps=total_steps,
    learning_rate=options.learning_rate,
  )
  tx = configuration.call(
    optimizer.make_optimizer,
    options.optimizer,
    "config.optimizer",
    learning_rate=options.learning_rate,
    schedule=schedule,
  )
  loss = losses.LOSSES[options.loss]
  abstract_state = state.abstract_state(model, tx, options.image_size)
  if abstract_state.model_state and options.grad_accum_steps > 1:
    raise InputError(
      "config.grad_accum_steps must be 1 for a model with batch statistics: those of a part are not "
      "those of the batch."
    )
  shardings = sharding.make_shardings(mesh, abstract_state, rules)
  gather = sharding.make_gather(shardings.state.params)
  train_step = step.make_train_step(
    model=model,
    tx=tx,
    schedule=schedule,
    learning_rate=options.learning_rate,
    loss=loss,
    num_classes=options.num_classes,
    mixup_p=options.mixup_p,
    grad_accum_steps=options.grad_accum_steps,
    multipliers=optimizer.make_multipliers(options.optimizer["lr_multipliers"]),
    param_shardings=shardings.state.params,
  )
  eval_step = step.make_eval_step(model=model, loss=loss)
  return Experiment(
    options=options,
    mesh=mesh,
    model=model,
    tx=tx,
    schedule=schedule,
    abstract_state=abstract_state,
    shardings=shardings,
    init_state=jax.jit(
      lambda: state.init_state(model, tx, options.image_size, options.seed),
      out_shardings=shardings.state,
    ),
    init_opt_state=jax.jit(tx.init, out_shardings=shardings.state.opt_state),
    train_step=jax.jit(
      train_step,
      in_shardings=(shardings.state, shardings.batch),
      out_shardings=(shardings.state, shardings.replicated),
      donate_argnums=0,
    ),
    eval_step=jax.jit(
      lambda params, model_state, batch: eval_step(gather(params), model_state, batch),
      in_shardings=(shardings.state.params, shardings.state.model_state, shardings.batch),
      out_shardings=shardings.replicated,
    ),
    total_steps=total_steps,
    train_split=train_split,
    eval_split=eval_split,
    init=init,
    data=data,
    evaluation=evaluation,
    fewshot=fewshot,
    checkpoint=checkpoint,
    log=log,
    profile=profile,
  )


def _model_fields(options: schema.Options) -> dict[str, Any]:
  fields = dict(options.model.items())
  if "num_classes" in fields:
    raise InputError("config.model.num_classes is not read by anything. Set config.num_classes.")
  for key in ("name", *models.optional_fields(fields.get("name"))):
    if key not in fields or (key != "variant" and fields[key] is None):
      raise InputError(f"config.model.{key} is missing; configs/common.py has every key.")
  return fields | {"num_classes": options.num_classes}


def _check_grid(options: schema.Options, model: nn.Module) -> None:
  size, patch = options.image_size, getattr(model, "patch_size", 1)
  if size % patch:
    raise InputError(
      f"config.image_size {size} is not a multiple of the patch size {patch}: the patch must divide "
      "the image."
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


def _splits(
  options: schema.Options, data: schema.Data, evaluation: schema.Evaluation
) -> tuple[pipeline.SplitSpec, pipeline.SplitSpec]:
  common: dict[str, Any] = dict(
    data_dir=data.data_dir, num_classes=options.num_classes, on_bad_record=data.on_bad_record
  )

  def split(
    section: schema.Data | schema.Evaluation, where: str, **fields: Any
  ) -> pipeline.SplitSpec:
    return pipeline.SplitSpec(
      split=section.split,
      label=section.label,
      labels_per_image=section.labels_per_image,
      num_examples=section.num_examples,
      ops=ops.Preprocess(section.ops, options.image_size, f"{where}.ops"),
      **fields,
      **common,
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
  """Returns the jitted predict_step(params, model_state, batch), replicated on all devices.

  Args:
    exp: the experiment.
    output: (batch, outputs of the model: logits (b, k) and pre_logits (b, c)) -> what is returned;
      what it does not use is not computed.
  """

  def predict_step(params: Any, model_state: Any, batch: dict[str, Any]) -> Any:
    logits, sown = exp.model.apply(
      {"params": params, **model_state},
      step.value_range(batch["image"]),
      mutable=["intermediates"],
    )
    (pre_logits,) = sown["intermediates"]["pre_logits"]
    return output(batch, {"logits": logits, "pre_logits": pre_logits})

  state = exp.shardings.state
  return jax.jit(
    predict_step,
    in_shardings=(state.params, state.model_state, exp.shardings.batch),
    out_shardings=exp.shardings.replicated,
  )


def make_features_step(exp: Experiment) -> Any:
  """Returns the jitted (params, model_state, batch) -> rows of pre_logits, label and mask."""

  def rows(batch: dict[str, Any], outputs: dict[str, Any]) -> dict[str, Any]:
    return {
      "pre_logits": outputs["pre_logits"],
      "label": batch["label"],
      "mask": batch["mask"],
    }

  return make_predict_step(exp, rows)
