"""A run's directory: whose it is, and the state that a run starts from."""

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
  """Returns the workdir's path; Orbax wants local ones absolute."""
  path = epath.Path(workdir).expanduser()
  return path if "://" in workdir else path.absolute()


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
  saved = configuration.load(path)
  _check_version(directory, saved, may_change)
  others = {*saved["evaluators"]} ^ {*config["evaluators"]}  # may come and go
  may_change = (*may_change, *(f"evaluators.{name}" for name in others))
  if changed := configuration.differences(saved, config, may_change):
    listed = "\n  ".join(changed)
    raise InputError(
      f"{directory} belongs to a run with another configuration:\n  {listed}\nChoose another "
      "workdir, or give the configuration that it was started with."
    )


def _check_version(
  directory: epath.Path, saved: dict[str, Any], may_change: tuple[str, ...]
) -> None:
  today = schema.translated(saved, models.schema)
  if changed := configuration.differences(saved, today, may_change):
    listed = "\n  ".join(changed)
    raise InputError(
      f"{directory} belongs to a run of an earlier version, which had other keys:\n  {listed}\nFinish "
      "it with that version. This one evaluates it, and starts a new workdir from its parameters with "
      f"--config.init.weights={directory}"
    )


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
