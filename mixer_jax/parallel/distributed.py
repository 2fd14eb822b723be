"""Several processes as one run: they compare what they run, stop together and report why.

JAX does the work. `jax.distributed` finds the processes and detects a lost one. Its preemption service agrees on the
step to stop at.
"""

import hashlib
import json
import logging
import os
import pathlib
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mixer_jax import configuration
from mixer_jax.errors import InputError, RendezvousError

HEARTBEAT_SECONDS = 20  # without a sign of life, after which a process counts as lost
_PATIENCE_SECONDS = 2 * HEARTBEAT_SECONDS
_POLL_SECONDS = 2
_STOPPED = "mixer_jax/stopped/"
_FOLLOWER = "mixer_jax-follower"
_FOREVER_MS = 10**10
# What JAX says where the others' names or a cloud's metadata are not there yet, as in a starting pod.
_NOT_YET = re.compile(r"Failed to recognize coordinator address|Getting metadata")
_stopping = threading.Event()  # this process tells its own reason
# What each process may have its own way: where its host keeps the data, and how it loads them.
_PRIVATE = (
  "data_dir",
  "config.data.data_dir",
  "config.data.num_workers",
  "config.evaluators.*.data_dir",
  "config.evaluators.*.num_workers",
)


def join(
  coordinator: str | None, num_processes: int | None, process_id: int | None, wait_seconds: int
) -> None:
  """Joins the other processes.

  Args:
    coordinator: HOST:PORT of process 0, the number of processes and this one's; None, all three: found
      by JAX (TPU pods, GKE, Slurm).
    num_processes, process_id: see `coordinator`.
    wait_seconds: how long to wait for the others. After that JAX aborts (tools/supervisor.py).

  Raises:
    InputError: there is nothing to find the others by, or the coordinator's port is taken.
    RendezvousError: the cluster that JAX asks does not answer, or does not know the coordinator yet.
  """
  if process_id == 0 and coordinator is not None:
    _check_port(coordinator)
  logger = logging.getLogger("jax._src.distributed")
  logger.setLevel(logging.INFO)
  logger.addFilter(lambda record: _say_where(record, wait_seconds))
  # Python would handle Ctrl-C after the wait.
  interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      initialization_timeout=wait_seconds,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
  except (ValueError, RuntimeError, OSError) as e:
    if isinstance(e, OSError) or _NOT_YET.search(str(e)):
      raise RendezvousError(
        f"--distributed: the other processes were not found within {wait_seconds} s: {e}"
      ) from e
    raise InputError(
      f"--distributed: {e} This is no TPU pod, GKE or Slurm job that JAX knows: give --coordinator, "
      "--num_processes and --process_id."
    ) from e
  finally:
    signal.signal(signal.SIGINT, interrupt)
  threading.Thread(target=_follow, name=_FOLLOWER, daemon=True).start()


def _say_where(record: logging.LogRecord, wait_seconds: int) -> bool:
  """Says which coordinator JAX connects to, instead of JAX; it alone knows where a cluster's is.

  The supervisor (tools/supervisor.py) reads it.
  """
  if record.msg.startswith("Connecting to"):
    place = f"the coordinator {_state().coordinator_address}, for up to {wait_seconds} s"
    role = "waiting for the others as" if _state().process_id == 0 else "connecting to"
    print(f"{role} {place}", file=sys.stderr, flush=True)
  return record.levelno > logging.INFO


def _check_port(coordinator: str) -> None:
  """Raises InputError if the coordinator cannot listen; JAX would crash."""
  port = coordinator.rpartition(":")[2]
  try:
    with socket.socket(socket.AF_INET) as probe:
      probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      probe.bind(("", int(port)))
  except (OSError, ValueError, OverflowError) as e:
    raise InputError(f"--coordinator={coordinator}: cannot listen on port {port!r}: {e}") from e


