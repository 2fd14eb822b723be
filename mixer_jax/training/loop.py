"""The run: resume, step, log, evaluate, save."""

import collections
import contextlib
import dataclasses
import functools
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from mixer_jax import evaluators, schema
from mixer_jax.data import loading, pipeline
from mixer_jax.errors import DivergedError, InputError, RetryError, SaveError
from mixer_jax.evaluators import Evaluator
from mixer_jax.parallel import distributed, processes, sharding
from mixer_jax.parallel.stop_signal import StoppedError, StopSignal
from mixer_jax.training import experiment, headline, init_from, profiling
from mixer_jax.training.state import TrainState
from mixer_jax.workdir import checkpoint, metrics, provenance, trackers
from mixer_jax.workdir import directory as workdirs
from mixer_jax.workdir import lease as leases

# Steps handed to the device ahead of the one whose loss is looked at: enough to keep it busy, few
# enough that a signal or a NaN is met soon.
STEPS_IN_FLIGHT = 2
_UNSTARTED = "stopped before the first step; the same command starts again"


def train(
  config: Any,
  workdir: str,
  stop: StopSignal | None = None,
  allow_change: Sequence[str] = (),
  *,
  wait_for_workdir: bool = False,
  lease: leases.Lease | None = None,
) -> dict[str, float]:
  """Trains from the newest checkpoint in the workdir, or from the start, to the end.

  Args:
    config: the configuration.
    workdir: directory of the run, local, shared or gs://.
    stop: where signals arrive; None: none are looked for.
    allow_change: keys and sections, besides config.may_change, that may differ from the run's that is resumed.
    wait_for_workdir: wait while another process trains there, instead of an error.
    lease: of the workdir, if the caller has it.

  Returns:
    The last metrics of config.best's evaluator.

  Raises:
    InputError: bad configuration, data or workdir, or another process trains there; before any training wherever
      that can be known.
    DivergedError: NaN; the newest checkpoint is from before it.
    SystemExit: with stop.status, after saving, when asked to stop.
  """
  stop = stop or StopSignal()
  config = schema.completed(config)
  distributed.agree({"config": config, "workdir": workdir, "allow_change": allow_change})
  exp = experiment.build(config)
  directory = workdirs.path_of(workdir)
  with contextlib.ExitStack() as held:
    with stop.ending(lambda: _end_unstarted(held)):
      if lease is None and jax.process_index() == 0:
        lease = held.enter_context(leases.take(directory, wait=wait_for_workdir))
      distributed.await_first("lease")
      run, state = _prepare(exp, config, directory, allow_change, stop, lease)
    return run.complete(state)


def _end_unstarted(held: contextlib.ExitStack) -> str:
  held.close()
  return _UNSTARTED


def _prepare(
  exp: experiment.Experiment,
  config: Any,
  directory: epath.Path,
  allow_change: Sequence[str],
  stop: StopSignal,
  lease: leases.Lease | None,
) -> tuple["_Run", TrainState]:
  """Opens data and workdir; returns the run with the state that it goes on from."""
  trackers.check(exp.options.log.wandb)
  source = exp.train_split.open()
  intact = checkpoint.find_intact(directory)
  source.number_classes_as(init_from.class_names(exp, directory, intact.step))
  if line := headline.lacking_classes(exp, source):
    metrics.log(line)
  sections, names = evaluators.in_training(exp.options), source.class_names or ()
  measured = evaluators.build(
    dataclasses.replace(exp, serve=stop.serve), sections, directory, names
  )
  origin = provenance.describe(config, {"data.split": source, **evaluators.opened(measured)})
  origin = provenance.resume(origin, directory, intact.step, allow_change)
  state = init_from.initial_state(exp, directory, intact)
  if lease is not None:
    lease.check()
  workdirs.create(directory, config, origin.run)
  keep = exp.options.checkpoint
  checkpointer = checkpoint.Checkpointer(
    directory,
    keep_newest=keep.keep_newest,
    keep_best=keep.keep_best,
    measure=evaluators.measure(exp.options, measured),
    provenance=origin,
  )
  start_step = int(state.step)
  metrics.log(headline.headline(exp, source, measured, directory, start_step))
  run = _Run(exp, directory, checkpointer, source, measured, start_step, origin, stop, lease)
  return run, state


