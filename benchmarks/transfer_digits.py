"""What pre-training is worth on real images, offline: digits 0–4, transferred to 5–9 at another size.

    python -m benchmarks.transfer_digits --workdir=workdir/transfer_digits

A small Mixer is pre-trained on the digits 0 to 4 at 16 px. For each seed it is fine-tuned on all training
images of the digits 5 to 9 for 60 steps of momentum SGD, at twice the size (appendix C) and at one and a
half times (interpolation, not the paper's), beside the same model trained from scratch with the same
budget. Prints test top-1 in pairs and the mean difference. Finished runs are kept.
"""

import argparse
import json
import pathlib
import statistics
from typing import Any

from mixer_jax.configs import finetune, quickstart
from mixer_jax.training import loop

PRETRAIN_SIZE = 16


def main() -> None:
  parser = argparse.ArgumentParser(description="transfer between halves of the digits")
  parser.add_argument("--workdir", type=pathlib.Path, default="workdir/transfer_digits")
  parser.add_argument("--seeds", type=int, default=5)
  parser.add_argument("--sizes", type=int, nargs="*", default=[32, 24])
  parser.add_argument("--steps", type=int, default=60)
  parser.add_argument("--lr", type=float, default=0.03)
  args = parser.parse_args()
  workdir = args.workdir.absolute()
  pretrained = workdir / "pretrained"
  _top1(_pretraining(), pretrained)
  lines = []
  for size in args.sizes:
    pairs = []
    for seed in range(args.seeds):
      tuned, scratch = (
        _top1(_tuning(args, pretrained, size, seed, weights), workdir / f"{name}-{size}-{seed}")
        for name, weights in (("tuned", True), ("scratch", False))
      )
      pairs.append((tuned, scratch))
      print(
        f"{size} px, seed {seed}: fine-tuned {tuned:.4f}, from scratch {scratch:.4f}", flush=True
      )
    differences = [100 * (a - b) for a, b in pairs]
    lines.append(
      f"{size} px: fine-tuned {statistics.mean(a for a, _ in pairs):.4f}, from scratch"
      f" {statistics.mean(b for _, b in pairs):.4f}; difference {statistics.mean(differences):+.1f} points"
      f" (least {min(differences):+.1f}) over {len(pairs)} paired seeds"
    )
  print("\n".join(lines))


def _pretraining() -> Any:
  config = quickstart.get_config()
  config.num_classes = 5
  config.total_epochs = 40.0
  config.data.dataset, config.data.num_examples = "digits_0_4", 720
  config.evaluators.val.num_examples = 181
  config.evaluators.pictures.every_steps = 0
  return config


def _tuning(
  args: argparse.Namespace, pretrained: pathlib.Path, size: int, seed: int, from_weights: bool
) -> Any:
  config = finetune.get_config(
    f"weights={pretrained},dataset=digits_5_9,size={size},steps={args.steps},lr={args.lr}"
  )
  config.seed, config.batch_size = seed, 128
  config.evaluators.pictures.every_steps = 0
  if not from_weights:
    config.init.weights = None
  return config


def _top1(config: Any, directory: pathlib.Path) -> float:
  """Returns the test top-1 of the run, which is trained unless it is finished."""
  path = directory / "result.json"
  if not path.exists():
    top1 = loop.train(config, str(directory))["top1"]
    path.write_text(json.dumps({"top1": top1}) + "\n")
  return json.loads(path.read_text())["top1"]


if __name__ == "__main__":
  main()