def _state() -> Any:
  """Returns what JAX knows of the processes."""
  from jax._src import distributed  # Its only access; Orbax uses it in the same way.

  return distributed.global_state


def _client() -> Any:
  """Returns the client of JAX's key-value store. None in a single process."""
  return _state().client


def _follow() -> None:
  """Ends this process when another one stops, and prints that one's reason."""
  while (client := _client()) is not None and not _stopping.wait(_POLL_SECONDS):
    try:
      stopped = client.key_value_dir_get(_STOPPED)
    except Exception:  # the coordinator is gone, which JAX notices itself
      return
    for key, value in stopped:
      number = key.rpartition("/")[2]
      if number != str(jax.process_index()):
        status, reason = value.split("\n", 1)
        print(f"error: process {number} stopped: {reason}", file=sys.stderr, flush=True)
        os._exit(int(status))


def stop_all(status: int, reason: str) -> None:
  """Ends this process at once and lets the others end with the same status and reason."""
  _stopping.set()
  _client().key_value_set(f"{_STOPPED}{jax.process_index()}", f"{status}\n{reason}", True)
  if jax.process_index() == 0:  # the others learn it from here
    time.sleep(2 * _POLL_SECONDS)
  os._exit(status)


def await_first(what: str) -> None:
  """Waits until process 0 has come here, without a time limit; the others end if it stops (`stop_all`)."""
  if jax.process_count() == 1:
    return
  key = f"mixer_jax/first/{what}"
  if jax.process_index() == 0:
    _client().key_value_set(key, "", True)
  else:
    _client().blocking_key_value_get(key, _FOREVER_MS)


def of_first(values: np.ndarray) -> np.ndarray:
  """Returns process 0's values, which all processes have in the same shape."""
  if jax.process_count() == 1 or values.size == 0:
    return values
  return np.asarray(multihost_utils.broadcast_one_to_all(values))


def leave() -> None:
  """Ends the connection with the other processes, once all have come here.

  The thread that follows them must have ended before Python does: it would be cut off inside JAX, which aborts then.
  """
  _stopping.set()
  for thread in threading.enumerate():
    if thread.name == _FOLLOWER:
      thread.join()
  jax.distributed.shutdown()


def wait_for_loss() -> None:
  """Waits for JAX to notice a lost process, if there is one, and to end this one.

  What a lost process first causes here is an error of the step or of a save that does not name it.
  """
  time.sleep(_PATIENCE_SECONDS)


def agree(what: Mapping[str, Any]) -> None:
  """Compares what the processes are to run, nested plain values, and the code they run it with.

  Raises:
    InputError: on all processes, if one differs from process 0; names it and shows what differs.
  """
  if jax.process_count() == 1:
    return
  mine = {**what, "host": socket.gethostname(), "jax": jax.__version__, "code": _code_version()}
  text = json.dumps(configuration.flatten(mine)).encode()
  runs = [json.loads(t) for t in _gather(text)]
  lines = []
  for number, run in enumerate(runs):
    differing = configuration.differences(runs[0], run, (*_PRIVATE, "host"))
    if differing:
      lines.append(f"process {number} on {run['host']}, instead of process 0's:")
      lines += [f"  {line}" for line in differing]
  if lines:
    raise InputError("the processes were not given the same:\n" + "\n".join(lines))


def _gather(text: bytes) -> list[bytes]:
  """Returns the texts of all processes."""
  sizes = np.ravel(multihost_utils.process_allgather(np.int32(len(text))))
  padded = np.zeros(max(sizes), np.uint8)
  padded[: len(text)] = np.frombuffer(text, np.uint8)
  rows = multihost_utils.process_allgather(padded)
  return [bytes(row[:size]) for row, size in zip(rows, sizes, strict=True)]


def _code_version() -> str:
  """Returns a hash of this package's code."""
  root = pathlib.Path(__file__).parents[1]
  digest = hashlib.sha256()
  for path in sorted(root.rglob("*.py")):
    digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
  return digest.hexdigest()[:16]
