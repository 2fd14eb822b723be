"""Kills processes of a small run at random moments, starts it again with as many or others, and compares.

    python -m benchmarks.faults --runs=50 --out=/tmp/faults

A chain is one workdir: it is started with 2 processes, disturbed, started again with 2 or with 1,
disturbed, and ends with 2 or with 4 processes. Always four devices in all; every second chain shards its
parameters. A disturbance is kill -9 or SIGTERM on a random process at a random moment, while starting up
included. Reported: whether the others ended within a minute, after how many seconds, with which
exit statuses and last line; whether the final parameters are those of the undisturbed run to the bit
(same processes throughout), else by how much the 20 losses after each start differ from it. The losses
of the undisturbed run tell the batches apart, so they agree only if the same examples come in the same
order.

What a chain does is a function of --seed and its number. The same command goes on where it was.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
from absl import app, flags, logging

from tests import runs

_RUNS = flags.DEFINE_integer("runs", 50, "Disturbances, two a chain.", 2)
_OUT = flags.DEFINE_string("out", None, "Directory of workdirs, logs and results.", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "Of everything random.")

CHAINS = ((2, 2, 2), (2, 1, 4))  # processes of the three lives of a workdir
DEVICES = 4
STEPS = 150
HANG_SECONDS = 60
STARTUP_SECONDS = 12
JOIN_SECONDS = 40  # a process that is gone before they have met is waited for as long as this
MESHES = ({}, {"mesh.fsdp": 2, "mesh.rules": "('head/bias=replicate', 'stem/kernel=3', '.*=0')"})
Processes = list[subprocess.Popen]


def start(out: pathlib.Path, workdir: pathlib.Path, count: int, mesh: dict) -> Processes:
  """Starts the processes of a run; each writes its output to a file beside the workdir."""
  environment = {
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // count}",
    "TFDS_DATA_DIR": str(out / "tfds"),
    "JAX_COMPILATION_CACHE_DIR": str(out / f"compiled{count}"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
  }
  command = runs.command(
    workdir,
    **{
      "total_steps": STEPS,
      "model.num_blocks": 1,
      "model.stoch_depth": 0.0,
      "checkpoint.every_steps": 20,
      "evaluators.val.every_steps": STEPS,
      "log.every_steps": 1,
      **mesh,
    },
  )
  place = runs.place(count, f"--join_seconds={JOIN_SECONDS}") if count > 1 else [[]]
  processes = []
  for i, flags_of_process in enumerate(place):
    with log_of(workdir, i).open("w") as log:
      processes.append(runs.start([*command, *flags_of_process], output=log, **environment))
  return processes


def log_of(workdir: pathlib.Path, number: int) -> pathlib.Path:
  return workdir.parent / f"{workdir.name}-process{number}.log"


def steps_seen(workdir: pathlib.Path) -> int:
  """Returns the last step that process 0 printed."""
  lines = log_of(workdir, 0).read_text().split("\n")[:-1]
  return max((int(x.split()[1].split("/")[0]) for x in lines if x.startswith("step ")), default=0)


def wait(processes: Processes, seconds: float) -> float | None:
  """Returns after how many seconds all have ended; None, after killing them, if they have not."""
  begin = time.monotonic()
  while any(p.poll() is None for p in processes):
    if time.monotonic() - begin > seconds:
      for p in processes:
        p.kill()
        p.wait()
      return None
    time.sleep(0.05)
  return time.monotonic() - begin


def disturb(processes: Processes, workdir: pathlib.Path, rng: random.Random) -> dict:
  """Signals a process at a random moment; returns what happened."""
  kind, victim = rng.choice([signal.SIGKILL, signal.SIGTERM]), rng.randrange(len(processes))
  in_startup, target = rng.random() < 0.25, rng.randrange(1, STEPS)
  seconds, jitter, itself = rng.random() * STARTUP_SECONDS, rng.random() * 0.2, rng.random() < 0.5
  begin = time.monotonic()
  while all(p.poll() is None for p in processes):
    passed = time.monotonic() - begin > seconds if in_startup else steps_seen(workdir) >= target
    if passed:
      break
    time.sleep(0.01)
  time.sleep(0 if in_startup else jitter)
  moment = steps_seen(workdir)
  pid = processes[victim].pid
  if kind == signal.SIGKILL and itself and len(processes) > 1:
    pid = supervised(pid)
  if processes[victim].poll() is None:
    os.kill(pid, kind)
  ended = wait(processes, HANG_SECONDS)
  other = next((i for i in range(len(processes)) if i != victim), victim)
  last = [x for x in log_of(workdir, other).read_text().splitlines() if x.strip()][-1:]
  return {
    "processes": len(processes), "signal": kind.name, "victim": victim, "moment": moment, "seconds": ended,
    "statuses": [p.returncode for p in processes], "last_line": last[0] if last else "",
  }  # fmt: skip


def supervised(pid: int) -> int:
  """Returns the process that a supervisor started; the supervisor where there is none (yet)."""
  children = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
  found = children.read_text().split() if children.exists() else []
  return int(found[0]) if found else pid


def losses(workdir: pathlib.Path) -> dict[int, float]:
  return {r["step"]: r["loss"] for r in runs.records(workdir) if "loss" in r}


def undisturbed(out: pathlib.Path, count: int, mesh: int) -> pathlib.Path:
  """Returns the workdir of a finished run with this many processes."""
  workdir = out / f"undisturbed-{count}-{mesh}"
  while not (workdir / "checkpoints" / str(STEPS)).exists():
    processes = start(out, workdir, count, MESHES[mesh])
    wait(processes, 600)
    if any(p.returncode for p in processes):
      raise RuntimeError(log_of(workdir, 0).read_text())
  return workdir


def run_chain(out: pathlib.Path, number: int, seed: int) -> dict:
  """Runs a chain to its end; returns its disturbances and how it compares."""
  rng = random.Random(f"{seed}/{number}")
  lives, mesh = CHAINS[number % 2], number // 2 % 2
  workdir = out / f"chain{number}"
  shutil.rmtree(workdir, ignore_errors=True)  # of a campaign that was stopped in this chain
  reference = undisturbed(out, lives[-1], mesh)
  events, starts = [], []
  for count in lives[:-1]:
    processes = start(out, workdir, count, MESHES[mesh])
    events.append(disturb(processes, workdir, rng))
    starts.append(newest(workdir))
  processes = start(out, workdir, lives[-1], MESHES[mesh])
  finished = wait(processes, 600) is not None and not any(p.returncode for p in processes)
  return {
    "chain": number,
    "lives": lives,
    "sharded": bool(mesh),
    "events": events,
    "finished": finished,
    **(compare(workdir, reference, lives, starts) if finished else {}),
  }


def newest(workdir: pathlib.Path) -> int:
  """Returns the step that the next start resumes from."""
  steps = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
  return max(steps, default=0)


def compare(
  workdir: pathlib.Path, reference: pathlib.Path, lives: tuple[int, ...], starts: list[int]
) -> dict:
  wanted, found = losses(reference), losses(workdir)
  after = [s for begin in starts for s in range(begin + 1, begin + 21) if s <= STEPS]
  worst = max((abs(found[s] / wanted[s] - 1) for s in after), default=0.0)
  a, b = runs.final_state(workdir, STEPS), runs.final_state(reference, STEPS)
  identical = a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
  right = identical if len(set(lives)) == 1 else worst < 1e-4
  return {"identical": identical, "worst_loss": worst, "right": right}


def line(event: dict, chain: dict) -> str:
  ended = "HANG" if event["seconds"] is None else f"{event['seconds']:4.1f} s"
  statuses = ",".join(map(str, event["statuses"]))
  return (
    f"{chain['chain']:>5} {'x'.join(map(str, chain['lives'])):>6} {'fsdp' if chain['sharded'] else 'data':>5}"
    f" {event['processes']:>4} {event['signal']:>8} {event['victim']:>6} {event['moment']:>6} {ended:>7}"
    f" {statuses:>17}  {event['last_line'][:90]}"
  )


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}")
  logging.set_verbosity(logging.ERROR)  # Orbax tells of every checkpoint that is compared
  out = pathlib.Path(_OUT.value).absolute()
  out.mkdir(parents=True, exist_ok=True)
  path = out / f"results-{_SEED.value}.jsonl"
  chains = [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
  print("chain  lives  mesh  of n   signal victim atstep   ended          statuses  last line")
  for chain in chains:
    print("\n".join(line(e, chain) for e in chain["events"]))
  for number in range(len(chains), -(-_RUNS.value // 2)):
    chain = run_chain(out, number, _SEED.value)
    chains.append(chain)
    with path.open("a") as f:
      f.write(json.dumps(chain) + "\n")
    print("\n".join(line(e, chain) for e in chain["events"]), flush=True)
    result = {k: chain.get(k) for k in ("finished", "identical", "worst_loss", "right")}
    print(f"      {result}", flush=True)
  events = [e for c in chains for e in c["events"]]
  same = [c for c in chains if len(set(c["lives"])) == 1]
  elastic = [c for c in chains if len(set(c["lives"])) > 1]
  hangs = sum(e["seconds"] is None for e in events)
  longest = max((e["seconds"] or HANG_SECONDS for e in events), default=0)
  worst = max((c.get("worst_loss", 0) for c in elastic), default=0)
  print(
    f"{len(events)} disturbances: {hangs} hangs, the others ended after {longest:.1f} s at most;"
    f" {sum(c['finished'] for c in chains)} of {len(chains)} chains finished;"
    f" {sum(bool(c.get('identical')) for c in same)} of {len(same)} with the same processes bit-identical;"
    f" {sum(bool(c.get('right')) for c in elastic)} of {len(elastic)} others within 1e-4"
    f" (worst {worst:.1e})"
  )
  sys.exit(hangs > 0 or not all(c.get("right") for c in chains))


if __name__ == "__main__":
  app.run(main)
