"""Checkpoints of the train state: Orbax, asynchronous, each with the SHA-256 of its files.

Orbax restores a flipped bit without an error, so every checkpoint carries a list of checksums, written
before the atomic commit. A checkpoint that does not match its list is moved to `damaged_checkpoints/`
and the one before it is used. The list is in the format of `sha256sum --check`.
"""

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar, cast

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import args as ocp_args
from orbax.checkpoint.checkpoint_manager import METRIC_ITEM_NAME
from orbax.checkpoint.checkpoint_managers import preservation_policy

from mixer_jax.errors import InputError, SaveError

CHECKSUMS = "SHA256SUMS"
ITEM = "default"  # Orbax's name for a checkpoint's only item
_COMMITTED = "commit_success.txt"  # Orbax writes it after the checksums; its text says nothing
_METRICS = ocp.JsonCheckpointHandler(METRIC_ITEM_NAME)
# TensorStore's errors are ValueErrors that begin with a status: "RESOURCE_EXHAUSTED: …"
_STATUS = re.compile(r"[A-Z]+(_[A-Z]+)*: ")
_CHUNK_BYTES = 1 << 22
_NOT_EVALUATED = -1.0  # worse than any top-1


Tree = TypeVar("Tree")


class Intact(NamedTuple):
  """Result of looking for a checkpoint: the step (None: there is none) and what was found damaged."""

  step: int | None
  damaged: list[str]


def _sha256(path: epath.Path) -> str:
  digest = hashlib.sha256()
  with path.open("rb") as f:
    while chunk := f.read(_CHUNK_BYTES):
      digest.update(chunk)
  return digest.hexdigest()


def _files(directory: epath.Path, prefix: str = "") -> dict[str, epath.Path]:
  """Returns {relative name: path} of all files below the directory that the checksums cover."""
  found = {}
  for path in sorted(directory.iterdir()):
    if path.is_dir():
      found.update(_files(path, f"{prefix}{path.name}/"))
    elif path.name not in (CHECKSUMS, _COMMITTED):
      found[prefix + path.name] = path
  return found


def write_checksums(directory: epath.Path) -> None:
  lines = [f"{_sha256(path)}  {name}\n" for name, path in _files(directory).items()]
  (directory / CHECKSUMS).write_text("".join(lines))


def find_damage(directory: epath.Path) -> str | None:
  """Returns what is wrong with the files of a saved item, None if each matches its checksum."""
  if not (directory / CHECKSUMS).exists():
    return f"{CHECKSUMS} is missing: it was not written completely"
  try:
    lines = (directory / CHECKSUMS).read_text().splitlines()
    wanted = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
  except ValueError:
    return f"{CHECKSUMS} is unreadable"
  files = _files(directory)
  if missing := sorted(set(wanted) - set(files)):
    return f"missing file {missing[0]}"
  for name, path in files.items():
    if name not in wanted:
      return f"unexpected file {name}"
    if _sha256(path) != wanted[name]:
      return f"{name} does not match its SHA-256"
  return None


class ChecksummedHandler(ocp.PyTreeCheckpointHandler):
  """Orbax's handler of trees, which lists the checksums of its files before they are committed."""

  def finalize(self, directory: epath.Path) -> None:
    super().finalize(directory)
    write_checksums(directory)


@ocp_args.register_with_handler(ChecksummedHandler, for_save=True)
class ChecksummedSave(ocp_args.PyTreeSave):
  pass


@ocp_args.register_with_handler(ChecksummedHandler, for_restore=True)
class ChecksummedRestore(ocp_args.PyTreeRestore):
  pass


def steps(workdir: epath.Path) -> list[int]:
  """Steps of the committed checkpoints, ascending."""
  return sorted(ocp.utils.checkpoint_steps(workdir / "checkpoints"))


def best_step(workdir: epath.Path) -> int | None:
  """Step with the best top-1 of those that were evaluated (the later of equals), None without one.

  Orbax's manager would not open a directory in which one checkpoint's metrics are damaged, and opening it
  takes all processes.
  """
  top1s = [(_top1_of(workdir, step), step) for step in steps(workdir)]
  evaluated = [(top1, step) for top1, step in top1s if top1 not in (None, _NOT_EVALUATED)]
  return max(evaluated)[1] if evaluated else None


