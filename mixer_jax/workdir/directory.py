"""A run's directory: its path, its configuration, and where its checkpoints are."""

import platform
import re
import shlex
import sys
import time
from importlib import metadata
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils

from mixer_jax import configuration, files, schema, weights
from mixer_jax.errors import InputError, SaveError, installing
from mixer_jax.weights import hub

_CONFIG = "config.json"
_ENVIRONMENT = "environment.json"
_PACKAGES = ("mixer-jax", "jax", "jaxlib", "flax", "optax", "numpy")
_RUN = "run_id"
_SHARED_SECONDS = 30  # until a shared file system shows what another host has written
_ADDRESS = re.compile(r"https?://|hf://|.*://.*\.(npz|safetensors)$")  # of a weights file


def path_of(workdir: str) -> epath.Path:
  """Returns the workdir's path, there or not; raises InputError if that cannot be known, or it can hold no checkpoints."""
  path = files.path_of(workdir, "the workdir")
  path = path if "://" in workdir else path.absolute()  # as Orbax wants local ones
  _check_name(str(path))
  try:
    path.exists()
  except ImportError as e:
    raise InputError(f"workdir {path}: {e}. Install it with {installing('gcs')}") from e
  except OSError as e:
    raise InputError(f"workdir {path} cannot be read: {e}") from e
  return path


def _check_name(path: str) -> None:
  """Raises InputError for a character that Orbax or TensorStore does not take as it is."""
  if wrong := re.search(r"[\[\]*?\\]" if "://" in path else r"[\\\ud800-\udfff]", path):
    raise InputError(
      f"workdir {path!r} has the character {wrong[0]!a}, below which no checkpoint can be read back: choose another "
      "name. docs/runs.md says how to rescue a run that is there."
    )


def find_run(source: str) -> epath.Path | None:
  """Returns the workdir that `source` names. Returns None if it names released weights or a file.

  Every directory without a model of the hub counts as a workdir: `load_config` raises InputError if it holds no run.
  """
  if source in weights.RELEASED or _ADDRESS.match(source):
    return None
  if "://" not in source and not files.path_of(source, "the name of the weights").is_dir():
    return None
  path = path_of(source)
  return path if path.is_dir() and not (path / hub.WEIGHTS).exists() else None


def checkpoint_path(workdir: epath.Path, step: int) -> epath.Path:
  """Returns the directory of a checkpoint's files; Orbax calls its only item "default"."""
  return workdir / "checkpoints" / str(step) / "default"


def find_config(directory: epath.Path) -> dict[str, Any] | None:
  """Returns the configuration as it was saved. None in a fresh workdir."""
  path = directory / _CONFIG
  return configuration.load(path) if path.exists() else None


def find_run_id(directory: epath.Path) -> str | None:
  """Returns the random id of the run that the workdir belongs to. None if none is written there."""
  path = directory / _RUN
  try:
    return files.read_listed(path).decode("ascii").strip() or None
  except FileNotFoundError:
    return None
  except ValueError as e:
    raise InputError(
      f"{path} is damaged: {e}. Delete it: the checkpoints carry the id, too."
    ) from e


def load_config(directory: epath.Path) -> dict[str, Any]:
  """Returns the configuration that a run was started with.

  A configuration that an earlier version saved gets today's keys, with their defaults where it has none.

  Raises:
    InputError: the directory does not belong to a run, or the file is damaged.
  """
  return schema.translated(configuration.load(directory / _CONFIG))


def find_environment(directory: epath.Path) -> dict[str, Any]:
  """Returns what the run was last started with (`_environment`). {} if that is not known."""
  try:
    return dict(configuration.load(directory / _ENVIRONMENT))
  except (InputError, TypeError, ValueError):  # none, of an earlier version, or damaged
    return {}


def _environment() -> dict[str, str]:
  """Returns the command of this process, its devices and its software."""
  found = [package for name in _PACKAGES for package in metadata.distributions(name=name)]
  software = [
    f"Python {platform.python_version()}",
    *(f"{one.name} {one.version}" for one in found),
  ]
  return {
    "command": shlex.join(sys.orig_argv),
    "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind} in {jax.process_count()} process(es)",
    "software": ", ".join(software),
    "system": platform.platform(),
  }


def create(directory: epath.Path, config: Any, run: str) -> None:
  """Creates the workdir with the configuration, the run's id and `_environment`; raises InputError if it cannot.

  Process 0 does so; the others raise InputError if they do not see it.
  """
  if jax.process_index() == 0:
    try:
      directory.mkdir(parents=True, exist_ok=True)
      (directory / files.CHECKSUMS).unlink(missing_ok=True)  # until all that it lists is there
      configuration.save(directory / _CONFIG, config)
      configuration.save(directory / _ENVIRONMENT, _environment())
      with files.replacing(directory / _RUN) as partial:
        partial.write_text(f"{run}\n")
      files.list_checksums(directory, (_CONFIG, _RUN))
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
