"""Throughput of a configuration's model on one local device, training step and inference, and of its input.

python -m mixer_jax.tools.benchmark --config=configs/imagenet.py:B/16 [--batch_sizes=8,16,32] [--work=training,input]

Images are on the device already; the steps are those that training and evaluation run. The sweep ends
where memory does, or after two batch sizes that were slower than the best. The input is measured from the disk to the batch, with
one loader worker: with the training step beside it, it tells how many workers feed a device.
"""

import json
from typing import Any

from absl import flags

from mixer_jax.errors import InputError
from mixer_jax.tools import command, config_files

_CONFIG = config_files.define()
_BATCH_SIZES = flags.DEFINE_list(
  "batch_sizes", None, "Batch sizes of one device. Default: 8, 16, … 4096."
)
_WORK = flags.DEFINE_list(
  "work", ["training", "inference"], "What to measure: training, inference, input, in this order."
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")


def main(argv: list[str]) -> None:
  command.no_arguments(argv)
  if unknown := set(_WORK.value) - {"training", "inference", "input"}:
    raise InputError(f"--work={unknown.pop()} is none of training, inference, input.")
  sizes = _batch_sizes(_BATCH_SIZES.value)
  from mixer_jax import schema
  from mixer_jax.tools import throughput

  results: dict[str, Any] = {}
  for work in sorted(_WORK.value, key=lambda work: work == "input"):
    config = command.loaded(_CONFIG)
    if work == "input":
      results[work] = throughput.measure_input(config, results.get("training"))
    else:
      results[work] = throughput.measure(config, sizes, work)
    if not _JSON.value:
      examples = schema.read(config).examples
      print(f"{work:10} {results[work].render(examples)}")
  if _JSON.value:
    print(json.dumps({work: found._asdict() for work, found in results.items()}))
  else:
    print(f"measured on {throughput.here()}")


def _batch_sizes(texts: list[str] | None) -> list[int] | None:
  if texts is None:
    return None
  if not texts or not all(t.isdecimal() and int(t) for t in texts):
    raise InputError(f"--batch_sizes={','.join(texts)} must be numbers of images, such as 8,16,32.")
  return sorted({int(t) for t in texts})


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  command.run(main)
