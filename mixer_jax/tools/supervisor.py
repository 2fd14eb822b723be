"""Runs each of several processes as a child, and reports in one line why JAX's runtime aborted it.

If another process is lost or the coordinator does not answer, JAX's coordination service calls abort(). Nothing inside
the process can turn that into a message. The parent passes signals and stderr on. When either process ends, the other
ends too.
"""

import dataclasses
import os
import re
import signal
import subprocess
import sys
from types import FrameType
from typing import IO

from mixer_jax.parallel import processes

EXIT_RETRY = 75  # exit status: sysexits.h's EX_TEMPFAIL, "the same command may succeed later"
_MARK = "MIXER_JAX_SUPERVISOR"
# What mixer_jax/parallel/distributed.py prints before it waits.
_PLACE = re.compile(rb"(waiting for the others as|connecting to) the coordinator (\S+),")
_FATAL = re.compile(rb"F\d{4} \d\d:\d\d:\d\d|terminate called|Fatal Python error")


@dataclasses.dataclass
class Output:
  """What the child wrote to stderr, as far as it is needed here.

  Attributes:
    coordinator: HOST:PORT, once the child has printed it.
    is_coordinator: whether the child is process 0.
    fatal: everything from the first fatal error of the runtime on.
  """

  coordinator: str = "that was asked for"
  is_coordinator: bool = False
  fatal: str = ""


def supervise(wait_seconds: int) -> None:
  """Returns in a child of this process that runs the same command; the parent exits like the child.

  The processes wait `wait_seconds` for each other at the start.
  """
  supervisor = os.environ.pop(_MARK, None)
  if supervisor is not None:
    processes.die_with(int(supervisor), EXIT_RETRY)
    return
  # Ctrl-C waits until each of the two can handle it (tools/command.py).
  signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
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

  for number in processes.stop_signals():
    signal.signal(number, pass_on)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
  assert child.stderr is not None
  output = _forward(child.stderr)
  status = child.wait()
  line = explain(output, wait_seconds) if status == -signal.SIGABRT else None
  if line is not None:
    print(f"error: {line}", file=sys.stderr, flush=True)
    sys.exit(EXIT_RETRY)
  sys.stderr.write(output.fatal)
  sys.exit(status if status >= 0 else 128 - status)


def _forward(errors: IO[bytes]) -> Output:
  """Copies lines to stderr as they come, up to a fatal error."""
  output = Output()
  for line in errors:
    if output.fatal or _FATAL.match(line):
      output.fatal += line.decode(errors="replace")
      continue
    if place := _PLACE.match(line):
      output.coordinator = place[2].decode()
      output.is_coordinator = place[1].startswith(b"waiting")
    sys.stderr.buffer.write(line)
    sys.stderr.buffer.flush()
  return output


def explain(output: Output, wait_seconds: int) -> str | None:
  """Returns in one line why JAX's coordination service ended the process of this output. None if it did not."""
  fatal, coordinator = output.fatal, output.coordinator
  resume = "the same command resumes"
  if lost := re.search(r"stopped sending heartbeats\):\s*\n((?:\d+[\s,]*)+)", fatal):
    numbers = ", ".join(re.findall(r"\d+", lost[1]))
    return f"lost process {numbers}: no sign of life from it any more; {resume}"
  if "RegisterTask" in fatal:
    if "DEADLINE_EXCEEDED" in fatal or "UNAVAILABLE" in fatal:
      missing = "" if output.is_coordinator else "it does not answer, or "
      return (
        f"not all processes met at the coordinator {coordinator} within {wait_seconds} s: {missing}"
        "another process did not come"
      )
    reason = next(iter(re.findall(r"absl::Status: (.*)", fatal)), "no reason given")
    return f"the coordinator {coordinator} refused this process: {reason}"
  if "Failed to send RPC to coordination service" in fatal:
    return f"lost process 0, the coordinator {coordinator}: its connection is closed; {resume}"
  if "CoordinationService/Heartbeat" in fatal and not output.is_coordinator:
    return (
      f"lost process 0, the coordinator {coordinator}: no sign of life from it any more; {resume}"
    )
  if "coordination service" in fatal or "distributed service" in fatal:
    return f"lost another process; {resume}"
  return None
