"""Runs of train.py as a user starts them, and what they leave behind."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mixer_jax import inference
from mixer_jax.inference import evaluate
from mixer_jax.parallel.stop_signal import StopSignal

ROOT = pathlib.Path(__file__).parents[1]
SMALL = {
  "batch_size": 16, "total_steps": 20, "model.num_blocks": 2, "model.hidden_dim": 16,
  "model.tokens_mlp_dim": 8, "model.channels_mlp_dim": 32, "checkpoint.every_steps": 4,
  "evaluators.val.every_steps": 10, "schedule.warmup_steps": 2, "log.every_steps": 5, "evaluators.pictures.every_steps": 0,
}  # fmt: skip

_BEFORE: dict[int, set[str]] = {}  # process -> shared-memory segments that were there at its start


class StopAfter(StopSignal):
  """A signal that arrives after n more steps."""

  def __init__(self, steps):
    super().__init__()
    self._steps = steps

  def asked(self):
    self._steps -= 1
    return self._steps < 0


def command(workdir, script: Any = "train.py", config: Any = "configs/quickstart.py", **flags):
  """Returns the command line of a small run; keys with dots are configuration keys."""
  values = {**SMALL, **flags}
  overrides = [f"--config.{k}={v}" for k, v in values.items()]
  return [sys.executable, script, f"--config={config}", f"--workdir={workdir}", *overrides]


def start(args, output: Any = subprocess.PIPE, **environment):
  """Starts a command in a process group of its own, on one CPU device."""
  env = {**os.environ, "XLA_FLAGS": "", **environment}
  process = subprocess.Popen(
    args,
    cwd=ROOT,
    env=env,
    text=True,
    start_new_session=True,
    stdout=output,
    stderr=subprocess.STDOUT,
  )
  _BEFORE[process.pid] = set(_segments())
  return process


def free_address():
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return f"localhost:{s.getsockname()[1]}"


def place(count, *more):
  """Returns for each of several processes the flags by which it joins the others."""
  several = ["--distributed", f"--coordinator={free_address()}", f"--num_processes={count}", *more]
  return [[*several, f"--process_id={i}"] for i in range(count)]


def run(args, **environment):
  """Returns (exit status, output) of a command that ends by itself."""
  process = start(args, **environment)
  output, _ = process.communicate(timeout=300)
  return process.returncode, output


def tool(name, *arguments):
  """Returns (exit status, stdout, stderr) of a command of mixer_jax.tools, which ends without a traceback."""
  done = subprocess.run(
    [sys.executable, "-m", f"mixer_jax.tools.{name}", *map(str, arguments)],
    cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True, timeout=300,
  )  # fmt: skip
  assert "Traceback" not in done.stderr, done.stderr
  return done.returncode, done.stdout, done.stderr


def wait_for(process, text, timeout=120):
  """Reads the output up to a line with this text; returns what was read."""
  seen, deadline = [], time.monotonic() + timeout
  for line in process.stdout:
    seen.append(line)
    if text in line:
      return "".join(seen)
    assert time.monotonic() < deadline, "".join(seen)
  raise AssertionError(f"{text!r} never came:\n{''.join(seen)}")


def evaluated(*, workdir, config, which="newest", weights_file=None, record=False, details=None):
  """Returns what the configuration's evaluator "val" finds of a run or of weights."""
  trained = inference.load(workdir=workdir, config=config, which=which, weights_file=weights_file)
  sections = evaluate.choose(trained.setup.options)
  return evaluate.evaluate(trained, sections, workdir=workdir, record=record, details=details)[
    "val"
  ]


def left_behind(process, patience=10.0):
  """Returns the processes of the group and the shared-memory segments that do not go within seconds.

  Segments are looked for when the group has gone, which might still make some. Only what is there at
  every look counts: those of other runs on the machine come and go.
  """
  deadline = time.monotonic() + patience
  while group(process.pid) and time.monotonic() < deadline:
    time.sleep(0.1)
  found = {*_segments()} - _BEFORE[process.pid]
  while found and time.monotonic() < deadline:
    time.sleep(0.1)
    found &= {*_segments()}
  return [f"process {path.name}" for path in group(process.pid)] + sorted(found)


def group(pgid):
  """Returns the directories in /proc of the living processes of a group."""
  found = []
  for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
      fields = stat.read_text().rsplit(")", 1)[1].split()
    except OSError:
      continue
    if int(fields[2]) == pgid and fields[0] != "Z":
      found.append(stat.parent)
  return found


def _segments():
  """Shared-memory segments, their marks and semaphores, that no living process maps, and whose mark none has open."""
  shm, mapped, open_marks = pathlib.Path("/dev/shm"), "", set()
  names = [p.name for p in shm.iterdir()] if shm.exists() else []
  for process in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):
      mapped += (process / "maps").read_text()
      links = [os.readlink(p) for p in (process / "fd").iterdir()]
      open_marks |= {x.split("-")[1] for x in links if x.startswith("/dev/shm/mixer_jax-")}
  ours = [n for n in names if n.startswith(("psm_", "sem.", "mixer_jax-")) and n not in mapped]
  return [n for n in ours if not any(f"mixer_jax-{mark}" in n for mark in open_marks)]


def final_state(workdir, step):
  """Returns the state of a checkpoint as arrays by name, read without the project's own code."""
  path = pathlib.Path(workdir) / "checkpoints" / str(step) / "default"
  checkpointer: Any = ocp.PyTreeCheckpointer()
  # As NumPy arrays, which need none of the devices that wrote them.
  as_numpy = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
    checkpointer.metadata(path).item_metadata.tree,
  )
  tree = checkpointer.restore(path, restore_args=as_numpy)
  return {
    jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(tree)
  }


def assert_same_state(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def assert_same_run(a, b, step):
  """Two workdirs have the same state at this step, and the same records."""
  assert_same_state(final_state(a, step), final_state(b, step))
  assert records(a) == records(b)


def records(workdir):
  """Returns metrics.jsonl without what depends on the clock."""
  timing = ("images_per_sec", "data_wait", "seconds_left", "core_hours")
  lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
  return [{k: v for k, v in json.loads(line).items() if k not in timing} for line in lines]


def kill(process, number):
  """Signals a run: the one process, but with SIGINT and SIGHUP the whole group, as a terminal does."""
  if number in (signal.SIGINT, signal.SIGHUP):
    os.killpg(process.pid, number)
  else:
    process.send_signal(number)
