"""Plans a configuration on a topology or on the devices there are."""

import contextlib
import copy
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from mixer_jax.errors import InputError
from mixer_jax.tools.planning import chips, fit, flops, host, program, report, topology
from mixer_jax.training import experiment


class Planner:
  """Compiles a configuration's step with any settings and reports on it.

  Raises:
    InputError: there is no such topology. Later, any error of experiment.build.
  """

  def __init__(self, config: Any, where: topology.Topology | None):
    self._config = config
    self._devices = topology.devices(where) if where else jax.devices()
    kind = self._devices[0].device_kind
    self._chip = where.chip if where else _local_chip(self._devices)
    self._name = where.name if where else kind
    limit = program.absent_memory_limit if where else program.memory_limit
    self._limit_bytes = limit(self._devices[0])
    self._argument_bytes: dict[int, int | None] = {}
    self._log: Callable[[str], None] = lambda _: None

  def find(self, objective: str | None, log: Callable[[str], None]) -> report.Report:
    """Returns the plan of the configuration, or of the best setting that a search finds.

    Args:
      objective: None, "cost" or "memory".
      log: gets a line for each setting that is tried, and while one is compiled.
    """
    self._log = log
    space = self._space()
    attempts = space, self.attempt, self.argument_bytes

    def tried(search: Iterator[fit.Trial]) -> list[fit.Trial]:
      trials = []
      for trial in search:
        log(_line(trial, self._limit_bytes))
        trials.append(trial)
      return trials

    if objective is None:
      best = self.attempt(space.start)
    elif objective == "memory":
      best = fit.least_temporaries(tried(fit.smallest(*attempts)))
    else:
      search = fit.cheapest(*attempts, self._limit_bytes, self._model_flops(space.start))
      best = fit.least_flops(tried(search), self._limit_bytes)
    return report.make(
      self._build(best.setting), devices=self._name, chip=self._chip,
      limit_bytes=self._limit_bytes, trial=best,
    )  # fmt: skip

  def attempt(self, setting: fit.Setting) -> fit.Trial:
    """Compiles the step with a setting."""
    try:
      with ticking(self._log):
        compiled = program.compile_step(self._build(setting))
    except program.DoesNotFitError as e:
      return fit.Trial(setting, e.needed_bytes, None)
    return fit.Trial(setting, compiled.memory.total, compiled)

  def argument_bytes(self, setting: fit.Setting) -> int | None:
    """Returns the bytes of state and batch on a device, or None if the mesh's rules forbid the setting."""
    if setting.fsdp not in self._argument_bytes:  # nothing else counts
      try:
        size = program.argument_bytes(self._build(setting))
      except InputError:
        size = None
      self._argument_bytes[setting.fsdp] = size
    return self._argument_bytes[setting.fsdp]

  def _model_flops(self, setting: fit.Setting) -> float:
    exp = self._build(setting)
    per_image = flops.TRAINING * report.forward_flops(exp)
    return per_image * exp.options.batch_size / exp.mesh.size

  def _build(self, setting: fit.Setting) -> experiment.Experiment:
    config = copy.deepcopy(self._config)
    config.grad_accum_steps = setting.grad_accum_steps
    config.mesh.fsdp = setting.fsdp
    config.model.remat = setting.remat
    return experiment.build(config, experiment.make_mesh(config, self._devices))

  def _space(self) -> fit.Space:
    config = self._config
    start = fit.Setting(config.grad_accum_steps, config.model.remat, config.mesh.fsdp)
    exp = self._build(start)
    return fit.Space(
      start=start,
      rows_per_device=exp.options.batch_size // exp.mesh.size,
      num_devices=exp.mesh.size,
      can_accumulate=not exp.abstract_state.batch_stats,
      can_remat="remat" in config.model,
      can_shard=config.mesh.data == -1,
    )


@contextlib.contextmanager
def ticking(log: Callable[[str], None], every: float = 15.0) -> Iterator[None]:
  """Logs at once that a program is compiled, and every so many seconds for how long already."""
  start, done = time.monotonic(), threading.Event()

  def tick() -> None:
    while not done.wait(every):
      log(f"compiling… {time.monotonic() - start:.0f} s")

  log("compiling…")
  thread = threading.Thread(target=tick, daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()


def _local_chip(devices: list[Any]) -> chips.Chip | None:
  if devices[0].platform == "cpu":
    return host.measured_chip(len(devices))
  return chips.find(devices[0].device_kind)


def _line(trial: fit.Trial, limit_bytes: int | None) -> str:
  needed = trial.needed_bytes / chips.GIB
  verdict = "fits" if trial.fits(limit_bytes) else "does not fit"
  took = (
    f", temporaries {trial.program.memory.temporaries / chips.GIB:.2f} GiB, compiled in "
    f"{trial.program.compile_seconds:.0f} s"
    if trial.program
    else ""
  )
  return f"{trial.setting.flags()}: {needed:.2f} GiB, {verdict}{took}"
