"""Checkpoints of the train state: Orbax, asynchronous, each with its provenance and the SHA-256 of its files.

Orbax restores a flipped bit without an error, so every checkpoint carries a list of checksums, written
before the atomic commit. A checkpoint that does not match its list, or is of another step or run than its place says,
is moved to `damaged_checkpoints/` and the one before it is used.
"""

import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import args as ocp_args
from orbax.checkpoint.checkpoint_manager import METRIC_ITEM_NAME
from orbax.checkpoint.checkpoint_managers import preservation_policy

from mixer_jax import files
from mixer_jax.errors import InputError, SaveError
from mixer_jax.parallel import distributed
from mixer_jax.workdir import checksums, restore
from mixer_jax.workdir import directory as workdirs
from mixer_jax.workdir import metrics as metrics_lib
from mixer_jax.workdir import provenance as provenance_lib
from mixer_jax.workdir.provenance import Provenance

_METRICS = f"{METRIC_ITEM_NAME}/metrics"
# What Orbax reads of each checkpoint where it saves the next one.
_READ_OF_ALL = (_METRICS, "_CHECKPOINT_METADATA")
# Where Orbax moves a checkpoint to delete, so that no kill leaves a part of one.
_DELETED = "deleted"
# TensorStore's errors are ValueErrors that begin with a status: "RESOURCE_EXHAUSTED: …"
_STATUS = re.compile(r"[A-Z]+(_[A-Z]+)*: ")
_DATASET = re.compile(r'"dataset": "(?:[^"\\]|\\.)*", ')  # in what a score measures
_NOT_EVALUATED = -1.0  # worse than any score


class Intact(NamedTuple):
  """The step of the newest intact checkpoint (None: there is none), and what newer ones suffer from, by step."""

  step: int | None
  damaged: dict[int, str]


class _Handler(ocp.PyTreeCheckpointHandler):
  """Orbax's handler of trees, which adds the provenance, and lists the checksums before the files are committed."""

  async def async_save(self, *args: Any, **kwargs: Any) -> Any:
    self._provenance = kwargs["args"].provenance
    return await super().async_save(*args, **kwargs)

  def finalize(self, directory: epath.Path) -> None:
    super().finalize(directory)
    if self._provenance is not None:
      provenance_lib.write(directory, self._provenance)
    checksums.write(directory)


@ocp_args.register_with_handler(_Handler, for_save=True)
@dataclasses.dataclass
class _Save(ocp_args.PyTreeSave):
  provenance: Provenance | None = None


@ocp_args.register_with_handler(_Handler, for_restore=True)
class _Restore(ocp_args.PyTreeRestore):
  """Never used: Orbax takes no handler without."""


def steps(workdir: epath.Path) -> list[int]:
  """Steps of the committed checkpoints, ascending; of directories whose name is a number and nothing else."""
  names = [path.name for path in ocp.utils.checkpoint_steps_paths(workdir / "checkpoints")]
  return sorted(int(name) for name in names if name.isdecimal() and name == f"{int(name)}")


def best_step(workdir: epath.Path) -> int | None:
  """Returns the step with the best score (the later of equals), None if none was evaluated.

  Scores are compared that measure what the newest one measures: a resumed run may choose by another metric.
  Orbax's manager would not open a directory in which one checkpoint's metrics are damaged, and opening it
  takes all processes.
  """
  placed = [step for step in steps(workdir) if not _misplaced(workdir, step)]
  found = [(score, step) for step in placed if (score := _score_of(workdir, step))]
  evaluated = [(score, step) for score, step in found if score.value != _NOT_EVALUATED]
  comparable = [(s.value, step) for s, step in evaluated if s.compares(evaluated[-1][0].measure)]
  return max(comparable)[1] if comparable else None


class _Score(NamedTuple):
  """What Orbax keeps beside a checkpoint: the score, the larger the better, and what it measures.

  Earlier versions kept val's top-1, and did not say of what; their `measure` is "". Later ones named the data set,
  too, whose records tell it wherever it is.
  """

  value: float
  measure: str

  def compares(self, measure: str) -> bool:
    """Returns whether scores of `measure` can be compared with this one."""
    if self.measure and measure:
      return self.measure == measure
    return all(m.startswith("val/top1 ") for m in (self.measure, measure) if m)

  @classmethod
  def of(cls, saved: Any) -> "_Score":
    if "top1" in saved:
      return cls(float(saved["top1"]), "")
    return cls(float(saved["score"]), _DATASET.sub("", str(saved["measure"])))


def _score_of(workdir: epath.Path, step: int) -> _Score | None:
  """Returns a checkpoint's score, None if it is unreadable."""
  try:
    return _Score.of(json.loads(files.read(workdir / "checkpoints" / str(step) / _METRICS)))
  except (OSError, ValueError, KeyError, TypeError):
    return None


