"""What every command prints with --help, and about a flag that it does not have."""

import pathlib
import re
import sys
from typing import Any

from absl import flags

from mixer_jax import configuration

_WIDTH = 110


def asked(argv: list[str]) -> bool:
  """True if the command line asks for help."""
  return not {"--help", "-help", "-h", "--helpshort", "-helpshort", "-?"}.isdisjoint(argv[1:])


def text(argv: list[str]) -> str:
  """Returns the command's description and its flags; with --config=… also the keys of that configuration."""
  lines = [(sys.modules["__main__"].__doc__ or "").strip(), "", "Flags:"]
  lines += [_describe(flags.FLAGS[name]) for name in _own()]
  if "config" not in flags.FLAGS:
    return "\n".join(lines)
  given = re.search(r"(?:^|\n)--?config[=\n]([^\n]+)", "\n".join(argv))
  if not given:
    return "\n".join([*lines, "", "--config=NAME --help also lists the configuration's keys."])
  from mixer_jax.tools import config_files, configuration_help  # They import JAX.

  return "\n".join([*lines, configuration_help.text(config_files.load(given[1]))])


def as_called(text: str) -> str:
  """Returns a text with commands as `mixer-jax NAME`, if this one was called so: an installed package has no train.py."""
  if not any(pathlib.Path(word).name == "mixer-jax" for word in sys.orig_argv[:2]):
    return text
  python = r"python (?:-m mixer_jax\.tools\.(\w+)|(train|eval)\.py)"
  return re.sub(python, lambda m: f"mixer-jax {(m[1] or m[2]).replace('_', '-')}", text)


def unknown_flag(name: str, argument: str) -> str:
  """Returns a sentence about a flag that there is not, given as "--name=value", with the key or the flag that was meant."""
  from mixer_jax.tools import config_files

  if name.startswith("config.") and "config" in flags.FLAGS:
    return f"--{name} changes a configuration, and none is given: add --config=NAME."
  begin = f"there is no flag --{name}."
  config = flags.FLAGS["config"].value if "config" in flags.FLAGS else {}
  if config is None:
    config = config_files.load("common")
  keys = configuration.flatten(config) if hasattr(config, "items") else {}
  if found := [key for key in keys if f".{key}".endswith(f".{name}")]:
    value = argument.partition("=")[2] or "…"
    return f"{begin} Set " + " or ".join(f"--config.{key}={value}" for key in found) + "."
  return begin + configuration.nearest(f"--{name}", [f"--{own}" for own in _own()])


def _own() -> list[str]:
  """Returns the names of the flags of this project, without absl's and those of other libraries."""
  return sorted(
    flag.name
    for module, defined in flags.FLAGS.flags_by_module_dict().items()
    for flag in defined
    if (module == sys.argv[0] or module.startswith("mixer_jax.")) and "." not in flag.name
  )


def _describe(flag: Any) -> str:
  default = (
    "" if flag.default in (None, []) else f" (default: {flag.default_as_str.strip(chr(39))})"
  )
  line = f"--{'[no]' * bool(flag.boolean)}{flag.name}  {flag.help}{default}"
  return flags.text_wrap(line, _WIDTH, indent=" " * 6, firstline_indent="  ")
