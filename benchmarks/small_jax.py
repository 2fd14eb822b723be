"""Our side of small.py: `python -m benchmarks.small_jax IMAGES` answers jobs on its input."""

import itertools
import sys
import time
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from benchmarks import turns
from mixer_jax import evaluators
from mixer_jax.configs import quickstart
from mixer_jax.data import loading, pipeline
from mixer_jax.parallel import sharding
from mixer_jax.tools import host_memory
from mixer_jax.training import experiment


def make_config(images: int) -> Any:
  config = quickstart.get_config()
  config.image_size, config.model.stoch_depth = 28, 0.0
  config.learning_rate, config.optimizer.weight_decay = 1e-3, 0.1
  config.mesh.data = 1
  config.data.dataset, config.data.num_examples = "fashion_mnist_debian", 60_000
  config.data.subset_percent = 100 * images / 60_000
  config.data.ops = config.evaluators.val.ops = "decode"
  config.data.num_workers = config.evaluators.val.num_workers = 0
  config.evaluators.val.dataset = "fashion_mnist_debian"
  config.evaluators.val.num_examples = 10_000
  config.evaluators.val.batch_size = 500
  return config


class Run:
  """A run whose epochs are taken one by one."""

  def __init__(self, images: int):
    config = make_config(images)
    self._exp = exp = experiment.build(config)
    size = exp.options.batch_size
    self._steps, self._taken = images // size, 0
    self._rows = np.arange(size)
    self._batches = pipeline.TrainBatches(
      exp.train_split, exp.train_split.open(), seed=0, batch_size=size, rows=self._rows, total_steps=10**6
    )  # fmt: skip
    self._state = exp.init_state()
    self._again = self._batches[0]
    self.step(itertools.repeat(self._again, 2))

  def answer(self, job: dict[str, Any]) -> dict[str, float]:
    if job["work"] == "score":
      return self.score()
    cpu = time.process_time()
    if job["work"] == "step":
      self.step(itertools.repeat(self._again, self._steps))
    else:
      with loading.iterate(self._batches, start=self._taken, num_workers=0) as loaded:
        batches = itertools.islice(loaded, self._steps)
        self.step(batches) if job["work"] == "epoch" else [*batches]
      self._taken += self._steps
    return {"cpu_s": time.process_time() - cpu}

  def step(self, batches: Iterable[pipeline.Batch]) -> None:
    exp, waiting = self._exp, []
    for batch in batches:
      batch = sharding.put_batch(batch, exp.shardings.batch, self._rows, exp.options.batch_size)
      self._state, metrics = exp.train_step(self._state, batch)
      waiting.append(metrics)
      if len(waiting) > 2:  # steps in flight, as in a run
        jax.device_get(waiting.pop(0))
    jax.block_until_ready(self._state)

  def score(self) -> dict[str, float]:
    sections = {"val": self._exp.options.evaluators["val"]}
    (val,) = evaluators.build(self._exp, sections, None, ()).values()
    return dict(val(self._state.eval_variables(), 0))


if __name__ == "__main__":
  host_memory.keep_on_cpu()  # as train.py does
  turns.reply(lambda: Run(int(sys.argv[1])).answer)