def _misplaced(workdir: epath.Path, step: int) -> str | None:
  """Returns of what else a checkpoint is than of this step and run, by what it carries. None if it is in its place.

  Where the workdir names no run, any will do.
  """
  try:
    origin = provenance_lib.read(workdir, step)
  except InputError as e:
    return str(e)
  run = workdirs.find_run_id(workdir)
  if origin and run and origin.run != run:
    return f"it is of the run {origin.run}, and this workdir of the run {run}"
  return None


def _fault(workdir: epath.Path, step: int) -> str | None:
  """Returns what is wrong with a checkpoint, None if it is what its place says.

  Raises:
    InputError: the storage does not give it.
  """
  path = workdirs.checkpoint_path(workdir, step)
  try:
    if found := checksums.find_damage(path) or _misplaced(workdir, step):
      return found
    # Checkpoints of earlier versions carry their step in the state alone, which all processes would have to read.
    if jax.process_count() == 1 and provenance_lib.read(workdir, step) is None:
      stored = restore.stored_step(path)
      return None if stored in (step, None) else f"it is of step {stored}"
  except OSError as e:
    raise InputError(
      f"checkpoint {path} cannot be read: {e}. Nothing was moved or changed. Try again; to go on from the "
      f"checkpoint before, move {path.parent} away."
    ) from e
  return None


def choose(workdir: epath.Path, which: str | int) -> tuple[int, list[str]]:
  """Returns the step of the wanted checkpoint, whose files are intact, and what newer ones suffer from.

  Args:
    which: "newest" (intact), "best" by its score, or a step.

  Raises:
    InputError: there is no such checkpoint, or it is damaged.
  """
  damaged: dict[int, str] = {}
  if isinstance(which, str) and which.isdecimal():
    which = int(which)
  if isinstance(which, str) and which not in ("newest", "best"):
    raise InputError(f"checkpoint {which!r} is neither newest, best nor a step.")
  if which == "newest":
    chosen, damaged = find_intact(workdir)
  else:
    chosen = best_step(workdir) if isinstance(which, str) else which
  if chosen is None or chosen not in steps(workdir):
    raise InputError(f"{workdir} has no checkpoint {which!r}; there are steps {steps(workdir)}.")
  if which != "newest" and (fault := _fault(workdir, chosen)):
    raise InputError(f"checkpoint {workdir / 'checkpoints' / str(chosen)} is damaged: {fault}.")
  return chosen, list(damaged.values())


def find_intact(workdir: epath.Path) -> Intact:
  """Finds the newest checkpoint without damage; process 0 looks, and tells the others the step.

  Raises:
    InputError: there are checkpoints and all are damaged.
  """
  intact = _look(workdir) if jax.process_index() == 0 else Intact(None, {})
  lost = bool(intact.damaged) and intact.step is None
  told = np.array([-1 if intact.step is None else intact.step, lost], np.int32)
  step, lost = (int(x) for x in distributed.of_first(told))
  intact = Intact(None if step < 0 else step, intact.damaged)
  if lost:
    raise InputError(
      f"no intact checkpoint is left in {workdir}: {'; '.join(intact.damaged.values())}. To start over, "
      "choose another workdir."
    )
  return intact


def _look(workdir: epath.Path) -> Intact:
  newest, damaged = None, {}
  for step in reversed(steps(workdir)):
    # Older checkpoints are only asked for their place, and for what Orbax reads of all of them.
    found = (_fault if newest is None else _misplaced)(workdir, step) or _unreadable(workdir, step)
    if found is not None:
      damaged[step] = f"checkpoint of step {step} is damaged ({found})"
    elif newest is None:
      newest = step
  return Intact(newest, damaged)


def quarantine(workdir: epath.Path, intact: Intact) -> None:
  """Moves damaged checkpoints to `workdir/damaged_checkpoints`; process 0 alone knows of any.

  Where nothing is intact, `find_intact` has raised: a retry must not take the workdir for a fresh one.
  """
  aside = workdir / "damaged_checkpoints"
  for step in intact.damaged:
    aside.mkdir(parents=True, exist_ok=True)
    (workdir / "checkpoints" / str(step)).rename(aside / f"{step}-{int(time.time())}")


def _unreadable(workdir: epath.Path, step: int) -> str | None:
  """Returns which file Orbax's manager could not read. None if there is none."""
  for name in _READ_OF_ALL:
    try:
      files.read(workdir / "checkpoints" / str(step) / name)
    except FileNotFoundError:
      pass
    except (OSError, ValueError):
      return f"{name} is no file that can be read"
  return "its metrics are unreadable" if _score_of(workdir, step) is None else None


