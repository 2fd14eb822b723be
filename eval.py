"""Evaluates a run or a weights file on the configuration's evaluation split.

python eval.py --workdir=DIR [--checkpoint=newest|best|STEP] [--weights=FILE.npz]
python eval.py --config=configs/NAME.py --weights=FILE.npz
"""

from absl import app, flags
from ml_collections import config_flags

from mixer_jax.errors import InputError
from mixer_jax.tools import command

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Configuration; default: the workdir's own.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a run.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "newest", "newest, best, or a step.")
_WEIGHTS = flags.DEFINE_string("weights", None, "Weights file (.npz) instead of a checkpoint.")


def main(argv: list[str]) -> None:
  from mixer_jax import loop  # Late, as in train.py.

  command.no_arguments(argv)
  which = _CHECKPOINT.value
  if which not in ("newest", "best") and not which.isdigit():
    raise InputError(f"--checkpoint={which} is neither newest, best nor a step.")
  if _WEIGHTS.value and flags.FLAGS["checkpoint"].present:
    raise InputError("--checkpoint and --weights exclude each other.")
  loop.evaluate(
    workdir=_WORKDIR.value,
    config=command.loaded(_CONFIG),
    which=int(which) if which.isdigit() else which,
    weights_file=_WEIGHTS.value,
  )


if __name__ == "__main__":
  command.run(app.run, main)
