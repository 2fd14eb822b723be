"""What the order of a data set costs: start, resume and memory, for 1 000 and for 3 000 000 000 examples.

    python -m benchmarks.index

Each size runs in a process of its own. Seconds are from the imported loader to the indices of the first
batch, and of a batch in the middle of a later epoch (a resume); memory is what both add to the peak.
"""

import multiprocessing
import resource
import time

import numpy as np

SIZES = (1_000, 1_281_167, 300_000_000, 3_000_000_000)
BATCH = 4096


def measure(num_examples: int) -> None:
  import grain  # noqa: F401  an idle loader has it

  from mixer_jax.data import ops, pipeline, sources

  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  begin = time.perf_counter()
  spec = pipeline.SplitSpec(
    dataset="synthetic", data_dir=None, split="train", label=None, num_examples=num_examples,
    num_classes=1000, labels_per_image=1, ops=ops.Preprocess("decode|inception_crop|flip", (224, 224, 3)),
    on_bad_record="stop",
  )  # fmt: skip
  source: sources.Source = spec.open()
  batches = pipeline.TrainBatches(
    spec, source, seed=0, batch_size=BATCH, rows=np.arange(BATCH), total_steps=10**9
  )
  batches.indices(0)
  started = time.perf_counter()
  batches.indices(int(2.5 * num_examples) // BATCH)
  resumed = time.perf_counter()
  added_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
  print(
    f"{num_examples:>13,} examples: start {started - begin:.3f} s, resume {resumed - started:.3f} s,"
    f" {added_mb:.1f} MB",
    flush=True,
  )


def main() -> None:
  context = multiprocessing.get_context("spawn")
  for num_examples in SIZES:
    process = context.Process(target=measure, args=(num_examples,))
    process.start()
    process.join()


if __name__ == "__main__":
  main()
