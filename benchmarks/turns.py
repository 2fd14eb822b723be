"""Contestants of a benchmark as child processes that take turns; needs the standard library alone.

A child answers one JSON line for each line of its input. The others wait meanwhile.
"""

import functools
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

Run = Callable[[int], None]
"""Makes so many calls and waits for the last."""


def serve(
  make: Callable[[], Callable[[str, int], Run]], peak_bytes: Callable[[], int | None] = lambda: None
) -> None:
  """Answers jobs {"work", "batch_size", "min_secs"} until the input ends.

  Args:
    make: returns (work, batch size) -> what runs it, which is called once for each; two calls warm it up.
    peak_bytes: the most memory that the device has held so far; None: not known.
  """
  ready: dict[tuple[str, int], Run] = {}
  facts: dict[tuple[str, int], dict[str, Any]] = {}

  def measure(prepare: Callable[[str, int], Run], job: dict[str, Any]) -> dict[str, Any]:
    key = job["work"], job["batch_size"]
    if key not in ready:
      begin = time.perf_counter()
      ready[key] = prepare(*key)
      ready[key](2)
      facts[key] = {"start_s": time.perf_counter() - begin, "peak_bytes": peak_bytes()}
    return {**facts[key], **_timed(ready[key], job["min_secs"])}

  reply(lambda: functools.partial(measure, make()))


def reply(make: Callable[[], Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
  """Answers jobs with what `make` returns, until the input ends."""
  answers, sys.stdout = sys.stdout, sys.stderr  # a library's message is no answer
  answer = make()
  for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


def _timed(run: Run, min_secs: float) -> dict[str, float]:
  """Returns CPU and wall seconds of one call, of as many as fill `min_secs` of wall time."""
  cpu, wall, calls, more = time.process_time(), time.perf_counter(), 0, 1
  while more:
    run(more)
    calls, took = calls + more, time.perf_counter() - wall
    more = max(0, min(calls, round((min_secs - took) / took * calls)))
  return {
    "cpu_s": (time.process_time() - cpu) / calls,
    "wall_s": (time.perf_counter() - wall) / calls,
    "calls": calls,
  }


def make_environment(directory: pathlib.Path, packages: tuple[str, ...]) -> pathlib.Path:
  """Returns the Python of a virtual environment with these packages, made where it is absent."""
  python = (directory / "bin" / "python").absolute()
  if not python.exists():
    print(f"installing {' '.join(packages)} in {directory}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
  return python


class Contestant:
  """A child process; end it by leaving its `with` block.

  Args:
    name: what it is called in messages.
    command: starts it.
    env: its whole environment.
    log: file that takes what it writes to stderr.
  """

  def __init__(self, name: str, command: list[Any], env: Mapping[str, str], log: pathlib.Path):
    self._name, self._log = name, log
    with log.open("w") as stderr:
      self._child = subprocess.Popen(
        command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
      )

  def __enter__(self) -> "Contestant":
    return self

  def __exit__(self, *exc: object) -> None:
    self._child.communicate()  # ends its input, and so the child

  def measure(self, work: str, batch_size: int, min_secs: float) -> dict[str, float]:
    """Returns {"cpu_s", "wall_s", "calls"} of one turn, in seconds a call.

    "start_s" are the seconds up to the end of the second call, compilation among them, and "peak_bytes" is what `serve` was
    told.

    Raises:
      RuntimeError: the child ended instead.
    """
    return self.ask({"work": work, "batch_size": batch_size, "min_secs": min_secs})

  def ask(self, job: dict[str, Any]) -> dict[str, float]:
    """Returns the child's answer to a job; raises RuntimeError if the child ended instead."""
    assert self._child.stdin is not None and self._child.stdout is not None
    try:
      self._child.stdin.write(json.dumps(job) + "\n")
      self._child.stdin.flush()
      answer = self._child.stdout.readline()
    except BrokenPipeError:
      answer = ""
    if not answer:
      raise RuntimeError(f"{self._name} ended at {job}; see {self._log}")
    return json.loads(answer)
