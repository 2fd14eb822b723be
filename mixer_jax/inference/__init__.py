"""Trained models put to use: loaded, applied to image files, exported."""

from mixer_jax.inference.trained import (
  Trained,
  class_names,
  directory_of,
  load,
  make_features_step,
  make_predict_step,
)

__all__ = [
  "Trained",
  "class_names",
  "directory_of",
  "load",
  "make_features_step",
  "make_predict_step",
]
