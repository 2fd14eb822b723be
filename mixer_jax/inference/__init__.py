"""Trained models put to use: loaded, applied to image files, exported."""

from mixer_jax.inference.trained import (
  Trained,
  class_names,
  config_of_weights,
  load,
  load_model,
  preprocess,
)

__all__ = ["Trained", "class_names", "config_of_weights", "load", "load_model", "preprocess"]
