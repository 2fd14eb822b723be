"""Small images: epochs of Fashion-MNIST beside a plain PyTorch loop over timm's model, on one core.

    python -m benchmarks.small                          # three epochs of each, in turns
    python -m benchmarks.small --rival_python=PYTHON    # that has PyTorch and timm

The quickstart's Mixer (150 158 parameters) on 28×28 pixels in three equal channels, in batches of 128 in a random order;
softmax cross-entropy, clipping by the global norm, AdamW. Ours (small_jax.py) are the parts of a run: data set, loader, step,
evaluator. The rival (rival_small.py) keeps all images in one tensor and indexes it. "step" are an epoch's steps on one
batch that is there already, "input" its batches alone; CPU seconds are compared. Without --rival_python, the first run makes
timm's environment below --workdir.
"""

import argparse
import os
import pathlib
import statistics
import sys

from benchmarks import step, turns
from mixer_jax.data import fashion_mnist

HERE = pathlib.Path(__file__).parent
WORKS = ("epoch", "step", "input")


def main() -> None:
  parser = argparse.ArgumentParser(description="epochs of small images beside a plain PyTorch loop")
  parser.add_argument("--workdir", type=pathlib.Path, default="workdir/benchmark")
  parser.add_argument("--rival_python", type=pathlib.Path, help="Python that has PyTorch and timm")
  parser.add_argument("--epochs", type=int, default=3)
  parser.add_argument("--images", type=int, default=60_000, help="in an epoch")
  args = parser.parse_args()
  args.workdir.mkdir(parents=True, exist_ok=True)
  rival = args.rival_python or turns.make_environment(
    args.workdir / "timm-env", step.RIVAL_PACKAGES
  )
  os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the children inherit it
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
  commands = {
    "ours": [sys.executable, "-m", "benchmarks.small_jax", str(args.images)],
    "timm": [rival, HERE / "rival_small.py", str(args.images), fashion_mnist.DIRECTORY],
  }
  logs = {name: args.workdir / f"small-{name}.log" for name in commands}
  with (
    turns.Contestant(
      "ours", commands["ours"], env | {"PYTHONPATH": str(HERE.parent)}, logs["ours"]
    ) as ours,
    turns.Contestant("timm", commands["timm"], env, logs["timm"]) as timm,
  ):
    compare({"ours": ours, "timm": timm}, args.epochs)


def compare(contestants: dict[str, turns.Contestant], epochs: int) -> None:
  """Lets the contestants take turns, and prints the medians."""
  for work in WORKS:
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(epochs):
      for name, child in contestants.items():
        taken[name].append(child.ask({"work": work})["cpu_s"])
    seconds = {name: statistics.median(each) for name, each in taken.items()}
    ratio = seconds["ours"] / seconds["timm"]
    listed = "  ".join(
      f"{name} {seconds[name]:6.2f} s ({', '.join(f'{s:.1f}' for s in each)})"
      for name, each in taken.items()
    )
    print(f"{work:6} {listed}  ours takes {ratio:.2f} x as long", flush=True)
    if work == "epoch":
      scores = {name: child.ask({"work": "score"})["top1"] for name, child in contestants.items()}
      print(f"top-1 after {epochs} epochs: {scores}", flush=True)


if __name__ == "__main__":
  main()
