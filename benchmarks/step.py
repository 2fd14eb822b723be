"""The train step and inference beside the published Flax model and timm, in one run on one machine.

    python -m benchmarks.step                                  # S/16, batch 8, one core, float32
    python -m benchmarks.step --model=B/16 --batch_sizes 8 32 --cores=2 --json=FILE
    python -m benchmarks.step --device=gpu --model=B/16 --dtype=bfloat16 --batch_sizes 128 256 512
    python -m benchmarks.step --tiny --rival_python=PYTHON     # small images, one turn each: to see that it works

Contestants: this project's steps as experiment.build makes them ("ours"; "pallas" with config.kernels="pallas"), the paper's
listing (published.py, always float32), timm's model eager, through torch.compile, and "tuned": compiled with
max-autotune, channels last, fused AdamW. Each is a child process on the cores that --cores says; they take turns, and medians
are compared. The work is the same: images as uint8 on the device; forward; sigmoid cross-entropy, backward, clipping by the
global norm, AdamW. Without --rival_python, the first run makes timm's environment below --workdir. A contestant that ends
is a row that says why.

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
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import turns
from mixer_jax import models
from mixer_jax.models import mixer
from mixer_jax.tools.planning import chips, flops

RIVAL_PACKAGES = ("torch==2.13.0", "torchvision==0.28.0", "timm==1.0.31", "einops==0.8.1")
ROOT = pathlib.Path(__file__).parents[1]
CONTESTANTS = ("ours", "published", "eager", "compiled")
MORE = ("pallas", "tuned")
IN_JAX = ("ours", "pallas", "published")
WORKS = ("inference", "training")
IMAGE_SIZE, NUM_CLASSES = 224, 1000
TINY_SIZE = 64
MODELS = [*mixer.VARIANTS, "vit-B/16"]
MATMUL = 2048  # side of the matrices whose product measures the peak of a CPU


class Case(NamedTuple):
  """What is timed.

  Attributes:
    model: what models.build takes.
    image_size: side of the square images, in pixels.
    rival: how PyTorch makes it, {"module", "factory", "arguments"} and "path" where the module lies.
  """

  model: dict[str, Any]
  image_size: int
  rival: dict[str, Any] | None


def main() -> None:
  parser = make_parser("train step and inference beside others'", CONTESTANTS, MORE)
  parser.add_argument("--model", choices=MODELS, default="S/16")
  args = parse(parser)
  if not args.rival_python and {*args.contestant} - {*IN_JAX}:
    args.rival_python = turns.make_environment(args.workdir / "timm-env", RIVAL_PACKAGES)
  cores = keep_cores(args)
  rows = []
  for row in compare_case(args, make_case(args)):
    rows.append(row)
    if args.json:
      args.json.write_text(json.dumps({"cores": len(cores), "rows": rows}, indent=1) + "\n")


def make_case(args: argparse.Namespace) -> Case:
  """Returns the case of --model; with --tiny of one block and small images."""
  vit = args.model.startswith("vit")
  model: dict[str, Any] = {"name": "vit" if vit else "mixer", "variant": args.model.split("-")[-1]}
  short = args.model.replace("/", "").lower()
  name = "vit_base_patch16_224" if vit else f"mixer_{short}_{IMAGE_SIZE}"
  if not args.tiny:
    return Case(model, IMAGE_SIZE, of_timm(name, IMAGE_SIZE))
  size = 2 * mixer.VARIANTS[model["variant"]]["patch_size"]
  rival = of_timm(name, size, **{"depth" if vit else "num_blocks": 1})
  return Case({**model, "num_blocks": 1}, size, rival)


def make_parser(
  description: str, contestants: tuple[str, ...], more: tuple[str, ...] = ()
) -> argparse.ArgumentParser:
  """Returns a parser of the flags that say how contestants are compared; `more` take part only where they are named."""
  parser = argparse.ArgumentParser(description=description)
  parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8])
  parser.add_argument("--work", choices=WORKS, nargs="+", default=WORKS)
  parser.add_argument("--contestant", choices=contestants + more, nargs="+", default=contestants)
  parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument("--cores", type=int, default=1)
  parser.add_argument("--repeats", type=int, default=7)
  parser.add_argument("--min_secs", type=float, default=1.0, help="of each turn")
  parser.add_argument("--by", choices=("wall", "cpu"), default="wall", help="seconds compared")
  parser.add_argument("--workdir", type=pathlib.Path, default="workdir/benchmark")
  parser.add_argument("--json", type=pathlib.Path, help="write the table to this file too")
  parser.add_argument("--rival_python", type=pathlib.Path, help="Python that has PyTorch and timm")
  parser.add_argument("--tiny", action="store_true", help="see that it works; no measurement")
  return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
  """Returns the flags, with --tiny's sizes."""
  args = parser.parse_args()
  if args.tiny:
    args.batch_sizes, args.repeats, args.min_secs = [2], 1, 0.0
  return args


