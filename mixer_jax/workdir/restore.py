"""Reading of checkpoints: the whole train state, or the variables to use and nothing else."""

import shlex
from typing import Any, TypeVar, cast

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from etils import epath

from mixer_jax import configuration
from mixer_jax.errors import InputError
from mixer_jax.workdir import directory as workdirs

Tree = TypeVar("Tree")


def restore_state(workdir: epath.Path, step: int, abstract: Tree, shardings: Any) -> Tree:
  """Returns the tree of a checkpoint, laid out by `shardings` whatever mesh wrote it.

  Raises:
    InputError: it has the former layout or other shapes, so training cannot resume from it.
  """
  path = workdirs.checkpoint_path(workdir, step)
  saved = _saved(path)
  if _is_former(saved):
    raise InputError(
      f"checkpoint {path} is of an earlier version, which training cannot resume; evaluation, prediction, "
      "conversion and export take it. To train on, choose another workdir and start from its weights: "
      f"{shlex.quote(f'--config.init.weights={workdir}')}."
    )
  if changed := configuration.differences(_shapes(saved), _shapes(abstract), ()):
    listed = "\n  ".join(changed[:5])
    raise InputError(
      f"checkpoint {path} is of a state with other shapes, {len(changed)} in all:\n  {listed}\nStart a new "
      f"workdir from its weights: {shlex.quote(f'--config.init.weights={workdir}')}."
    )
  target = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
  )
  restore_args = ocp.checkpoint_utils.construct_restore_args(target)
  args: Any = ocp.args.PyTreeRestore(target, restore_args=restore_args)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    return cast(Tree, checkpointer.restore(path, args=args))


def _shapes(state: Any) -> dict[str, tuple[int, ...]]:
  return {k: x.shape for k, x in ocp.tree.to_flat_dict(state, sep="/").items()}


def _saved(path: epath.Path) -> Any:
  """Returns the tree of a checkpoint with metadata (shape, dtype) for leaves."""
  return ocp.PyTreeCheckpointHandler().metadata(path).tree


def _is_former(saved: Any) -> bool:
  """True for states of before batch statistics and the average were fields of their own."""
  return "model_state" in saved


def load_variables(
  workdir: epath.Path, step: int, abstract: Any = None, shardings: Any = None
) -> dict[str, Any]:
  """Returns a checkpoint's variables and nothing else, {"params", "batch_stats"?}: their average if it has one.

  Args:
    abstract: their shapes and types. Default: those that were trained.
    shardings: their layout on devices. If None, they are NumPy arrays.
  """
  path = workdirs.checkpoint_path(workdir, step)
  saved = _saved(path)
  leaves, structure = jax.tree.flatten(saved)
  places = jax.tree.leaves(_used(structure.unflatten(range(len(leaves)))))
  wanted = jax.tree.leaves(_trained(saved) if abstract is None else abstract)
  layout = [None] * len(wanted) if shardings is None else jax.tree.leaves(shardings)
  args = dict(zip(places, map(_restore_args, wanted, layout), strict=True))
  return _used(_restored(path, saved, args))


def stored_step(path: epath.Path) -> int | None:
  """Returns the step in the state of a checkpoint's files. None if the state has none."""
  saved = _saved(path)
  if not isinstance(saved, dict) or "step" not in saved:
    return None
  leaves, structure = jax.tree.flatten(saved)
  place = structure.unflatten(range(len(leaves)))["step"]
  return int(_restored(path, saved, {place: _restore_args(saved["step"], None)})["step"])


def _restored(path: epath.Path, saved: Any, args: dict[int, ocp.RestoreArgs]) -> Any:
  """Returns the tree of a checkpoint with the leaves at these places; the others are not read."""
  leaves, structure = jax.tree.flatten(saved)
  targets = [leaf if i in args else ocp.PLACEHOLDER for i, leaf in enumerate(leaves)]
  all_args = [args.get(i, ocp.RestoreArgs()) for i in range(len(leaves))]
  request: Any = ocp.args.PyTreeRestore(
    structure.unflatten(targets), restore_args=structure.unflatten(all_args)
  )
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    return checkpointer.restore(path, args=request)


def _restore_args(wanted: Any, sharding: Any) -> ocp.RestoreArgs:
  if sharding is None:
    return ocp.RestoreArgs(restore_type=np.ndarray, dtype=wanted.dtype)
  return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=wanted.shape, dtype=wanted.dtype)


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
