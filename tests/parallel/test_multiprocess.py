"""Two and four real processes, of two simulated devices each, against one: the same gradients, losses, figures,
data; and what happens when they differ, are told to stop, or one dies."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from mixer_jax.parallel import distributed
from mixer_jax.tools import command as command_module
from mixer_jax.tools import supervisor
from mixer_jax.training import loop
from tests import runs, several
from tests.configurations import small_config
from tests.training.steps import SHARDED, assert_same_gradients

# Compiling takes most of the time of such short runs; what is compiled need not be fast.
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
ENVIRONMENT = {
  "XLA_FLAGS": f"{FLAGS} --xla_force_host_platform_device_count=2",
  "JAX_PLATFORMS": "cpu",
  "OMP_NUM_THREADS": "1",
}


def start_several(args, count, own=()):
  """Starts `count` processes of a run; `own` are arguments of the last alone."""
  places = runs.place(count)
  places[-1] += own
  return [runs.start([*args, *place], **ENVIRONMENT) for place in places]


def outputs(processes, timeout=150):
  """Returns [(exit status, output)] of processes that end by themselves."""
  try:
    found = [p.communicate(timeout=timeout)[0] for p in processes]
  finally:
    for p in processes:
      p.kill()
  return [(p.returncode, output) for p, output in zip(processes, found, strict=True)]


@pytest.fixture(scope="module")
def one():
  """One process, one device."""
  return several.train(1, 1)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """What each of two processes found, by mesh: {mesh: [process 0's, process 1's]}."""
  return run_several(tmp_path_factory.mktemp("two"), 2)


def run_several(out, count):
  command = [sys.executable, "-m", "tests.several", str(out), runs.free_address(), str(count)]
  processes = [
    subprocess.Popen([*command, str(i)], cwd=runs.ROOT, env={**os.environ, **ENVIRONMENT})
    for i in range(count)
  ]
  try:
    assert [p.wait(timeout=300) for p in processes] == [0] * count
  finally:
    for p in processes:
      p.kill()
  return {
    mesh: [dict(np.load(out / f"{'-'.join(map(str, mesh))}-process{i}.npz")) for i in range(count)]
    for mesh in several.meshes(2 * count)
  }


def assert_like_one(found, one, fsdp):
  for part in found:
    assert_same_gradients(part, {k: v for k, v in one.items() if k.startswith("gradient/")})
    np.testing.assert_allclose(part["losses"], one["losses"], rtol=1e-5)
    assert part["val/count"] == 360
    for name in ("top1", "top5"):
      assert part[f"val/{name}"] == one[f"val/{name}"]
    np.testing.assert_allclose(part["val/loss"], one["val/loss"], rtol=1e-5)
    whole = 4 * 10  # the head's biases, the only parameter that is not cut
    for name in ("bytes/params", "bytes/opt_state"):
      counter = 4 if name == "bytes/opt_state" else 0  # optax counts the steps
      cut = one[name] - whole - counter
      assert part[name] - whole - counter == cut / fsdp, (name, part[name], one[name])
  rows = np.concatenate([part["read"] for part in found], axis=1)
  assert rows.shape == one["read"].shape
  np.testing.assert_array_equal(rows, one["read"])  # in this order, so none twice


@pytest.mark.parametrize("mesh", several.meshes(4), ids=str)
def test_two_processes_are_like_one(one, two, mesh):
  """Gradients, losses, evaluation; shards of 1/n of the bytes; each process reads its own rows."""
  assert_like_one(two[mesh], one, mesh[1])


@pytest.mark.campaign
def test_four_processes_are_like_one(one, tmp_path):
  for mesh, found in run_several(tmp_path, 4).items():
    assert_like_one(found, one, mesh[1])


def command(workdir, **flags):
  """A run that does not end by itself in the time of a test."""
  return runs.command(
    workdir,
    **{
      "total_steps": 100_000,
      "model.num_blocks": 1,
      "model.stoch_depth": 0.0,
      "checkpoint.every_steps": 1000,
      "evaluators.val.every_steps": 100_000,
      "log.every_steps": 1,
      **flags,
    },
  )


def in_this_process(workdir, steps):
  """Goes on with such a run for some steps on one device; returns the losses by step."""
  config = small_config(total_steps=100_000)
  config.model.num_blocks, config.model.stoch_depth = 1, 0.0
  config.evaluators.val.every_steps = 100_000
  config.checkpoint.every_steps, config.log.every_steps = 1000, 1
  config.learning_rate = 0.003  # the quickstart's
  config.evaluators.val.batch_size = 360
  with pytest.raises(SystemExit):
    loop.train(config, str(workdir), runs.StopAfter(steps - 1))
  return {r["step"]: r["loss"] for r in runs.records(workdir) if "loss" in r}


@pytest.mark.campaign
def test_sigterm_to_one_saves_once_and_one_device_goes_on(tmp_path):
  """Two processes with sharded parameters; the notice meets the one that is not the coordinator."""
  rules = f"({', '.join(map(repr, SHARDED))},)"
  processes = start_several(
    command(tmp_path / "run", **{"mesh.fsdp": 2, "mesh.rules": rules}), count=2
  )
  seen = runs.wait_for(processes[0], "step      1/", timeout=150)
  assert re.search(r"head/kernel +1 +\(16, 10\) +dim 0", seen), seen
  processes[1].send_signal(signal.SIGTERM)
  ended = outputs(processes)
  assert [status for status, _ in ended] == [143, 143], ended
  stop = int(re.search(r"saved step (\d+) in .*the same command resumes", ended[0][1])[1])
  assert [int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()] == [stop]
  resumed = in_this_process(tmp_path / "run", 20)
  assert sorted(resumed) == list(range(1, stop + 21))
  undisturbed = in_this_process(tmp_path / "one", stop + 20)
  np.testing.assert_allclose(list(resumed.values()), list(undisturbed.values()), rtol=1e-4)


SLOW_EVALUATION = """
import runpy, sys, time
from mixer_jax.evaluators import rows

