"""A run's directory: its path, its configuration, and where its checkpoints are."""

import time
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils

from mixer_jax import configuration, models, schema
from mixer_jax.errors import InputError, SaveError

_CONFIG = "config.json"
_SHARED_SECONDS = 30  # until a shared file system shows what another host has written


def path_of(workdir: str) -> epath.Path:
  """Returns the workdir's path, there or not; raises InputError if that cannot be known."""
  path = epath.Path(workdir).expanduser()
  path = path if "://" in workdir else path.absolute()  # as Orbax wants local ones
  try:
    path.exists()
  except ImportError as e:
    raise InputError(f"workdir {path}: {e}. Install it with pip install 'mixer-jax[gcs]'") from e
  except OSError as e:
    raise InputError(f"workdir {path} cannot be read: {e}") from e
  return path


def checkpoint_path(workdir: epath.Path, step: int) -> epath.Path:
  """Returns the directory of a checkpoint's files; Orbax calls its only item "default"."""
  return workdir / "checkpoints" / str(step) / "default"


def find_config(directory: epath.Path) -> dict[str, Any] | None:
  """Returns the configuration as it was saved, None in a fresh workdir."""
  path = directory / _CONFIG
  return configuration.load(path) if path.exists() else None


def load_config(directory: epath.Path) -> dict[str, Any]:
  """Returns the configuration that a run was started with, by any version, with today's keys.

  Raises:
    InputError: the directory is no run's, or the file is damaged.
  """
  return schema.translated(configuration.load(directory / _CONFIG), models.schema)


def create(directory: epath.Path, config: Any) -> None:
  """Creates the workdir and leaves the configuration in it; raises InputError if it cannot.

  Process 0 does so; the others raise InputError if they do not see it.
  """
  if jax.process_index() == 0:
    try:
      directory.mkdir(parents=True, exist_ok=True)
      configuration.save(directory / _CONFIG, config)
    except (OSError, SaveError) as e:
      raise InputError(f"workdir {directory} is not writable: {e}") from e
  if jax.process_count() == 1:
    return
  multihost_utils.sync_global_devices("the workdir is created")
  deadline = time.monotonic() + _SHARED_SECONDS
  while not (directory / _CONFIG).exists():
    if time.monotonic() > deadline:
      raise InputError(
        f"workdir {directory} is not shared: process {jax.process_index()} does not see what process 0 "
        "wrote there. Choose a shared file system or a bucket."
      )
    time.sleep(1)
