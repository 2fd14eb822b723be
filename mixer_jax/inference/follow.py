"""Evaluation of a running run's checkpoints as they come, from another process or machine.

It only reads the run: it needs no lease, and adds to evaluations.jsonl alone.
"""

import time
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from mixer_jax import schema
from mixer_jax.errors import InputError
from mixer_jax.inference import evaluate, trained
from mixer_jax.training import experiment
from mixer_jax.workdir import checkpoint, metrics
from mixer_jax.workdir import directory as workdirs

POLL_SECS = 2.0


def follow(workdir: str, config: Any | None = None, **asked: Any) -> None:
  """Evaluates each checkpoint once, and returns after that of the run's last step.

  Steps that evaluations.jsonl has are left out, so that the same command goes on.

  The configuration is given as to `inference.load`, what to evaluate as to `evaluate.choose`.

  Raises:
    InputError: there is no run, or what is asked for cannot be evaluated.
  """
  if jax.process_count() > 1:
    raise InputError("--follow takes one process, without --distributed.")
  directory = workdirs.path_of(workdir)
  setup = trained.build_setup(directory, config)
  sections = evaluate.choose(setup.options, **asked)
  recorded = metrics.read_records(directory / "evaluations.jsonl")
  wanted = [evaluate.measured(setup.options, section) for section in sections.values()]
  for step in _arriving(directory):
    if all(any({"step": step, **one}.items() <= r.items() for r in recorded) for one in wanted):
      continue
    try:
      found = trained.load_checkpoint(setup, directory, step)
    except Exception as e:
      if step in checkpoint.steps(directory) and not isinstance(e, InputError):
        raise
      metrics.log(f"skipped step {step}, which is gone or damaged: {str(e).splitlines()[0]}")
      continue
    evaluate.evaluate(found, sections, workdir=workdir, record=True)


def _arriving(directory: epath.Path) -> Iterator[int]:
  """Yields the steps of the checkpoints in their order, and waits for further ones up to the run's last."""
  last, said = 0, -1
  while last < (end := _last_step(directory)):
    if new := [step for step in checkpoint.steps(directory) if step > last]:
      last = new[0]
      yield last
    elif said != last:
      metrics.log(
        f"waiting for a checkpoint of {directory} after step {last}; the run ends at step {end}"
      )
      said = last
    else:
      time.sleep(POLL_SECS)


def _last_step(directory: epath.Path) -> int:
  """Returns the last step of the run by its configuration, which a resumed run may have changed."""
  return experiment.total_steps(schema.read(workdirs.load_config(directory)))