class _Manager(ocp.CheckpointManager):
  def reached_preemption(self, step: int) -> bool:
    """Leaves the question to the loop: Orbax would ask JAX at another count than its (parallel/stop_signal.py)."""
    del step
    return False


class Checkpointer:
  """Saves train states to `workdir/checkpoints/<step>` in the background.

  Keeps the newest `keep_newest`, and the best `keep_best` by their scores. Scores of another measure than
  this run's count as not evaluated.
  """

  def __init__(
    self,
    workdir: epath.Path,
    *,
    keep_newest: int,
    keep_best: int,
    measure: str = "",
    provenance: Provenance | None = None,
  ):
    self._workdir, self._provenance, self._measure = workdir, provenance, measure
    policies = [
      preservation_policy.LatestN(keep_newest),
      preservation_policy.BestN(get_metric_fn=self._rank, n=keep_best),
    ]
    self._manager = _Manager(
      workdir / "checkpoints",
      item_handlers=_Handler(),
      options=ocp.CheckpointManagerOptions(
        best_fn=self._rank,
        preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
        cleanup_tmp_directories=True,
        todelete_subdir=_DELETED,
      ),
    )
    self._delete()

  def save(
    self,
    step: int,
    state: Any,
    score: float | None,
    records: Sequence[Mapping[str, Any]] | None = None,
  ) -> None:
    """Starts to save the state after `step`; returns as soon as it may be donated. Raises SaveError.

    Args:
      step, state: what is saved.
      score: of the evaluation at this step, None if there was none.
      records: of metrics.jsonl up to this step, if they are known.
    """
    metrics = {"score": _NOT_EVALUATED if score is None else score, "measure": self._measure}
    with self._reporting():
      self._delete()
      if step not in self._manager.all_steps():
        origin = self._provenance and dataclasses.replace(
          self._provenance,
          step=step,
          records=None if records is None else len(records),
          records_sha256=None if records is None else metrics_lib.digest(records),
        )
        args: Any = _Save(state, provenance=origin)
        self._manager.save(step, args=args, metrics=metrics, force=True)

  def rate(self, step: int, score: float) -> None:
    """Gives a checkpoint the score that it lacks because its evaluation was interrupted."""
    if step not in self._manager.all_steps():
      return
    found = _score_of(self._workdir, step)
    if jax.process_index() == 0 and found and found.value == _NOT_EVALUATED:
      path = self._workdir / "checkpoints" / str(step) / METRIC_ITEM_NAME / METRIC_ITEM_NAME
      with self._reporting(), files.replacing(path) as partial:
        partial.write_text(json.dumps({"score": score, "measure": self._measure}))
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("the score is there")
    self._manager.reload()

  def _rank(self, saved: Any) -> float:
    score = _Score.of(saved)
    return score.value if score.compares(self._measure) else _NOT_EVALUATED

  def check(self) -> None:
    """Raises SaveError if a save in the background failed (on a full disk, say)."""
    with self._reporting():
      self._manager.check_for_errors()
      # Orbax keeps some errors of a finished save for the next wait, which is then instant.
      if jax.process_count() == 1 and not self._manager.is_saving_in_progress():
        self._manager.wait_until_finished()

  def wait(self) -> None:
    """Returns once all checkpoints are committed; raises SaveError if one could not be."""
    with self._reporting():
      self._manager.wait_until_finished()
      self._manager.check_for_errors()

  def close(self) -> None:
    with self._reporting():
      self._manager.close()
      self._delete()

  def _delete(self) -> None:
    """Deletes what Orbax has moved aside for that, unless it is still at it."""
    if jax.process_index() == 0 and not self._manager.is_saving_in_progress():
      (self._workdir / "checkpoints" / _DELETED).rmtree(missing_ok=True)

  @contextlib.contextmanager
  def _reporting(self) -> Iterator[None]:
    """Turns what Orbax and TensorStore raise for a failed write into a SaveError."""
    try:
      yield
    except (OSError, ValueError) as e:
      if isinstance(e, ValueError) and not _STATUS.match(str(e)):
        raise
      raise SaveError(save_failure(self._workdir, e)) from e


def save_failure(workdir: epath.Path, error: Exception) -> str:
  """Returns what to tell the user of a failed write."""
  reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
  return f"could not write to {workdir}: {reason}. The run stops; {last_good(workdir)}. Fix this, then run the same command to resume."


def last_good(workdir: epath.Path) -> str:
  """Returns the clause that names the newest checkpoint."""
  saved = steps(workdir)
  return (
    f"the last good checkpoint is that of step {saved[-1]}" if saved else "no checkpoint was saved"
  )
