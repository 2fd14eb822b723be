"""The flags by which a command becomes one of several processes.

A module apart, because importing it defines the flags.
"""

import os
import re
import sys

from absl import flags

from mixer_jax.errors import InputError
from mixer_jax.tools import supervisor

_DISTRIBUTED = flags.DEFINE_bool(
  "distributed",
  False,
  "Run as one of several processes. On TPU pods, GKE and Slurm they find each other.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "With --distributed: address of process 0, HOST:PORT."
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "With --distributed: number of processes."
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "With --distributed: number of this process, from 0."
)
_JOIN_SECONDS = flags.DEFINE_integer(
  "join_seconds",
  300,
  "With --distributed: seconds that the processes wait for each other at the start.",
  1,
)

if any(re.match("--?distributed", argument) for argument in sys.argv):
  # The supervisor reports in one line what JAX's coordination service reports at length. This must be set
  # before JAX is imported, which the configuration file does when the flags are parsed.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def join() -> None:
  """Joins the other processes, if --distributed says so.

  Raises:
    InputError: flags that do not go together, or nothing to find the other processes by.
    RendezvousError: the cluster does not know the others yet.
  """
  place = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  if not _DISTRIBUTED.value:
    if place != (None, None, None):
      raise InputError("--coordinator, --num_processes and --process_id need --distributed.")
    return
  _check(*place)
  supervisor.supervise(_JOIN_SECONDS.value)
  from mixer_jax.parallel import distributed

  distributed.join(*place, _JOIN_SECONDS.value)


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
    raise InputError(f"--coordinator={coordinator} is not HOST:PORT.")
  if num_processes is not None and process_id is not None and not 0 <= process_id < num_processes:
    raise InputError(
      f"--process_id={process_id} is not one of {num_processes} processes; they count from 0."
    )
