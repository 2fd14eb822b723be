"""Dense features of image files: the map that every stage of a trained model makes of them."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mixer_jax import files
from mixer_jax.training import experiment


def make_map_step(setup: experiment.ModelSetup) -> Any:
  """Returns the jitted (variables, batch) -> {"stage_<i>": float32 (b, [t,] h, w, c)}."""

  def output(batch: Any, outputs: Any) -> Any:
    del batch
    return {k: v.astype(jnp.float32) for k, v in outputs.items() if k.startswith("stage_")}

  return experiment.make_predict_step(setup, output)


def save(
  output: pathlib.Path, names: Sequence[str], maps: Sequence[Mapping[str, np.ndarray]]
) -> None:
  """Writes an .npz, all of it or nothing: `files` (n,), and each stage's maps (n, h, w, c).

  Args:
    output: the file.
    names: of the n images.
    maps: of each image, by stage.

  Raises:
    SaveError: the file could not be written.
  """
  arrays: dict[str, Any] = {stage: np.stack([one[stage] for one in maps]) for stage in maps[0]}
  with files.replacing(output) as partial, partial.open("wb") as f:
    np.savez(f, **arrays, files=np.array(names))