fast = rows.device_batches

def slow(*args):
  for batch in fast(*args):
    print("evaluating", flush=True)
    yield batch
    time.sleep(2)

rows.device_batches = slow
sys.argv = sys.argv[1:]
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.campaign
def test_two_processes_stop_in_an_evaluation_and_do_it_later(tmp_path):
  def few_steps(name):
    return command(
      tmp_path / name,
      total_steps=4,
      **{"evaluators.val.every_steps": 2, "evaluators.val.batch_size": 20},
    )

  python, *args = few_steps("run")
  processes = start_several([python, "-c", SLOW_EVALUATION, *args], count=2)
  runs.wait_for(processes[1], "evaluating")
  processes[1].send_signal(signal.SIGTERM)
  stopped = outputs(processes)
  assert [status for status, _ in stopped] == [143, 143], stopped
  assert "saved step 2 in" in stopped[0][1] and "top-1" not in stopped[0][1], stopped
  for name in ("run", "undisturbed"):
    ended = outputs(start_several(few_steps(name), count=2))
    assert [status for status, _ in ended] == [0, 0], ended
  workdirs = tmp_path / "run", tmp_path / "undisturbed"
  assert runs.records(workdirs[0]) == runs.records(workdirs[1])
  runs.assert_same_state(*(runs.final_state(workdir, 4) for workdir in workdirs))
  scores = [(d / "checkpoints" / "2" / "metrics" / "metrics").read_text() for d in workdirs]
  assert scores[0] == scores[1]


@pytest.mark.campaign
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("who", [(0, 1), (0,), (1,)], ids=str)
def test_whichever_process_gets_which_signal_all_end_as_documented(tmp_path, number, who):
  for moment in (0.0, 0.7, 1.4):  # Python's end meets JAX's threads at some of them
    processes = start_several(command(tmp_path / str(moment)), count=2)
    runs.wait_for(processes[0], "step      1/", timeout=150)
    time.sleep(moment)
    for i in who:
      processes[i].send_signal(number)
    ended = outputs(processes)
    interrupted = [i in who and number == signal.SIGINT for i in range(2)]
    assert [status for status, _ in ended] == [130 if i else 143 for i in interrupted], ended
    assert "the same command resumes" in ended[0][1]
    assert not any("Fatal" in output for _, output in ended)


def test_sigterm_to_a_run_of_one_process_saves_too(tmp_path):
  """As on a TPU of one host, which launchers start with --distributed like any other."""
  (process,) = start_several(command(tmp_path / "run"), count=1)
  runs.wait_for(process, "step      1/", timeout=150)
  process.send_signal(signal.SIGTERM)
  ((status, output),) = outputs([process])
  assert status == 143, output
  assert "saved step" in output, output


