"""Images a second and core of inference or training, best over batch sizes, as in the paper's table 3.

The paper reports inference at the batch size that suits each model best (section 3). What is timed is
the jitted predict step of experiment.py, or the train step, on images that are on the device already:
uint8 to logits, or to the next state.
"""

import functools
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from mixer_jax import files
from mixer_jax.data import loading, pipeline
from mixer_jax.errors import InputError
from mixer_jax.parallel import processes
from mixer_jax.training import experiment

BATCH_SIZES = tuple(2**n for n in range(3, 13))
FILE = "throughput.json"
_MIN_SECS, _REPEATS, _SLOWER = 0.5, 3, 2
_INPUT_SECS = 10.0


class Throughput(NamedTuple):
  """Result of a sweep.

  Attributes:
    images_per_sec_per_core: the best.
    batch_size: that it was reached with, of one device.
    by_batch_size: all that were tried.
  """

  images_per_sec_per_core: float
  batch_size: int
  by_batch_size: dict[int, float]

  def render(self, examples: str) -> str:
    """Returns a line for each batch size, below a heading; `examples` is what is counted."""
    lines = [f"{'batch':>6} {examples + '/s and core':>18}"]
    for batch_size, speed in self.by_batch_size.items():
      best = "  best" if batch_size == self.batch_size else ""
      lines.append(f"{batch_size:6} {speed:18.2f}{best}")
    return f"\n{'':11}".join(lines)


class InputSpeed(NamedTuple):
  """How fast images are read.

  Attributes:
    images_per_sec_per_worker: that one loader worker hands over, from the disk to the batch that a step takes.
    workers_per_device: that feed one device at its best training speed. None: it was not measured.
  """

  images_per_sec_per_worker: float
  workers_per_device: float | None

  def render(self, examples: str) -> str:
    line = f"{self.images_per_sec_per_worker:.0f} {examples}/s from one loader worker"
    if self.workers_per_device is None:
      return line
    return f"{line}: {self.workers_per_device:.2f} workers feed one device's training"


def num_cores(device: Any) -> int:
  """Returns how many cores a device stands for: an accelerator one, a CPU those that may be used."""
  return processes.num_cores() if device.platform == "cpu" else 1


def measure(
  config: Any, batch_sizes: Iterable[int] | None = None, work: str = "inference"
) -> Throughput:
  """Measures a configuration's model on one local device, with parameters as they start.

  The sweep ends where memory does, or after two sizes that were slower than the best.

  Args:
    config: the configuration; its batch size and mesh do not matter.
    batch_sizes: ascending. Default: those of `BATCH_SIZES` that grad_accum_steps divides.
    work: "inference", or "training": forward, backward, optimizer.

  Raises:
    InputError: the first size does not fit, or training's grad_accum_steps does not divide a size.
  """
  parts = config["grad_accum_steps"] if work == "training" else 1
  if batch_sizes is None:
    batch_sizes = [b for b in BATCH_SIZES if b % parts == 0]
  elif odd := [b for b in batch_sizes if b % parts]:
    raise InputError(
      f"batch size {odd[0]} cannot be taken in grad_accum_steps={parts} equal parts; choose multiples of {parts}."
    )
  one = {**config, "batch_size": parts, "grad_accum_steps": parts, "mesh": _one_device(config)}
  setup: experiment.ModelSetup
  if work == "training":
    setup = exp = experiment.build(one)
    call = make_train_call(exp)
  else:
    setup = experiment.build_model(one)
    call = make_predict_call(setup)
  device, speeds, slower = setup.mesh.devices.flat[0], {}, 0
  for batch_size in batch_sizes:
    try:
      batch = make_batch(setup, batch_size)
      seconds = _seconds(functools.partial(call, batch))
    except jax.errors.JaxRuntimeError as e:
      if "RESOURCE_EXHAUSTED" not in str(e) and "Out of memory" not in str(e):
        raise
      break
    speed = batch_size / seconds / num_cores(device)
    slower = slower + 1 if speed < max(speeds.values(), default=0.0) else 0
    speeds[batch_size] = speed
    if slower == _SLOWER:
      break
  if not speeds:
    raise InputError("the model does not fit into the device's memory with the first batch size.")
  best = max(speeds, key=lambda b: speeds[b])
  return Throughput(speeds[best], best, speeds)


