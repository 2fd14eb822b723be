"""Small configurations for tests."""

import contextlib

import jax
import numpy as np

from configs import common, quickstart
from mixer_jax import weights
from mixer_jax.data import pipeline
from mixer_jax.training import experiment


def small_config(**changes):
  """Returns the quickstart with a tiny model, 20 steps of batch 16 and the given top-level changes."""
  config = quickstart.get_config()
  config.batch_size = 16
  config.augment.mixup_p = 0.0
  config.total_epochs, config.total_steps = None, 20
  config.learning_rate = 0.001
  config.model.num_blocks = 2
  config.model.hidden_dim = 16
  config.model.tokens_mlp_dim = 8
  config.model.channels_mlp_dim = 32
  config.evaluators.val.batch_size = 64
  config.evaluators.val.every_steps = 10
  config.checkpoint.every_steps = 4
  config.schedule.warmup_steps = 2
  config.log.every_steps = 5
  config.evaluators.pictures.every_steps = 0
  config.mesh.data = 1
  for key, value in changes.items():
    config[key] = value
  with contextlib.suppress(AttributeError):
    config.unlock()
  return config


def random_variables(setup):
  """Returns variables of a setup's model of which none is zero: a new head is, and keeps gradients from the body."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: rng.normal(scale=0.3, size=x.shape).astype(x.dtype), setup.abstract_variables
  )


def small_weights(tmp_path_factory):
  """Returns a file of such weights of the small model, at 16 px."""
  path = tmp_path_factory.mktemp("weights") / "small.npz"
  weights.save_npz(path, random_variables(experiment.build_model(small_config())))
  return str(path)


def of_clips(config, frames):
  """Returns the configuration for clips of the same images, a frame of each of equal parts of a video."""
  config.frames = frames
  config.data.ops = f"segments|{config.data.ops}"
  config.evaluators.val.ops = f"segments(views=1)|{config.evaluators.val.ops}"
  return config


def with_family(config, family, fields):
  """Returns the configuration with another model."""
  config.model = common.get_config(family).model
  config.model.update(fields)
  return config


def train_batches(exp, total_steps, rows=None):
  """Returns the batches of an experiment as the loop reads them; of a part of their rows, if that is given."""
  size = exp.options.batch_size
  return pipeline.TrainBatches(
    exp.train_split, exp.train_split.open(), seed=0, batch_size=size,
    rows=np.arange(size) if rows is None else rows, total_steps=total_steps,
  )  # fmt: skip
