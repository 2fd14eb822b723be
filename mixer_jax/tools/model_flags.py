"""The flags by which commands name a trained model: a run's workdir, or a weights file.

A module apart, because importing it defines the flags.
"""

from typing import TYPE_CHECKING, Any

from absl import flags

from mixer_jax.errors import InputError
from mixer_jax.tools import command, config_files

if TYPE_CHECKING:
  from mixer_jax import inference

_CONFIG = config_files.define(" Default: the workdir's own configuration.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a run.")
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", "newest", "Checkpoint of --workdir: newest, best, or a step."
)
_WEIGHTS = flags.DEFINE_string(
  "weights", None, "Released name, address or file of weights to load instead of a checkpoint."
)


def chosen() -> dict[str, Any]:
  """Returns the arguments of inference.load; raises InputError for flags that do not go together."""
  if _WEIGHTS.value and flags.FLAGS["checkpoint"].present:
    raise InputError("--checkpoint and --weights exclude each other.")
  return {
    "workdir": _WORKDIR.value,
    "config": command.loaded(_CONFIG),
    "which": _CHECKPOINT.value,
    "weights_file": _WEIGHTS.value,
  }


def load() -> "inference.Trained":
  """Returns the model that the flags name."""
  from mixer_jax import inference

  return inference.load(**chosen())
