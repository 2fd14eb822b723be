"""Every family on Fashion-MNIST, from scratch, with one budget on a CPU: the same images, settings and about the same MACs.

    python -m benchmarks.fashion_mnist --workdir=workdir/fashion_mnist

Trains each model of configs/fashion_mnist.py in turn and prints a table, which docs/results/fashion_mnist.md has. Finished
runs are kept, an interrupted one goes on.
"""

import argparse
import json
import pathlib
import time
from typing import Any

import jax

from mixer_jax import models, tables
from mixer_jax.configs import fashion_mnist
from mixer_jax.tools.planning import flops
from mixer_jax.training import loop


def main() -> None:
  parser = argparse.ArgumentParser(description="all families on Fashion-MNIST")
  parser.add_argument("--workdir", type=pathlib.Path, default="workdir/fashion_mnist")
  parser.add_argument("--epochs", type=float, default=1.0)
  parser.add_argument("--models", nargs="*", default=[*fashion_mnist.MODELS])
  args = parser.parse_args()
  rows = []
  for name in args.models:
    config = fashion_mnist.get_config(f"{name},epochs={args.epochs}")
    result = _result(config, args.workdir.absolute() / name)
    rows.append(
      (name, *_size(name, config), f"{100 * result['top1']:.2f}", f"{result['minutes']:.1f}")
    )
  rows.sort(key=lambda row: -float(row[3]))
  print(tables.as_markdown(("model", "parameters", "MACs (10⁶)", "top-1 (%)", "minutes"), rows))


def _result(config: Any, directory: pathlib.Path) -> dict[str, float]:
  """Returns top-1 and minutes of the run, which is trained unless it is finished."""
  path = directory / "result.json"
  if not path.exists():
    begin = time.monotonic()
    top1 = loop.train(config, str(directory))["top1"]
    minutes = (time.monotonic() - begin) / 60
    path.write_text(json.dumps({"top1": top1, "minutes": minutes}) + "\n")
  return json.loads(path.read_text())


def _size(name: str, config: Any) -> tuple[str, str]:
  """Returns parameters and multiply-accumulates of a model of the configuration, as text."""
  family, fields = fashion_mnist.MODELS[name]
  model = models.build(family, num_classes=config.num_classes, **fields)
  shape = (config.image_size, config.image_size, config.image_channels)
  variables = models.abstract_variables(model, shape)
  parameters = sum(x.size for x in jax.tree.leaves(variables["params"]))
  image = jax.ShapeDtypeStruct((1, *shape), jax.numpy.float32)
  return f"{parameters:,}", f"{flops.forward_flops(model, variables, image) / 2e6:.1f}"


if __name__ == "__main__":
  main()
