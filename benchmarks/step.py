"""The train step and inference beside the published Flax model and timm, in one run on one machine.

    python -m benchmarks.step                                  # S/16, batch 8, one core, float32
    python -m benchmarks.step --model=B/16 --batch_sizes 8 32 --cores=2 --json=FILE
    python -m benchmarks.step --device=gpu --model=B/16 --dtype=bfloat16 --batch_sizes 128 256 512

Contestants: this project's steps as experiment.build makes them ("ours"), the paper's listing
(published.py, always float32), timm's Mixer eager and through torch.compile. Each is a child process on the cores that
--cores says; they take turns, and medians are compared. The work is the same: images as uint8 on the device;
forward; sigmoid cross-entropy, backward, clipping by the global norm, AdamW. The first run makes timm's environment below --workdir.

On a machine that others use, too, compare CPU seconds (`--by=cpu`): wall time tells how much they got in the way.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import turns
from mixer_jax import models
from mixer_jax.models import mixer
from mixer_jax.tools.planning import chips, flops

RIVAL_PACKAGES = ("torch==2.13.0", "torchvision==0.28.0", "timm==1.0.31")
ROOT = pathlib.Path(__file__).parents[1]
CONTESTANTS = ("ours", "published", "eager", "compiled")
WORKS = ("inference", "training")
IMAGE_SIZE, NUM_CLASSES = 224, 1000
MATMUL = 2048  # side of the matrices whose product measures the peak of a CPU


def main() -> None:
  parser = argparse.ArgumentParser(description="train step and inference beside others'")
  parser.add_argument("--model", choices=[*mixer.VARIANTS], default="S/16")
  parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8])
  parser.add_argument("--work", choices=WORKS, action="append", help="default: both")
  parser.add_argument("--contestant", choices=CONTESTANTS, action="append", help="default: all")
  parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument("--cores", type=int, default=1)
  parser.add_argument("--repeats", type=int, default=7)
  parser.add_argument("--min_secs", type=float, default=1.0, help="of each turn")
  parser.add_argument("--by", choices=("wall", "cpu"), default="wall", help="seconds compared")
  parser.add_argument("--workdir", type=pathlib.Path, default="workdir/benchmark")
  parser.add_argument("--json", type=pathlib.Path, help="write the table to this file too")
  args = parser.parse_args()
  names = args.contestant or [*CONTESTANTS]
  cores = sorted(os.sched_getaffinity(0))[-args.cores :]
  if len(cores) < args.cores:
    parser.error(f"--cores={args.cores}, but this process may use {len(cores)}.")
  os.sched_setaffinity(0, cores)  # the children inherit it
  args.workdir.mkdir(parents=True, exist_ok=True)
  rows = []
  with ExitStack() as stack:
    children = {name: stack.enter_context(start(args, name)) for name in names}
    peak, source = peak_flops(args, children)
    print(f"{args.model} {args.dtype} on {args.device}, cores {cores}", flush=True)
    print(f"peak {peak / 1e9:.0f} GFLOP/s ({source}); seconds: {args.by}", flush=True)
    for work in args.work or WORKS:
      for batch_size in args.batch_sizes:
        rows += compare(args, children, work, batch_size, peak)
  if args.json:
    result = {"peak_flops": peak, "peak_source": source, "cores": len(cores), "rows": rows}
    args.json.write_text(json.dumps(result, indent=1) + "\n")


def compare(
  args: argparse.Namespace,
  children: dict[str, turns.Contestant],
  work: str,
  batch_size: int,
  peak: float,
) -> list[dict[str, Any]]:
  """Lets the contestants take turns; prints and returns a row for each."""
  taken: dict[str, list[dict[str, float]]] = {name: [] for name in children}
  for _ in range(args.repeats):
    for name, child in children.items():
      taken[name].append(child.measure(work, batch_size, args.min_secs))
  middle = {
    name: {by: statistics.median(turn[f"{by}_s"] for turn in turn_list) for by in ("wall", "cpu")}
    for name, turn_list in taken.items()
  }
  rows = []
  for name, seconds in middle.items():
    images_per_sec = batch_size / seconds[args.by]
    row = {
      "model": args.model, "dtype": args.dtype, "work": work, "batch_size": batch_size,
      "contestant": name, "wall_s": seconds["wall"], "cpu_s": seconds["cpu"],
      "images_per_sec": images_per_sec,
      "mfu": images_per_sec * model_flops(args.model, work) / peak,
      "ours_ratio": seconds[args.by] / middle["ours"][args.by] if "ours" in middle else None,
    }  # fmt: skip
    rows.append(row)
    print(render(row), flush=True)
  return rows


def render(row: dict[str, Any]) -> str:
  ratio = "" if row["ours_ratio"] is None else f"  ours is {row['ours_ratio']:.2f} x as fast"
  return (
    f"{row['work']:9} batch {row['batch_size']:4} {row['contestant']:9}"
    f" {1000 * row['wall_s']:8.1f} ms wall {1000 * row['cpu_s']:8.1f} ms CPU"
    f" {row['images_per_sec']:8.1f} images/s  MFU {row['mfu']:4.0%}" + ratio
  )


def model_flops(variant: str, work: str) -> int:
  """Returns the operations of matrix products for one image, 2 a multiplication with its addition.

  Training counts three times the forward pass, less the gradient of the image, which nobody computes.
  """
  model = models.build("mixer", variant=variant, num_classes=NUM_CLASSES)
  image = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.float32)
  variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), image)
  forward = flops.forward_flops(model, variables, image)
  stem = 2 * 3 * IMAGE_SIZE**2 * mixer.VARIANTS[variant]["hidden_dim"]
  return 3 * forward - stem if work == "training" else forward


# --- contestants ------------------------------------------------------------------------------------


def start(args: argparse.Namespace, name: str) -> turns.Contestant:
  """Starts a contestant's process."""
  env = dict(os.environ)
  threads = str(args.cores)
  if args.device == "cpu":
    env |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": threads}
  else:
    # Not the CPU, where JAX finds no GPU; and the others need memory, too.
    env |= {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  if name in ("ours", "published"):
    command = [sys.executable, "-m", "benchmarks.step_jax", name]
    env["PYTHONPATH"] = str(ROOT)
  else:
    python = turns.make_environment(args.workdir / "timm-env", RIVAL_PACKAGES)
    command = [python, ROOT / "benchmarks" / "rival_timm.py", name]
    env.pop("PYTHONPATH", None)
  log = args.workdir / f"step-{name}.log"
  return turns.Contestant(name, [*command, args.model, args.dtype], env, log)


def peak_flops(
  args: argparse.Namespace, children: dict[str, turns.Contestant]
) -> tuple[float, str]:
  """Returns the peak in FLOP/s and where it is from."""
  if args.device == "gpu":
    if not shutil.which("nvidia-smi"):
      raise SystemExit("--device=gpu: there is no nvidia-smi, so no NVIDIA GPU to measure on.")
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    device = subprocess.run(query, check=True, capture_output=True, text=True).stdout.split("\n")[0]
    if chip := chips.find(device.strip()):
      return chip.flops(args.dtype), f"data sheet of {device}"
    raise SystemExit(
      f"the peak of {device} is not known; add it to mixer_jax/tools/planning/chips.py."
    )
  seconds = {
    name: min(child.measure("matmul", MATMUL, args.min_secs)[f"{args.by}_s"] for _ in range(3))
    for name, child in children.items()
  }
  best = min(seconds, key=lambda name: seconds[name])
  return 2 * MATMUL**3 / seconds[best], f"float32 product of {MATMUL} x {MATMUL}, fastest: {best}"


if __name__ == "__main__":
  main()
