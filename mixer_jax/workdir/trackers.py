"""Where metrics go beside the workdir's own files: Weights & Biases."""

import importlib.util
from collections.abc import Mapping
from typing import Any, Protocol

from etils import epath

from mixer_jax.errors import InputError, installing


class Tracker(Protocol):
  """A place that gets every step's metrics once, in order."""

  def write(self, step: int, values: Mapping[str, float]) -> None: ...

  def close(self) -> None: ...


class Wandb:
  """A run of Weights & Biases; WANDB_MODE=offline keeps it in `workdir/wandb`."""

  def __init__(self, project: str, workdir: epath.Path, run: str, config: Mapping[str, Any]):
    """Begins a run of the workdir's name; goes on with it if `run`, its identity there, is known."""
    import wandb  # pyright: ignore[reportMissingImports]

    self._run = wandb.init(
      project=project, dir=str(workdir), id=run, name=workdir.name, config=dict(config), resume="allow"
    )  # fmt: skip

  def write(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log(dict(values), step=step)

  def close(self) -> None:
    self._run.finish()


def check(project: str | None) -> None:
  """Raises InputError if metrics are to go to Weights & Biases and its library is not installed."""
  if project and importlib.util.find_spec("wandb") is None:
    raise InputError(
      f"config.log.wandb is {project!r}, but wandb is not installed: {installing('wandb')}"
    )
