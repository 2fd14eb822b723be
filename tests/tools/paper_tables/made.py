"""Hand-made results directories: what runs and evaluations would have left."""

import json

from etils import epath

from configs import finetune_table3
from mixer_jax import configuration
from mixer_jax.tools.sweep import protocol


def run(directory, config, records, *, evaluations=(), result=None):
  """Writes a workdir."""
  directory.mkdir(parents=True)
  configuration.save(epath.Path(directory) / "config.json", config)
  write_lines(directory / "metrics.jsonl", records)
  if evaluations:
    write_lines(directory / "evaluations.jsonl", evaluations)
  if result is not None:
    (directory / "result.json").write_text(json.dumps({"top1": result}))


def write_lines(path, records):
  path.write_text("".join(json.dumps(r) + "\n" for r in records))


def transfer(
  results, weights, dataset, size, dev, test, *, real=None, make=finetune_table3.get_config
):
  """Writes the protocol's runs: dev = {lr: top-1}, test = top-1 of the seeds at the best rate."""
  cell = protocol.Transfer(weights, dataset, size)
  best = max(dev, key=lambda lr: dev[lr])
  jobs = [(protocol.Run(cell, lr, 0, "dev"), v) for lr, v in dev.items()]
  jobs += [(protocol.Run(cell, best, seed, "test"), v) for seed, v in enumerate(test)]
  for job, top1 in jobs:
    config = make(job.argument)
    config.seed, config.evaluators.pictures.every_steps = job.seed, 0  # as tools/transfer.py
    end = config.total_steps
    evaluations = []
    if real is not None and job.eval_split == "test":
      evaluations = [
        {"step": 1, "dataset": "imagenet2012_real", "top1": 0.01},  # of another checkpoint
        {"step": end, "dataset": "imagenet2012_real", "top1": real[job.seed]},
      ]
    records = [{"step": end, "val/top1": top1}]
    run(results / job.name, config, records, evaluations=evaluations, result=top1)
