"""Runs of one and two processes killed at random moments end bit-identical, and leave nothing behind.

A chain is one workdir: three times it is started and killed, then it is started to its end. Where the number of
processes changes between the lives of a chain, the losses agree to rounding instead.
"""

import os
import signal
import time

import pytest

from tests import campaign, runs

STEPS = 200
LIMIT_SECS = 300
LIVES = ((1, 1, 1, 1), (2, 2, 2, 2), (2, 1, 2, 1))  # processes
CASES = [(lives, workers) for workers in (0, 1, 2) for lives in LIVES]
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
SHARDED = {"mesh.fsdp": 2, "mesh.rules": "('head/bias=replicate', 'stem/kernel=3', '.*=0')"}
STOPPED = (
  0,
  75,
  130,
  143,
  128 + signal.SIGHUP,
  128 + signal.SIGKILL,
)  # the last ones from a supervisor


def start(workdir, number, count, flags):
  """Starts the processes of a life; each writes its output to a file beside the workdir."""
  fixed = {
    "total_steps": STEPS,
    "checkpoint.every_steps": 10,
    "evaluators.val.every_steps": 50,
    "log.every_steps": 1,
    "model.num_blocks": 1,
  }
  args = [*runs.command(workdir, **fixed, **flags), "--wait_for_workdir"]
  places, started = runs.place(count, "--join_seconds=60") if count > 1 else [[]], []
  for i, place in enumerate(places):
    with log_of(workdir, number, i).open("w") as log:
      started.append(runs.start([*args, *place], output=log, OMP_NUM_THREADS="1"))
  return started


def log_of(workdir, number, process):
  return workdir.parent / f"{workdir.name}-life{number}-process{process}.log"


def last_step(path):
  lines = path.read_text().split("\n")[:-1]
  return max((int(x.split()[1].split("/")[0]) for x in lines if x.startswith("step ")), default=0)


def is_saving(workdir):
  return any("tmp" in p.name for p in (workdir / "checkpoints").glob("*"))


def wait_until(started, condition):
  """Returns when the condition holds or a process has ended; False if neither comes."""
  deadline = time.monotonic() + LIMIT_SECS
  while all(p.poll() is None for p in started) and not condition():
    if time.monotonic() > deadline:
      return False
    time.sleep(0.003)
  return True


def await_moment(rng, started, workdir, log, seconds):
  """Waits for a random moment: of the first `seconds`, start-up included, of the steps that are left, or of a save.

  Moments are in the first half of what is left, as the next life needs some, too.
  """
  kind, begin, part = rng.choice(["time", "step", "save"]), time.monotonic(), rng.random() / 2
  if kind == "time":
    wait_until(started, lambda: time.monotonic() > begin + part * seconds)
    return
  wait_until(started, lambda: last_step(log) > 0)
  target = last_step(log) + int(part * (STEPS - last_step(log)))
  wait_until(started, lambda: last_step(log) >= target)
  if kind == "save":
    wait_until(started, lambda: is_saving(workdir))
  time.sleep(rng.random() * 0.05)


def kill(rng, started):
  """Signals one process of a run, of its loader workers and supervisors too, its group, or all groups; returns a note."""
  number, whom = rng.choice(SIGNALS), rng.choice(["one", "main", "group", "all"])
  chosen = rng.choice(started)
  if whom in ("group", "all"):
    for process in started if whom == "all" else [chosen]:
      if process.poll() is None:
        os.killpg(process.pid, number)
  elif (members := members_of(chosen)) and chosen.poll() is None:
    os.kill(chosen.pid if whom == "main" else rng.choice(members), number)
  return f"{number.name} to {whom} of process {started.index(chosen)}"


def members_of(process):
  """Returns the ids of a group's processes, but of Python's resource tracker, which without a kill survives them all."""
  found = [
    p for p in runs.group(process.pid) if b"resource_tracker" not in (p / "cmdline").read_bytes()
  ]
  return sorted(int(p.name) for p in found)


