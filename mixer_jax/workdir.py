"""A run's directory: whose it is, and the state that a run starts from."""

import time
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils

from mixer_jax import checkpoint, configuration, experiment, finetune, metrics
from mixer_jax.errors import InputError
from mixer_jax.state import TrainState

_CONFIG = "config.json"
_SHARED_SECONDS = 30  # until a shared file system shows what another host has written


def check(directory: epath.Path, config: Any, may_change: tuple[str, ...]) -> None:
  """Raises InputError if the workdir belongs to a run with another configuration."""
  path = directory / _CONFIG
  try:
    if not path.exists():
      return
  except ImportError as e:
    raise InputError(
      f"workdir {directory}: {e}. Install it with pip install 'mixer-jax[gcs]'"
    ) from e
  except OSError as e:
    raise InputError(f"workdir {directory} cannot be read: {e}") from e
  changed = configuration.differences(configuration.load(path), config, may_change)
  if changed:
    listed = "\n  ".join(changed)
    raise InputError(
      f"{directory} belongs to a run with another configuration:\n  {listed}\nChoose another "
      "workdir, or give the configuration that it was started with."
    )


def claim(directory: epath.Path, config: Any) -> None:
  """Creates the workdir and leaves the configuration in it; raises InputError if it cannot.

  Process 0 does so; the others raise InputError if they do not see it.
  """
  if jax.process_index() == 0:
    try:
      directory.mkdir(parents=True, exist_ok=True)
      configuration.save(directory / _CONFIG, config)
    except OSError as e:
      raise InputError(f"workdir {directory} is not writable: {e}") from e
  if jax.process_count() == 1:
    return
  multihost_utils.sync_global_devices("the workdir is claimed")
  deadline = time.monotonic() + _SHARED_SECONDS
  while not (directory / _CONFIG).exists():
    if time.monotonic() > deadline:
      raise InputError(
        f"workdir {directory} is not shared: process {jax.process_index()} does not see what process 0 "
        "wrote there. Choose a shared file system or a bucket."
      )
    time.sleep(1)


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
    if exp.init.weights is None:
      return state
    params, line = finetune.initial_params(exp)
    metrics.say(line)
    return state.replace(params=params)
  return checkpoint.restore(directory, step, exp.abstract_state, exp.shardings.state)
