"""Trains the quickstart twice on one device, once interrupted and resumed, and compares all bits of weights and losses.

    python -m benchmarks.resumed --device=gpu --workdir=DIR [--tiny] --json=FILE

On a GPU, XLA gets the flags of docs/speed.md that make a run repeat. The accuracy is the uninterrupted run's.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
TINY = (
  "--config.total_steps=40", "--config.checkpoint.every_steps=10", "--config.schedule.warmup_steps=5",
  "--config.evaluators.val.every_steps=20",
)  # fmt: skip


def main() -> None:
  parser = argparse.ArgumentParser(description="a run interrupted and resumed, bit for bit")
  parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="emptied at the start")
  parser.add_argument("--tiny", action="store_true", help="see that it works")
  parser.add_argument("--json", type=pathlib.Path, help="write the result to this file too")
  args = parser.parse_args()
  shutil.rmtree(args.workdir, ignore_errors=True)
  args.workdir.mkdir(parents=True)
  begin = time.perf_counter()
  _finish(_start(args, "whole"))
  seconds = time.perf_counter() - begin
  status = _interrupt(_start(args, "resumed"), args.workdir / "resumed" / "checkpoints")
  _finish(_start(args, "resumed"))
  whole, resumed = (_results(args, name) for name in ("whole", "resumed"))
  row = {
    "device": args.device, "xla_flags": DETERMINISTIC if args.device == "gpu" else "",
    "top1": whole["top1"], "seconds": round(seconds, 1), "status_of_interrupted": status,
    "losses_identical": whole["losses"] == resumed["losses"],
    "weights_identical": _identical(whole["weights"], resumed["weights"]),
  }  # fmt: skip
  print(json.dumps(row, indent=1), flush=True)
  if args.json:
    args.json.write_text(json.dumps({"rows": [row]}, indent=1) + "\n")


def _start(args: argparse.Namespace, name: str) -> subprocess.Popen[bytes]:
  env = {**os.environ, "JAX_PLATFORMS": {"gpu": "cuda", "cpu": "cpu"}[args.device]}
  if args.device == "gpu":
    env["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}"
  flags = [f"--workdir={args.workdir.absolute() / name}", *(TINY if args.tiny else ())]
  command = [sys.executable, "train.py", "--config=configs/quickstart.py", *flags]
  return subprocess.Popen(command, cwd=ROOT, env=env)


def _finish(process: subprocess.Popen[bytes]) -> None:
  if status := process.wait():
    sys.exit(f"train.py ended with status {status}")


def _interrupt(process: subprocess.Popen[bytes], checkpoints: pathlib.Path) -> int:
  """Sends SIGTERM after the first checkpoint; returns the status that the run ended with."""
  while process.poll() is None and not any(p.name.isdecimal() for p in checkpoints.glob("*")):
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  return process.wait()


def _results(args: argparse.Namespace, name: str) -> dict[str, Any]:
  """Returns the run's losses by step, its last accuracy, and its weights."""
  directory, weights = args.workdir / name, args.workdir / f"{name}.npz"
  convert = [sys.executable, "-m", "mixer_jax.tools.convert", directory.absolute(), weights.absolute()]  # fmt: skip
  subprocess.run(convert, cwd=ROOT, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
  lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
  return {
    "losses": {line["step"]: line["loss"] for line in lines if "loss" in line},
    "top1": [line["val/top1"] for line in lines if "val/top1" in line][-1],
    "weights": dict(np.load(weights)),
  }


def _identical(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
  return [*one] == [*other] and all(one[key].tobytes() == other[key].tobytes() for key in one)


if __name__ == "__main__":
  main()