class _Run:
  """The moving parts of one call of `train`."""

  def __init__(
    self,
    exp: experiment.Experiment,
    directory: epath.Path,
    checkpointer: checkpoint.Checkpointer,
    source: Any,
    measured: Mapping[str, Evaluator],
    start_step: int,
    origin: provenance.Provenance,
    stop: StopSignal,
    lease: leases.Lease | None,
  ):
    self._exp, self._directory, self._checkpointer = exp, directory, checkpointer
    self._start_step, self._stop, self._lease = start_step, stop, lease
    self._source, self._evaluators = source, measured
    self._best, self._metric = evaluators.best(exp.options)
    self._writer = self._open_writer(origin) if jax.process_index() == 0 else None
    on_cpu = exp.mesh.devices.flat[0].platform == "cpu"
    self._progress = metrics.Progress(
      start_step=start_step,
      total_steps=exp.total_steps,
      batch_size=exp.options.batch_size,
      num_cores=processes.num_cores() if on_cpu else exp.mesh.size,  # or accelerators
      core_hours=self._writer.last("core_hours", 0.0) if self._writer else 0.0,
    )
    self._pending: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()
    self._skipped = int(self._writer.last("skipped_records", 0)) if self._writer else 0
    self._rows = sharding.local_rows(exp.shardings.batch, exp.options.batch_size)
    self._profiler = profiling.StepProfiler(
      directory, first_step=exp.options.profile.first_step, num_steps=exp.options.profile.num_steps
    )
    self._results: dict[int, dict[str, float]] = {}  # step -> those of the best's evaluator

  def _open_writer(self, origin: provenance.Provenance) -> metrics.MetricWriter:
    where, project = self._directory, self._exp.options.log.wandb
    with self._reporting():
      also = [trackers.Wandb(project, where, origin.run, origin.configuration)] if project else []
      known = (origin.records, origin.records_sha256, also)
      return metrics.MetricWriter(where, self._start_step, *known)

  def complete(self, state: TrainState) -> dict[str, float]:
    """Trains to the end and returns the results, or exits after a signal; see `train` above."""
    try:
      state = self._train(state)
      self._checkpointer.wait()
      if int(state.step) == self._exp.total_steps:
        with contextlib.suppress(StoppedError):
          return self._finish(state)
    finally:
      self._close()
    metrics.log(self._saved(int(state.step)))
    sys.exit(self._stop.status)

  def _train(self, state: TrainState) -> TrainState:
    """Takes the steps from the first to the end, or to the one after a signal."""
    exp = self._exp
    if line := self._profiler.missed(self._start_step):
      metrics.log(line)
    try:
      self._resume_evaluation(state)
    except StoppedError:
      return state
    with self._batches() as batches:
      for step in range(self._start_step + 1, exp.total_steps + 1):
        with self._wait(step - 1, state):
          batch = self._next(batches)
        if step == self._start_step + 1:
          state = self._first_step(step, state, batch)
        else:
          state = self._step(step, state, batch)
        due = self._due(step)
        stopping = self._stop.asked()
        # What may be the best is saved, so that it can be kept.
        every = exp.options.checkpoint.every_steps
        save = self._best in due or step % every == 0
        # What is evaluated or saved must be known to be finite.
        self._drain(0 if save or due or stopping else STEPS_IN_FLIGHT)
        try:
          self._evaluate(step, state, due)
        except StoppedError:
          stopping = True
        if save or stopping:
          self._save(step, state)
        self._checkpointer.check()
        if stopping:
          break
    return state

  def _resume_evaluation(self, state: TrainState) -> None:
    """Evaluates what a signal left out at the step that the run goes on from (`_end`, `StoppedError`)."""
    step, writer = self._start_step, self._writer
    if step in (0, self._exp.total_steps):
      return
    due = [n for n in self._due(step) if self._evaluators[n].SCORES]
    lacking = [writer is not None and not writer.has(step, n) for n in due]
    lacking = distributed.of_first(np.array(lacking, np.int32))
    self._evaluate(step, state, [n for n, lacks in zip(due, lacking, strict=True) if lacks])

  def _first_step(self, step: int, state: TrainState, batch: pipeline.Batch) -> TrainState:
    """Takes a step and waits for it, so that its compilation does not count as speed."""
    with self._stop.ending(functools.partial(self._end, step - 1, state)):
      state = self._step(step, state, batch)
      jax.block_until_ready(self._pending[-1][1])
    seconds = self._progress.measure(step)["seconds"]
    metrics.log(f"first step after {seconds:.1f} s (compilation included)")
    return state

  def _step(self, step: int, state: TrainState, batch: pipeline.Batch) -> TrainState:
    exp = self._exp
    with self._profiler.step(step):
      size, sharded = exp.options.batch_size, exp.shardings.batch
      on_devices = sharding.put_batch(batch, sharded, self._rows, size)
      state, step_metrics = exp.train_step(state, on_devices)
    self._pending.append((step, step_metrics))
    with self._reporting():
      line = self._profiler.finish(step, step_metrics)
    if line is not None:
      metrics.log(line)
    return state

  def _end(self, step: int, state: TrainState) -> str:
    """Ends the run while the main thread waits; returns what to print."""
    self._save_taken(step, state)
    if self._lease is not None:
      self._lease.release()
    return self._saved(step) if step else _UNSTARTED

  def _save_taken(self, step: int, state: TrainState) -> None:
    """Saves the state after `step`, if this process took it; returns once it is committed."""
    if step > self._start_step:
      self._drain(0)
      self._save(step, state)
    self._checkpointer.wait()

  def _saved(self, step: int) -> str:
    return f"saved step {step} in {self._directory}; the same command resumes"

  def _finish(self, state: TrainState) -> dict[str, float]:
    """Reports the finished run: its result, and where everything is."""
    step = int(state.step)
    if step not in self._results:
      self._evaluate(step, state, self._due(step))
    best = checkpoint.best_step(self._directory)
    lines = [
      f"finished: {self._line(self._best, self._results[step])}",
      f"  checkpoints  {self._directory / 'checkpoints'} (steps {checkpoint.steps(self._directory)},"
      f" best {best})",
      f"  metrics      {self._directory / 'metrics.jsonl'}, TensorBoard: {self._directory / 'events'}",
    ]
    metrics.log("\n".join(lines))
    return self._results[step]

  def _close(self) -> None:
    """Closes files; what could not be written was raised before.

    After an error, one of several processes does not wait for the others, which wait for it.
    """
    if jax.process_count() > 1 and sys.exc_info()[0] is not None:
      return
    with contextlib.suppress(SaveError):
      self._checkpointer.close()
    if self._writer is not None:
      with contextlib.suppress(OSError):
        self._writer.close()

  def _batches(self) -> loading.ClosingIterator:
    exp = self._exp
    batches = pipeline.TrainBatches(
      exp.train_split,
      self._source,
      seed=exp.options.seed,
      batch_size=exp.options.batch_size,
      rows=self._rows,
      total_steps=exp.total_steps,
    )
    return loading.iterate(
      batches, start=self._start_step, num_workers=exp.options.data.num_workers
    )

  def _next(self, batches: loading.ClosingIterator) -> pipeline.Batch:
    begin = time.perf_counter()
    batch = next(batches)
    self._progress.wait(time.perf_counter() - begin)
    return batch

  def _drain(self, keep: int) -> None:
    """Looks at the metrics of finished steps, all but the newest `keep`; logs those that are due."""
    while len(self._pending) > keep:
      step, on_device = self._pending.popleft()
      values = {k: float(v) for k, v in jax.device_get(on_device).items()}
      bad = [k for k, v in values.items() if not math.isfinite(v)]
      if bad:
        self._checkpointer.wait()
        raise DivergedError(
          f"step {step}: {', '.join(bad)} is not finite; {checkpoint.last_good(self._directory)}."
        )
      self._skipped += int(values.pop("skipped"))
      if step % self._exp.options.log.every_steps == 0 or step == self._exp.total_steps:
        self._log(step, values)

  def _log(self, step: int, values: dict[str, float]) -> None:
    values |= self._progress.measure(step)
    values.pop("seconds")
    if self._skipped:
      values["skipped_records"] = self._skipped
    metrics.log(
      metrics.progress_line(step, self._exp.total_steps, values, self._exp.options.examples)
      + (f"  skipped {self._skipped} records" if self._skipped else "")
    )
    self._write(step, values)

  def _due(self, step: int) -> list[str]:
    last = step == self._exp.total_steps
    return [n for n, one in self._evaluators.items() if last or step % one.every_steps == 0]

  def _evaluate(self, step: int, state: TrainState, due: list[str]) -> None:
    """Evaluates what is due; raises StoppedError if several processes are asked to stop."""
    if not due:
      return
    begin = time.perf_counter()
    variables = state.eval_variables()
    for name in due:
      with self._wait(step, state):
        values = dict(self._evaluators[name](variables, step))
      metrics.log(f"step {step}/{self._exp.total_steps} {self._line(name, values)}")
      self._write(step, {f"{name}/{k}": v for k, v in values.items()})
      if name == self._best:
        self._results = {step: values}
        self._checkpointer.rate(step, values[self._metric])
    self._progress.pause(time.perf_counter() - begin)

  @contextlib.contextmanager
  def _wait(self, step: int, state: TrainState) -> Iterator[None]:
    """Saves what was trained where a signal, or data that cannot be read, end the block that waits for data.

    Of several processes one alone may have met them, and a save takes all.
    """
    try:
      with self._stop.ending(functools.partial(self._end, step, state)):
        yield
    except (InputError, RetryError):
      if jax.process_count() == 1 and step > self._start_step:
        self._save_taken(step, state)
        metrics.log(self._saved(step))
      raise

  def _line(self, name: str, values: dict[str, float]) -> str:
    one = self._evaluators[name]
    return f"{name} {one.title}: {one.line(values)}"

  def _write(self, step: int, values: dict[str, float]) -> None:
    with self._reporting():
      if self._writer is not None and values:
        self._writer.write(step, values)

  @contextlib.contextmanager
  def _reporting(self) -> Iterator[None]:
    try:
      yield
    except (OSError, SaveError) as e:
      raise SaveError(checkpoint.save_failure(self._directory, e)) from e

  def _save(self, step: int, state: TrainState) -> None:
    begin = time.perf_counter()
    if self._lease is not None:
      self._lease.check()
    score = self._results[step][self._metric] if step in self._results else None
    records = self._writer.records if self._writer else None
    self._checkpointer.save(step, state, score, records)
    self._progress.pause(time.perf_counter() - begin)