def _top1_of(workdir: epath.Path, step: int) -> float | None:
  """Returns the top-1 that Orbax keeps beside a checkpoint, None if it is unreadable."""
  try:
    return _top1(_METRICS.restore(workdir / "checkpoints" / str(step) / METRIC_ITEM_NAME))
  except (OSError, ValueError, KeyError, TypeError):
    return None


def verify(workdir: epath.Path, step: int) -> None:
  """Raises InputError if the files of this step's checkpoint are damaged."""
  path = workdir / "checkpoints" / str(step)
  if damage := find_damage(path / ITEM):
    raise InputError(f"checkpoint {path} is damaged: {damage}.")


def restore(workdir: epath.Path, step: int, abstract: Tree, shardings: Any) -> Tree:
  """Returns the tree of a checkpoint, laid out by `shardings` whatever mesh wrote it.

  Raises:
    InputError: it is of the former layout, which training cannot go on with.
  """
  path = workdir / "checkpoints" / str(step) / ITEM
  if _is_former(_saved(path)):
    raise InputError(
      f"checkpoint {path} is of an earlier version, which training cannot resume; evaluation, prediction, "
      "conversion and export take it. To train on, choose another workdir and start from its weights: "
      f"--config.init.weights={workdir}."
    )
  target = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
  )
  restore_args = ocp.checkpoint_utils.construct_restore_args(target)
  args: Any = ChecksummedRestore(target, restore_args=restore_args)
  with ocp.Checkpointer(ChecksummedHandler()) as checkpointer:
    return cast(Tree, checkpointer.restore(path, args=args))


def _saved(path: epath.Path) -> Any:
  """Returns the tree of a checkpoint with metadata (shape, dtype) for leaves."""
  return ChecksummedHandler().metadata(path).tree


def _is_former(saved: Any) -> bool:
  """True for states of before batch statistics and the average were fields of their own."""
  return "model_state" in saved


def load_variables(workdir: epath.Path, step: int) -> dict[str, Any]:
  """Returns a checkpoint's variables as NumPy arrays, {"params", "batch_stats"?}: their average if it has one.

  Nothing else is read, neither the optimizer's moments nor a configuration.
  """

  def as_numpy(saved: Any) -> Any:
    return jax.tree.map(lambda x: ocp.RestoreArgs(restore_type=np.ndarray, dtype=x.dtype), saved)

  return _restore_variables(workdir, step, as_numpy)


def restore_variables(
  workdir: epath.Path, step: int, abstract: dict[str, Any], shardings: dict[str, Any]
) -> dict[str, Any]:
  """Returns what `load_variables` does, in the shapes and types of `abstract`, laid out by `shardings`."""
  on_devices = jax.tree.map(
    lambda x, s: ocp.ArrayRestoreArgs(sharding=s, global_shape=x.shape, dtype=x.dtype),
    abstract,
    shardings,
  )
  return _restore_variables(workdir, step, lambda _: on_devices)


def _restore_variables(workdir: epath.Path, step: int, args_of: Callable[[Any], Any]) -> Any:
  """Restores the variables to use and nothing else.

  Args:
    workdir, step: the checkpoint.
    args_of: metadata of the variables as they were trained -> a tree like it of ocp.RestoreArgs.
  """
  path = workdir / "checkpoints" / str(step) / ITEM
  saved = _saved(path)
  leaves, structure = jax.tree.flatten(saved)
  places = jax.tree.leaves(_used(structure.unflatten(range(len(leaves)))))
  args = dict(zip(places, jax.tree.leaves(args_of(_trained(saved))), strict=True))
  targets = [leaf if i in args else ocp.PLACEHOLDER for i, leaf in enumerate(leaves)]
  all_args = [args.get(i, ocp.RestoreArgs()) for i in range(len(leaves))]
  request: Any = ChecksummedRestore(
    structure.unflatten(targets), restore_args=structure.unflatten(all_args)
  )
  with ocp.Checkpointer(ChecksummedHandler()) as checkpointer:
    return _used(checkpointer.restore(path, args=request))


def _trained(saved: Any) -> dict[str, Any]:
  """Returns where a saved train state has the variables as they were trained."""
  if _is_former(saved):
    return {"params": saved["params"], **saved["model_state"]}
  return {k: saved[k] for k in ("params", "batch_stats") if saved[k]}


def _used(saved: Any) -> dict[str, Any]:
  """Returns where it has those to use: the average, if there is one."""
  if not _is_former(saved):
    return saved["ema"] or _trained(saved)
  average = optax.tree.get(saved["opt_state"], "polyak_average")
  return _trained(saved) | ({} if average is None else {"params": average})