def measure_input(config: Any, training: Throughput | None = None) -> InputSpeed:
  """Measures one loader worker on a configuration's training data, and so how many feed a device.

  That takes the speed of the training step on a local device. The configuration's mesh does not matter.
  """
  one = {**config, "mesh": _one_device(config)}
  exp = experiment.build(one)
  size = exp.options.batch_size
  batches = pipeline.TrainBatches(
    exp.train_split,
    exp.train_split.open(),
    seed=exp.options.seed,
    batch_size=size,
    rows=np.arange(size),
    total_steps=sys.maxsize,
  )
  with loading.iterate(batches, num_workers=1) as loaded:
    for _ in range(2 * loading.PREFETCH + 1):
      next(loaded)
    begin, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - begin) < _INPUT_SECS:
      next(loaded)
      count += size
  speed = count / taken
  needed = training and training.images_per_sec_per_core * num_cores(exp.mesh.devices.flat[0])
  return InputSpeed(speed, needed / speed if needed else None)


def _one_device(config: Any) -> dict[str, Any]:
  """Returns config.mesh for one device: every axis has the size 1."""
  return {k: 1 if isinstance(v, int) else v for k, v in dict(config["mesh"]).items()}


def make_predict_call(setup: experiment.ModelSetup) -> Callable[[Any], Any]:
  """Returns what is timed, batch -> logits."""
  step = experiment.make_predict_step(setup, lambda _, outputs: outputs["logits"])
  return functools.partial(step, setup.init_variables())


def make_train_call(exp: experiment.Experiment) -> Callable[[Any], Any]:
  """Returns what is timed, batch -> metrics: the experiment's own step, which keeps its state to itself."""
  kept = [exp.init_state()]

  def train(batch: Any) -> Any:
    kept[0], metrics = exp.train_step(kept[0], batch)
    return metrics

  return train


def make_batch(setup: experiment.ModelSetup, batch_size: int) -> dict[str, jax.Array]:
  """Returns a batch of random images on the experiment's devices."""
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.integers(0, 256, (batch_size, *setup.options.input_shape), np.uint8),
    "label": rng.integers(0, setup.options.num_classes, batch_size, np.int32),
    "mask": np.ones(batch_size, np.float32),
  }
  return jax.device_put(batch, setup.shardings.batch)


def _seconds(call: Callable[[], Any]) -> float:
  """Returns the median time of a call, compiled before, of as many as fill half a second."""
  jax.block_until_ready(call())
  begin = time.perf_counter()
  jax.block_until_ready(call())
  count = max(1, round(_MIN_SECS / _REPEATS / max(time.perf_counter() - begin, 1e-6)))
  times = []
  for _ in range(_REPEATS):
    begin = time.perf_counter()
    for _ in range(count - 1):
      call()
    jax.block_until_ready(call())  # devices take their calls in order
    times.append((time.perf_counter() - begin) / count)
  return statistics.median(times)


# --- what was measured, kept in a results directory ------------------------------------------------


def key(model: str, image_size: int) -> str:
  """Returns the name of a measurement: "Mixer-B/16 224"."""
  return f"{model} {image_size}"


def load(results: pathlib.Path) -> dict[str, float]:
  """Returns {key: images/s and core} of what was measured on this kind of device."""
  measured = _read(results / FILE).get(jax.devices()[0].device_kind, {})
  return {name: m["images_per_sec_per_core"] for name, m in measured.items()}


def save(results: pathlib.Path, name: str, result: Throughput) -> None:
  """Adds a measurement on the local device to the results directory."""
  path = results / FILE
  everything = _read(path)
  everything.setdefault(jax.devices()[0].device_kind, {})[name] = result._asdict()
  results.mkdir(parents=True, exist_ok=True)
  with files.replacing(path) as partial:
    partial.write_text(json.dumps(everything, indent=1) + "\n")


def _read(path: pathlib.Path) -> dict[str, dict[str, Any]]:
  return json.loads(path.read_text()) if path.exists() else {}


def here() -> str:
  """Returns what measurements are made on."""
  device = jax.devices()[0]
  cores = f" ({num_cores(device)} cores)" if device.platform == "cpu" else ""
  return f"{device.device_kind}{cores}"
