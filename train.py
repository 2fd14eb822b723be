"""Trains a model: python train.py --config=configs/quickstart.py --workdir=DIR [--config.KEY=VALUE].

The same command resumes. Exit status: 0 finished, 2 bad input, 1 diverged or could not save,
143 or 130 stopped by SIGTERM or Ctrl-C after saving.
"""

from absl import app, flags
from ml_collections import config_flags

from mixer_jax.errors import InputError
from mixer_jax.tools import command

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file.", lock_config=True)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory of the run, local, shared or gs://.", required=True
)
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "One of several processes; on TPU pods, GKE and Slurm they find each other."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "With --distributed: HOST:PORT of process 0."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --distributed: how many.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --distributed: which one, from 0.")


def main(argv: list[str]) -> None:
  # Worker processes import this file anew and need neither JAX nor the loop, so they come late.
  import jax

  from mixer_jax import loop

  command.no_arguments(argv)
  place = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  if _DISTRIBUTED.value:
    jax.distributed.initialize(*place, heartbeat_timeout_seconds=20)
  elif place != (None, None, None):
    raise InputError("--coordinator, --num_processes and --process_id need --distributed.")
  stop = loop.StopSignal().install()
  loop.train(command.loaded(_CONFIG), _WORKDIR.value, stop)


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  command.run(app.run, main)
