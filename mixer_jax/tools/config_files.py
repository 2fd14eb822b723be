"""Configuration files by name, as --config takes them."""

import functools
import importlib.util
import pathlib
from typing import Any

from mixer_jax.errors import InputError


@functools.cache
def module(path: str) -> Any:
  """Returns the module of a configuration file; raises InputError if there is no such Python file."""
  spec = importlib.util.spec_from_file_location(f"config_{pathlib.Path(path).stem}", path)
  if spec is None or spec.loader is None or not pathlib.Path(path).is_file():
    raise InputError(
      f"{path} is not a Python file. Run the command in the project's root, which contains configs/."
    )
  found = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(found)
  return found


def load(file: str) -> Any:
  """Returns the configuration of FILE or FILE:ARGUMENT.

  Raises:
    InputError: no such file or argument.
  """
  path, _, argument = file.partition(":")
  return module(path).get_config(argument) if argument else module(path).get_config()