@pytest.mark.campaign
def test_a_coordinator_that_freezes_is_named(tmp_path):
  """As its host, or the way to it, would: no connection is closed."""
  processes = start_several(command(tmp_path / "run"), count=2)
  said = runs.wait_for(processes[1], "connecting to the coordinator")
  coordinator = re.search(r"coordinator (\S+),", said)
  assert coordinator is not None
  runs.wait_for(processes[0], "step      1/", timeout=150)
  child = pathlib.Path(f"/proc/{processes[0].pid}/task/{processes[0].pid}/children").read_text()
  os.kill(int(child), signal.SIGSTOP)
  ((status, output),) = outputs([processes[1]])
  processes[0].kill()  # its child with it
  assert status == supervisor.EXIT_RETRY, output
  line = f"error: lost process 0, the coordinator {coordinator[1]}: no sign of life"
  assert output.strip().splitlines()[-1].startswith(line), output


@pytest.mark.campaign
def test_a_lost_process_is_named_and_ends_the_others(tmp_path):
  """It is killed together with its supervisor as soon as the processes have met."""
  processes = start_several(command(tmp_path / "run"), count=2)
  runs.wait_for(processes[1], "Rank 1 is connected")
  processes[1].kill()
  (status, output), _ = outputs(processes)
  assert status == supervisor.EXIT_RETRY, output
  last = output.strip().splitlines()[-1]
  assert last.startswith("error: lost process 1: no sign of life"), output
  assert "Check failure" not in output, output
  assert runs.left_behind(processes[0]) == []


def test_another_configuration_is_refused_by_all(tmp_path):
  own = ["--config.learning_rate=0.5", "--config.data.num_workers=1"]
  for status, output in outputs(start_several(command(tmp_path / "run"), count=2, own=own)):
    assert status == 2, output
    assert "process 1 on" in output, output
    assert "config.learning_rate: 0.003 -> 0.5" in output, output
    assert "num_workers" not in output, output
    assert "Traceback" not in output, output
  assert not (tmp_path / "run").exists()


@pytest.mark.campaign
def test_a_coordinator_that_does_not_answer_is_named(tmp_path):
  address = runs.free_address()
  place = ["--distributed", f"--coordinator={address}", "--num_processes=2", "--join_seconds=2"]
  status, output = runs.run([*command(tmp_path / "run"), *place, "--process_id=1"])
  assert status == supervisor.EXIT_RETRY, output
  waits, line = output.strip().splitlines()
  assert waits == f"connecting to the coordinator {address}, for up to 2 s"
  assert f"coordinator {address} within 2 s: it does not answer" in line


@pytest.mark.campaign
def test_ctrl_c_ends_the_wait_for_the_others(tmp_path):
  process = runs.start([*command(tmp_path / "run"), *runs.place(2)[0]])
  runs.wait_for(process, "waiting for the others")
  time.sleep(2)  # into JAX's own wait
  process.send_signal(signal.SIGINT)
  process.communicate(timeout=60)
  assert process.returncode == 130


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--coordinator=here", "--num_processes=2", "--process_id=1"], "--coordinator=here is not HOST:PORT"),
    (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], "--process_id=2 is not one of 2"),
  ],
)  # fmt: skip
def test_impossible_coordinator_flags_are_named(tmp_path, arguments, message):
  status, output = runs.run([*command(tmp_path / "run"), "--distributed", *arguments])
  assert status == 2
  assert message in output, output


def test_a_taken_port_is_named(tmp_path):
  with socket.socket() as taken:
    taken.bind(("", 0))
    taken.listen()
    address = f"localhost:{taken.getsockname()[1]}"
    place = ["--distributed", f"--coordinator={address}", "--num_processes=2", "--process_id=0"]
    status, output = runs.run([*command(tmp_path / "run"), *place])
  assert status == 2, output
  assert f"--coordinator={address}: cannot listen on port" in output


def test_an_abort_for_another_reason_names_no_lost_process():
  """An abort that has nothing to do with other processes is shown as it is."""
  output = supervisor.Output(fatal="F1125 12:00:00.0 1 compiler.cc:1] Check failed: a == b")
  assert supervisor.explain(output, 1) is None


def test_a_cluster_that_is_not_ready_yet_exits_75(monkeypatch, capsys):
  """A pod's name may be unknown until the pod runs: the same command may succeed later."""

  def initialize(*args, **options):
    raise RuntimeError("Failed to recognize coordinator address mixer-0:8482")

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  monkeypatch.setattr(
    command_module.app, "run", lambda main, flags_parser: main(flags_parser(["x"]))
  )
  with pytest.raises(SystemExit) as ended:
    command_module.run(lambda _: distributed.join(None, None, None, 3))
  assert ended.value.code == supervisor.EXIT_RETRY
  assert "not found within 3 s: Failed to recognize coordinator address mixer-0:8482" in (
    capsys.readouterr().err
  )
