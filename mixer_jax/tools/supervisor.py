"""A parent process for each of several: says in one line what JAX's runtime ends with a C++ stack.

Where another process is lost, or the coordinator is not reached, JAX's coordination service calls
abort(), which nothing inside the process can turn into a message. The parent passes signals and
errors on, dies with its child and the child with it.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
from types import FrameType
from typing import IO

LOST = 75  # exit status: sysexits.h's EX_TEMPFAIL, "the same command may succeed later"
_MARK = "MIXER_JAX_SUPERVISOR"
_FATAL = re.compile(rb"F\d{4} \d\d:\d\d:\d\d|terminate called|Fatal Python error")
_PR_SET_PDEATHSIG = 1


def supervise(coordinator: str, wait_seconds: int) -> None:
  """Returns in a child of this process that runs the same command; the parent exits like the child.

  Args:
    coordinator: how to call it in messages.
    wait_seconds: how long the processes wait for each other at the start.
  """
  supervisor = os.environ.pop(_MARK, None)
  if supervisor is not None:
    _die_with(int(supervisor))
    return
  # stderr alone passes through here. A group of its own, so that Ctrl-C arrives once: from here.
  child = subprocess.Popen(  # noqa: S603  (this very command)
    [sys.executable, *sys.orig_argv[1:]],
    env={**os.environ, _MARK: str(os.getpid())},
    stderr=subprocess.PIPE,
    process_group=0,
  )

  def pass_on(number: int, frame: FrameType | None) -> None:
    del frame
    child.send_signal(number)

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, pass_on)
  assert child.stderr is not None
  fatal = _forward(child.stderr).decode(errors="replace")
  status = child.wait()
  line = explain(fatal, coordinator, wait_seconds) if status == -signal.SIGABRT else None
  if line is not None:
    print(f"error: {line}", file=sys.stderr, flush=True)
    sys.exit(LOST)
  sys.stderr.write(fatal)
  sys.exit(status if status >= 0 else 128 - status)


def _die_with(supervisor: int) -> None:
  """Ends this process when its supervisor ends, however that happens (on Linux)."""
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  if os.getppid() != supervisor:
    os._exit(LOST)


def _forward(errors: IO[bytes]) -> bytes:
  """Copies lines to stderr as they come; returns what comes from a fatal error on, uncopied."""
  fatal = b""
  for line in errors:
    if fatal or _FATAL.match(line):
      fatal += line
    else:
      sys.stderr.buffer.write(line)
      sys.stderr.buffer.flush()
  return fatal


def explain(fatal: str, coordinator: str, wait_seconds: int) -> str | None:
  """Returns in one line why JAX's coordination service ended the process, None if it did not.

  Args:
    fatal: what it wrote.
    coordinator, wait_seconds: as for `supervise`.
  """
  resume = "the same command resumes"
  if lost := re.search(r"stopped sending heartbeats\):\s*\n((?:\d+[\s,]*)+)", fatal):
    numbers = ", ".join(re.findall(r"\d+", lost[1]))
    return f"lost process {numbers}: no sign of life from it any more; {resume}"
  if "RegisterTask" in fatal:
    if "DEADLINE_EXCEEDED" in fatal or "UNAVAILABLE" in fatal:
      return (
        f"not all processes met at the coordinator {coordinator} within {wait_seconds} s: it does not "
        "answer, or another process did not come"
      )
    reason = next(iter(re.findall(r"absl::Status: (.*)", fatal)), "no reason given")
    return f"the coordinator {coordinator} refused this process: {reason}"
  if "Failed to send RPC to coordination service" in fatal:
    return f"lost process 0, the coordinator {coordinator}: its connection is closed; {resume}"
  if "coordination service" in fatal or "distributed service" in fatal:
    return f"lost another process; {resume}"
  return None
