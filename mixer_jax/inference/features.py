"""Dense features of image files: the map that every stage of a trained model makes of them."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mixer_jax import files
from mixer_jax.training import experiment


def make_features_step(setup: experiment.ModelSetup, prefix: str) -> Any:
  """Returns the jitted (variables, batch) -> {name: float32 (b, …)} of what the model computes inside.

  The names begin with `prefix`: "stage_" for the maps (b, [t,] h, w, c), "" for all.
  """
  return experiment.make_predict_step(
    setup,
    lambda _, outputs: {
      k: v.astype(jnp.float32) for k, v in outputs.items() if k.startswith(prefix)
    },
  )


def save(
  output: pathlib.Path, names: Sequence[str], maps: Sequence[Mapping[str, np.ndarray]]
) -> None:
  """Writes an .npz, all of it or nothing: `files`, the names (n,), and each stage's maps (n, h, w, c); raises SaveError."""
  arrays: dict[str, Any] = {stage: np.stack([one[stage] for one in maps]) for stage in maps[0]}
  with files.replacing(output) as partial, partial.open("wb") as f:
    np.savez(f, **arrays, files=np.array(names))
