"""The commands as a user gives them: killed at any moment they end bit-identical and leave nothing behind."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests import runs
from tests.marks import long

END = 20


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  """A finished run, whose workdir was given as a relative path."""
  workdir = tmp_path_factory.mktemp("undisturbed")
  status, output = runs.run(runs.command(os.path.relpath(workdir, runs.ROOT)))
  assert status == 0, output
  return workdir


def interrupt(args, number, moment):
  """Starts a run and signals it `moment` seconds after its first step; returns (status, output)."""
  process = runs.start(args)
  seen = runs.wait_for(process, "first step")
  time.sleep(moment)
  runs.kill(process, number)
  output, _ = process.communicate(timeout=120)
  assert runs.left_behind(process) == []
  return process.returncode, seen + output


def kill_group(args):
  """Kills a run together with its workers, which leaves shared memory behind; returns the process."""
  process = runs.start(args)
  runs.wait_for(process, "first step")
  os.killpg(process.pid, signal.SIGKILL)
  process.communicate(timeout=120)
  return process


@pytest.mark.parametrize("num_workers", [long(0), 2])
def test_killed_runs_end_bit_identical(undisturbed, tmp_path, num_workers):
  """A sample of test_kills.py: kill -9 in the middle, and of the whole group soon after the first step."""
  flags = {"data.num_workers": num_workers}
  status, output = interrupt(runs.command(tmp_path, **flags), signal.SIGKILL, 0.4)
  assert status in (-signal.SIGKILL, 0), output
  killed = kill_group(runs.command(tmp_path, **flags))
  assert bool(runs.left_behind(killed, patience=0.5)) == bool(num_workers)
  process = runs.start(runs.command(tmp_path, **flags))
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output
  assert runs.left_behind(process) == runs.left_behind(killed) == []
  runs.assert_same_run(tmp_path, undisturbed, END)


@pytest.mark.parametrize(
  ("number", "num_workers", "wanted"),
  [
    (signal.SIGHUP, 1, 143),
    long(signal.SIGTERM, 1, 143),
    long(signal.SIGINT, 2, 130),
    long(signal.SIGUSR1, 0, 143),
    long(signal.SIGXCPU, 0, 143),
  ],
)
def test_asked_to_stop_a_run_saves_first(undisturbed, tmp_path, number, num_workers, wanted):
  flags = {
    "data.num_workers": num_workers,
    "checkpoint.every_steps": 1000,
    "evaluators.val.every_steps": 10,
  }
  status, output = interrupt(runs.command(tmp_path, **flags), number, 0.0)
  assert status == wanted, output
  assert "saving, then stopping" in output
  assert "the same command resumes" in output
  assert "Traceback" not in output
  status, output = runs.run(runs.command(tmp_path, **flags))
  assert status == 0, output
  assert "resuming at step" in output
  runs.assert_same_run(tmp_path, undisturbed, END)


SWALLOWS = """
import os, signal, time
try:
  os.kill(os.getpid(), signal.SIGINT)
  time.sleep(1)
except KeyboardInterrupt:
  pass
"""


def test_an_import_that_swallows_ctrl_c_does_not_go_on(tmp_path):
  """C++ modules abort of the exception instead, or their import fails."""
  (tmp_path / "config.py").write_text(SWALLOWS)
  status, output = runs.run(runs.command(tmp_path / "run", config=tmp_path / "config.py"))
  assert (status, output) == (130, "interrupted\n")


SLOW_EVALUATION = """
import runpy, sys, time
from mixer_jax.evaluators import classification

def evaluate(*_):
  print("evaluating", flush=True)
  time.sleep(600)

classification.Classification.__call__ = evaluate
sys.argv = sys.argv[1:]
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.campaign
def test_a_run_stops_in_its_evaluation_and_does_it_later(undisturbed, tmp_path):
  python, *args = runs.command(tmp_path)
  process = runs.start([python, "-c", SLOW_EVALUATION, *args])
  runs.wait_for(process, "evaluating")
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 143, output
  assert "saved step 10 in" in output
  status, output = runs.run([python, *args])
  assert status == 0, output
  runs.assert_same_run(tmp_path, undisturbed, END)


@pytest.mark.campaign
def test_a_run_stops_in_its_compilation(tmp_path):
  big = {"model.num_blocks": 40, "batch_size": 64}
  process = runs.start(runs.command(tmp_path, **big), JAX_COMPILATION_CACHE_DIR="")
  runs.wait_for(process, "workdir ")
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 143, output
  assert "stopped before the first step" in output


@pytest.mark.campaign
def test_a_run_stops_while_its_workers_are_frozen(tmp_path):
  process = runs.start(runs.command(tmp_path, total_steps=100_000, **{"data.num_workers": 1}))
  runs.wait_for(process, "first step")
  frozen = [p for p in runs.group(process.pid) if b"spawn_main" in (p / "cmdline").read_bytes()]
  for worker in frozen:
    os.kill(int(worker.name), signal.SIGSTOP)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=120)
  assert frozen
  assert process.returncode == 143, output
  assert "the same command resumes" in output


def test_a_full_disk_stops_the_run_and_spares_the_last_checkpoint(undisturbed, tmp_path):
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("needs the right to mount a small file system")
  try:
    flags = {"checkpoint.every_steps": 1, "checkpoint.keep_newest": 50}
    status, output = runs.run(runs.command(disk / "run", **flags))
    assert status == 1, output
    assert "error: could not write to" in output.splitlines()[-1]
    assert "the last good checkpoint is that of step" in output.splitlines()[-1]
    room = {"checkpoint.every_steps": 1000, "checkpoint.keep_newest": 1, "checkpoint.keep_best": 0}
    subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
    status, output = runs.run(runs.command(disk / "run", **room))
    assert status == 0, output
    assert "resuming at step" in output
    runs.assert_same_state(runs.final_state(disk / "run", END), runs.final_state(undisturbed, END))
  finally:
    subprocess.run(["umount", str(disk)], check=True)


def test_eval_evaluates_a_run(undisturbed):
  for which in ("best", "20"):
    status, output = runs.run(
      [sys.executable, "eval.py", f"--workdir={undisturbed}", f"--checkpoint={which}"]
    )
    assert status == 0, output
    assert "over 360 images" in output
  status, output = runs.run(
    [sys.executable, "eval.py", f"--workdir={undisturbed}", "--checkpoint=19"]
  )
  assert status == 2
  assert "has no checkpoint 19; there are steps" in output
