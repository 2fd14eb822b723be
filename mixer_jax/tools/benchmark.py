"""Throughput of a configuration's model on one local device, training step and inference.

python -m mixer_jax.tools.benchmark --config=configs/imagenet.py:B/16 [--batch_sizes=8,16,32] [--work=training]

Images are on the device already; the steps are those that training and evaluation run. The sweep ends
where memory does, or after two batch sizes that were slower than the best.
"""

import json

from absl import app, flags

from mixer_jax.errors import InputError
from mixer_jax.tools import command, config_files

_CONFIG = config_files.define()
_BATCH_SIZES = flags.DEFINE_list(
  "batch_sizes", None, "Batch sizes of one device. Default: 8, 16, … 4096."
)
_WORK = flags.DEFINE_list(
  "work", ["training", "inference"], "What to measure: training, inference, or both."
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")


def main(argv: list[str]) -> None:
  command.no_arguments(argv)
  if unknown := set(_WORK.value) - {"training", "inference"}:
    raise InputError(f"--work={unknown.pop()} is neither training nor inference.")
  sizes = _batch_sizes(_BATCH_SIZES.value)
  from mixer_jax import models, schema
  from mixer_jax.tools import throughput

  config, results = command.loaded(_CONFIG), {}
  for work in _WORK.value:
    result = throughput.measure(config, sizes, work)
    results[work] = result._asdict()
    if not _JSON.value:
      examples = schema.read(config, models.schema).examples
      _print(work, result.by_batch_size, result.batch_size, examples)
  if _JSON.value:
    print(json.dumps(results))
  else:
    print(throughput.describe({"": 0.0}))


def _batch_sizes(texts: list[str] | None) -> list[int] | None:
  if texts is None:
    return None
  if not texts or not all(t.isdecimal() and int(t) for t in texts):
    raise InputError(f"--batch_sizes={','.join(texts)} must be numbers of images, such as 8,16,32.")
  return sorted({int(t) for t in texts})


def _print(work: str, speeds: dict[int, float], best: int, examples: str) -> None:
  print(f"{work:10} {'batch':>6} {examples + '/s and core':>18}")
  for batch_size, speed in speeds.items():
    print(f"{'':10} {batch_size:6} {speed:18.2f}{'  best' if batch_size == best else ''}")


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  command.run(app.run, main)