def choose(workdir: epath.Path, which: str | int) -> tuple[int, list[str]]:
  """Returns the step of the wanted checkpoint, whose files are intact, and what newer ones suffer from.

  Args:
    workdir: directory of the run.
    which: "newest" (intact), "best" by top-1, or a step.

  Raises:
    InputError: there is no such checkpoint, or it is damaged.
  """
  damaged = []
  if which == "newest":
    chosen, damaged = find_intact(workdir, quarantine=False)
  else:
    chosen = best_step(workdir) if isinstance(which, str) else which
  if chosen is None or chosen not in steps(workdir):
    raise InputError(f"{workdir} has no checkpoint {which!r}; there are steps {steps(workdir)}.")
  if which != "newest":
    verify(workdir, chosen)
  return chosen, damaged


def find_intact(workdir: epath.Path, *, quarantine: bool) -> Intact:
  """Finds the newest checkpoint without damage; process 0 looks, and tells the others.

  Args:
    workdir: directory of the run.
    quarantine: move damaged checkpoints to `workdir/damaged_checkpoints`.

  Raises:
    InputError: there are checkpoints and all are damaged.
  """
  intact = _look(workdir, quarantine) if jax.process_index() == 0 else Intact(None, [])
  lost = bool(intact.damaged) and intact.step is None
  if jax.process_count() > 1:
    told = np.array([-1 if intact.step is None else intact.step, lost], np.int32)
    step, lost = (int(x) for x in multihost_utils.broadcast_one_to_all(told))
    intact = Intact(None if step < 0 else step, intact.damaged)
  if lost:
    raise InputError(
      f"no intact checkpoint is left in {workdir}: {'; '.join(intact.damaged)}. To start over, choose "
      "another workdir."
    )
  return intact


def _look(workdir: epath.Path, quarantine: bool) -> Intact:
  newest, damage = None, {}
  for step in reversed(steps(workdir)):
    path = workdir / "checkpoints" / str(step)
    # Older checkpoints are only asked for their metrics, which Orbax reads of all of them.
    found = find_damage(path / ITEM) if newest is None else None
    if _top1_of(workdir, step) is None:
      found = "its metrics are unreadable"
    if found is not None:
      damage[step] = f"checkpoint of step {step} is damaged ({found})"
    elif newest is None:
      newest = step
  # Where nothing is intact, nothing is moved: a retry must not take the workdir for a fresh one.
  if quarantine and newest is not None:
    aside = workdir / "damaged_checkpoints"
    for step in damage:
      aside.mkdir(parents=True, exist_ok=True)
      (workdir / "checkpoints" / str(step)).rename(aside / f"{step}-{int(time.time())}")
  return Intact(newest, list(damage.values()))


class Checkpointer:
  """Saves train states to `workdir/checkpoints/<step>` in the background.

  Keeps the newest `keep_newest` and the best `keep_best` by top-1 of the evaluation at that step.
  """

  def __init__(self, workdir: epath.Path, *, keep_newest: int, keep_best: int):
    self._workdir = workdir
    policies = [
      preservation_policy.LatestN(keep_newest),
      preservation_policy.BestN(get_metric_fn=_top1, n=keep_best),
    ]
    self._manager = ocp.CheckpointManager(
      workdir / "checkpoints",
      item_handlers=ChecksummedHandler(),
      options=ocp.CheckpointManagerOptions(
        best_fn=_top1,
        preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
        cleanup_tmp_directories=True,
      ),
    )

  def save(self, step: int, state: Any, top1: float | None) -> None:
    """Starts to save; returns as soon as the state may be donated. Raises SaveError.

    Args:
      step: finished steps.
      state: the state.
      top1: of the evaluation at this step, None if there was none.
    """
    metrics = {"top1": _NOT_EVALUATED if top1 is None else top1}
    with self._reporting():
      if step not in self._manager.all_steps():
        self._manager.save(step, args=ChecksummedSave(state), metrics=metrics, force=True)

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
  return f"could not write to {workdir}: {reason}. The run stops; {last_good(workdir)}. Mend that and give the same command to resume."


def last_good(workdir: epath.Path) -> str:
  """Returns the clause that names the newest checkpoint."""
  saved = steps(workdir)
  return (
    f"the last good checkpoint is that of step {saved[-1]}" if saved else "no checkpoint was saved"
  )


def _top1(metrics: Any) -> float:
  return float(metrics["top1"])
