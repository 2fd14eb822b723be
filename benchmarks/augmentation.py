"""What DeiT's augmentation on the device adds to a training step, with it and without it in turns.

    python -m benchmarks.augmentation                          # Mixer-B/16, batch 8, on the first device
    python -m benchmarks.augmentation --model=conv_mlp-S --batch_size=16 --turns=9

For a TPU that is not there, plan both (docs/plan.md): bytes and operations of
`python -m mixer_jax.tools.plan --config=configs/deit.py:mixer-B/16 --topology=v3:2x2`, and of the same with
`--config.augment.erasing_p=0 --config.augment.mixup_p=0 --config.augment.cutmix_p=0 --config.augment.label_smoothing=0`.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from mixer_jax.configs import common, deit
from mixer_jax.tools import host_memory, throughput
from mixer_jax.training import experiment


def make_call(model: str, batch_size: int, *, augmented: bool) -> Callable[[], Any]:
  """Returns what takes a step and waits for it."""
  config = deit.get_config(model)
  config.mesh.data, config.batch_size, config.data.repeats = 1, batch_size, 1
  if not augmented:
    config.augment = common.get_config().augment
  exp = experiment.build(config)
  step, batch = throughput.make_train_call(exp), throughput.make_batch(exp, batch_size)
  return lambda: jax.block_until_ready(step(batch))


def cpu_seconds(call: Callable[[], Any]) -> tuple[float, float]:
  """Returns the process's CPU seconds and the wall seconds of a call."""
  cpu, wall = time.process_time(), time.perf_counter()
  call()
  return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--model", default="mixer-B/16", help="FAMILY-VARIANT of configs/deit.py")
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--turns", type=int, default=7)
  args = parser.parse_args()
  host_memory.keep_on_cpu()
  calls = {
    name: make_call(args.model, args.batch_size, augmented=name == "with")
    for name in ("without", "with")
  }
  for call in calls.values():  # compiles
    call()
  taken = {name: [] for name in calls}
  for _ in range(args.turns):
    for name, call in calls.items():
      taken[name].append(cpu_seconds(call))
  for i, unit in enumerate(("CPU seconds", "wall seconds")):
    medians = {name: statistics.median(t[i] for t in times) for name, times in taken.items()}
    print(
      f"{unit} a step: {medians['without']:.4f} without, {medians['with']:.4f} with"
      f" ({100 * (medians['with'] / medians['without'] - 1):+.2f} %)"
    )


if __name__ == "__main__":
  main()