def ended(started, logs):
  """Yields what is wrong about how a life ended: it hangs, or its status is none that is documented."""
  deadline = time.monotonic() + LIMIT_SECS
  while any(p.poll() is None for p in started) and time.monotonic() < deadline:
    time.sleep(0.05)
  if any(p.poll() is None for p in started):
    yield f"no end after {LIMIT_SECS} s"
  for p, log in zip(started, logs, strict=True):
    if p.poll() is None:
      os.killpg(p.pid, signal.SIGKILL)
    if (status := p.wait()) >= 0 and status not in STOPPED:
      yield f"status {status}: {log.read_text()[-600:]}"
    if "Traceback" in (text := log.read_text()):
      yield f"traceback: {text[-1500:]}"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  """Returns a function: (processes, sharded) -> (workdir of a finished run, seconds that it took)."""
  found = {}

  def get(count, sharded):
    if (count, sharded) not in found:
      workdir, begin = tmp_path_factory.mktemp("undisturbed") / "run", time.monotonic()
      started = start(workdir, 0, count, SHARDED if sharded else {})
      assert not [*ended(started, [log_of(workdir, 0, i) for i in range(count)])]
      assert [p.returncode for p in started] == [0] * count, log_of(workdir, 0, 0).read_text()
      found[count, sharded] = workdir, time.monotonic() - begin
    return found[count, sharded]

  return get


def chain(rng, workdir, case, undisturbed, faults):
  """Kills a run again and again, lets it end and compares; returns the number of kills that met a living process."""
  (lives, workers), kills, everything = case, 0, []
  sharded = rng.random() < 0.5 and min(lives) > 1
  reference, seconds = undisturbed(lives[-1], sharded)
  flags = {"data.num_workers": workers, **(SHARDED if sharded else {})}
  print(f"{workdir.name}: {lives} processes, {workers} workers, sharded={sharded}", flush=True)
  for life, count in enumerate(lives):
    started = start(workdir, life, count, flags)
    everything += started
    logs, note = [log_of(workdir, life, i) for i in range(count)], "to its end"
    if life < len(lives) - 1:
      await_moment(rng, started, workdir, logs[0], seconds)
      kills += any(p.poll() is None for p in started)
      note = f"step {last_step(logs[0])}, {kill(rng, started)}"
    wrong = [*ended(started, logs)]
    print(f"  {note}: {[p.returncode for p in started]}{', FAULT' * bool(wrong)}", flush=True)
    faults += [f"{workdir.name} life {life} ({note}): {w}" for w in wrong]
  if not (workdir / "checkpoints" / str(STEPS)).exists():
    wrong = ["it has not finished"]
  else:
    wrong = [*(differences if len({*lives}) == 1 else distances)(workdir, reference)]
  left = sorted({x for p in everything for x in runs.left_behind(p)})
  faults += [f"{workdir.name}: {w}" for w in [*wrong, *(f"{x} is left behind" for x in left)]]
  return kills


def differences(workdir, reference):
  try:
    runs.assert_same_state(runs.final_state(workdir, STEPS), runs.final_state(reference, STEPS))
  except AssertionError as e:
    yield f"another state: {e}"[:500]
  if runs.records(workdir) != runs.records(reference):
    yield "other records"


def distances(workdir, reference):
  """Other examples, or the same in another order, would have losses that are further away."""
  a, b = (
    {r["step"]: r["loss"] for r in runs.records(d) if "loss" in r} for d in (workdir, reference)
  )
  far = max(abs(a.get(step, 0) / b[step] - 1) for step in b)
  print(f"{workdir.name}: losses within {far:.1e}", flush=True)
  if far > 1e-4:
    yield f"other losses, by {far:.1e}"


@pytest.mark.campaign
def test_runs_killed_at_random_end_bit_identical(undisturbed, tmp_path):
  wanted, kills, number, faults = campaign.tries(5), 0, 0, []
  while kills < wanted:
    rng, case = campaign.generator(number), CASES[(number + campaign.SEED) % len(CASES)]
    kills += chain(rng, tmp_path / f"chain{number}", case, undisturbed, faults)
    number += 1
  campaign.report("random kills", kills, faults)