def keep_cores(args: argparse.Namespace) -> list[int]:
  """Makes the working directory, keeps this process to so many cores, and returns them."""
  args.workdir.mkdir(parents=True, exist_ok=True)
  cores = sorted(os.sched_getaffinity(0))[-args.cores :]
  if len(cores) < args.cores:
    raise SystemExit(f"--cores={args.cores}, but this process may use {len(cores)}.")
  os.sched_setaffinity(0, cores)  # the children inherit it
  return cores


def compare_case(
  args: argparse.Namespace, case: Case, absent: str | None = None
) -> Iterator[dict[str, Any]]:
  """Yields a row for each contestant and work; those that did not run say why in "not_run".

  Args:
    args: of `make_parser`.
    case: what is timed.
    absent: why PyTorch cannot run it; None: it can.
  """
  reasons = {name: absent for name in args.contestant if absent and name not in IN_JAX}
  children = {}
  with ExitStack() as stack:
    for name in (name for name in args.contestant if name not in reasons):
      try:
        children[name] = stack.enter_context(start(args, name, case))
      except OSError as e:
        reasons[name] = str(e)
    for name in [*children]:
      if problem := failure(args, children[name]):
        del children[name]
        reasons[name] = problem
    rows = compare_all(args, children, case) if children else ()
    yield from ({"model": label(case), **row} for row in rows)
  for name, reason in reasons.items():
    print(f"{label(case)} {name} not run: {reason}", flush=True)
    yield {"model": label(case), "contestant": name, "not_run": reason}


def failure(args: argparse.Namespace, child: turns.Contestant) -> str | None:
  """Warms a contestant up. Returns the error that ended it, or None."""
  try:
    for work in args.work:
      for batch_size in args.batch_sizes:
        child.measure(work, batch_size, 0.0)
  except RuntimeError as e:
    return str(e)
  return None


def compare_all(
  args: argparse.Namespace, children: Mapping[str, turns.Contestant], case: Case
) -> Iterator[dict[str, Any]]:
  """Lets the contestants take turns at all work; prints and yields a row for each."""
  peak, source = peak_flops(args, children)
  print(f"{label(case)} {args.dtype} on {args.device}, {args.cores} cores", flush=True)
  print(f"peak {peak / 1e9:.0f} GFLOP/s ({source}); seconds: {args.by}", flush=True)
  for work in args.work:
    for batch_size in args.batch_sizes:
      yield from compare(args, children, case, work, batch_size, peak)


def label(case: Case) -> str:
  model = dict(case.model)
  return " ".join(str(value) for value in (model.pop("name"), *model.values()))


def compare(
  args: argparse.Namespace,
  children: Mapping[str, turns.Contestant],
  case: Case,
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
      "dtype": args.dtype, "work": work, "batch_size": batch_size,
      "contestant": name, "wall_s": seconds["wall"], "cpu_s": seconds["cpu"],
      "start_s": taken[name][-1]["start_s"], "peak_bytes": taken[name][-1]["peak_bytes"],
      "images_per_sec": images_per_sec, "peak_flops": peak,
      "mfu": images_per_sec * model_flops(case, work) / peak,
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


def model_flops(case: Case, work: str) -> int:
  """Returns the operations of matrix products for one image, 2 a multiplication with its addition."""
  model = models.build(**case.model, num_classes=NUM_CLASSES)
  shape = case.image_size, case.image_size, 3
  image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  forward = flops.forward_flops(model, models.abstract_variables(model, shape), image)
  return forward * (flops.TRAINING if work == "training" else 1)


# --- contestants ------------------------------------------------------------------------------------


def of_timm(name: str, size: int, **fields: Any) -> dict[str, Any]:
  """Returns the `rival` that timm makes by this name, for images of this side."""
  arguments = {"model_name": name, "img_size": size, **fields}
  return {"module": "timm", "factory": "create_model", "arguments": arguments}


def start(args: argparse.Namespace, name: str, case: Case) -> turns.Contestant:
  """Starts a contestant's process."""
  env = dict(os.environ)
  threads = str(args.cores)
  if args.device == "cpu":
    env |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": threads}
  else:
    # Not the CPU, where JAX finds no GPU; and the others need memory, too.
    env |= {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  if name in IN_JAX:
    command = [sys.executable, "-m", "benchmarks.step_jax"]
    env["PYTHONPATH"] = str(ROOT)
  else:
    command = [args.rival_python, ROOT / "benchmarks" / "rival_timm.py"]
    env.pop("PYTHONPATH", None)
  log = args.workdir / f"{label(case).replace('/', '')}-{name}.log".replace(" ", "-")
  spec = json.dumps({**case._asdict(), "dtype": args.dtype})
  return turns.Contestant(name, [*command, name, spec], env, log)


def peak_flops(
  args: argparse.Namespace, children: Mapping[str, turns.Contestant]
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
