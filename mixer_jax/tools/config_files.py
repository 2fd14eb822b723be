"""Configuration files by name, as --config takes them."""

import functools
import importlib.util
import pathlib
import re
import traceback
from typing import Any

from absl import flags
from ml_collections import config_flags

from mixer_jax import configuration, schema
from mixer_jax.errors import InputError

SHIPPED = pathlib.Path(__file__).parents[1] / "configs"


def names() -> list[str]:
  """Returns the names of the configurations that come with the project."""
  return sorted(p.stem for p in SHIPPED.glob("*.py") if p.stem not in ("__init__", "common"))


def path_of(name: str) -> pathlib.Path:
  """Returns the file of --config=NAME, wherever the command runs.

  Args:
    name: a file of the user's; or of the project's, as "imagenet", "imagenet.py" or "configs/imagenet.py".

  Raises:
    InputError: there is neither.
  """
  own = pathlib.Path(name).expanduser()
  if own.is_file():
    return own
  shipped = SHIPPED / f"{own.stem}.py"
  if name in (own.stem, f"{own.stem}.py", f"configs/{own.stem}.py") and shipped.is_file():
    return shipped
  hint = configuration.nearest(own.stem, names())
  raise InputError(
    f"there is no configuration file {name}, nor a configuration of that name.{hint}"
  )


def module(name: str) -> Any:
  """Returns the module of a configuration file; raises InputError if there is none, or if it fails."""
  return _module(path_of(name).absolute())


@functools.cache
def _module(path: pathlib.Path) -> Any:
  spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
  if spec is None or spec.loader is None:
    raise InputError(f"{path} is not a Python file.")
  found = importlib.util.module_from_spec(spec)
  _call(path, spec.loader.exec_module, found)
  return found


def load(file: str) -> Any:
  """Returns the configuration of FILE or FILE:ARGUMENT.

  Raises:
    InputError: no such file or argument, or an error in the file.
  """
  name, _, argument = file.partition(":")
  get_config = getattr(module(name), "get_config", None)
  if get_config is None:
    raise InputError(f"{path_of(name)} has no function get_config.")
  return _call(path_of(name).absolute(), get_config, *([argument] if argument else []))


def _call(path: pathlib.Path, function: Any, *arguments: Any) -> Any:
  """Returns what a configuration file's code returns; what it raises names the line of the file."""
  try:
    return function(*arguments)
  except InputError:
    raise
  except Exception as e:
    raise InputError(f"{_line_of(path, e)}: {_meaning(e)}") from e


def _line_of(path: pathlib.Path, error: Exception) -> str:
  """Returns the file, and its line that the error comes from."""
  if isinstance(error, SyntaxError):
    return f"{error.filename}, line {error.lineno}"
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if frame.filename == str(path)]
  return f"{path}, line {lines[-1]}" if lines else str(path)


def _meaning(error: Exception) -> str:
  text = str(error.args[0]) if error.args else ""
  if isinstance(error, KeyError | AttributeError) and re.match('["\']*Key "', text):
    return unknown_key(text)
  return f"{type(error).__name__}: {text or error}"


def unknown_key(text: str) -> str:
  """Returns ml_collections' message about an unknown key as a sentence, with the key that replaced it."""
  m = re.match(r'\W*(?:Key ")?(\w+)\W*(?:$|does not exist|n?Did you mean "(\w+)")', text)
  if not m:
    return text
  meant = m[2] or next(iter(re.findall(r'Did you mean "(\w+)"', text)), None)
  hints = [
    f" Set config.{new}."
    for old, (new, _) in schema.RENAMED.items()
    if f".{old}".endswith(f".{m[1]}")
  ]
  if meant and not hints:
    hints = [f" Did you mean {meant!r}?"]
  return f"the configuration has no key {m[1]!r}.{''.join(hints)}"


class _Parser(flags.ArgumentParser):
  """Reads --config where ml_collections would open a file of the current directory."""

  def parse(self, argument: str) -> Any:
    return load(argument)


def define(default: str = "") -> Any:
  """Defines --config and --config.KEY=VALUE, and returns the flag; `default` says in --help what is its default."""
  meaning = f"Configuration, NAME[:ARGUMENT] or FILE[:ARGUMENT]; python -m mixer_jax.tools.configs lists the names.{default}"
  flag = config_flags.DEFINE_config_file(
    "config", None, meaning, lock_config=False, accept_new_attributes=True
  )
  flags.FLAGS["config"].parser = _Parser()
  return flag
