"""MLP vision models in JAX, starting from MLP-Mixer (arXiv:2105.01601).

- `build("mixer", variant="B/16", num_classes=10)` returns a Flax module.
- `load("imagenet1k/Mixer-B_16")` returns a module and its variables, from a name, an address or a file.
- `features(model, variables, image)` returns what the model computes inside, by name.
"""

import os
import sys

# `python -m mixer_jax…` puts the working directory first, and data of others may lie there, with a module of any name.
_PROJECT = os.path.realpath(os.path.dirname(os.path.dirname(__file__)))
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and sys.path[0] != _PROJECT:
  del sys.path[0]

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from mixer_jax.models import build, features
  from mixer_jax.weights import load_model as load

__version__ = "0.1.0"
__all__ = ["__version__", "build", "features", "load"]
_PLACES = {"build": "models.build", "features": "models.features", "load": "weights.load_model"}


def __getattr__(name: str) -> Any:
  # On first use: the loader's processes import this package without JAX.
  if name not in _PLACES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module, _, function = _PLACES[name].partition(".")
  globals()[name] = getattr(importlib.import_module(f"{__name__}.{module}"), function)
  return globals()[name]
