"""The console command: `mixer-jax NAME …` is `python -m mixer_jax.tools.NAME …`."""

import ast
import pathlib
import runpy
import sys

import mixer_jax
from mixer_jax import configuration

COMMANDS = (
  "train", "eval", "predict", "prepare", "plan", "convert", "export", "fewshot", "transfer", "paper", "paper-mini",
  "benchmark", "features", "configs", "push",
)  # fmt: skip


def main() -> None:
  name = sys.argv[1] if sys.argv[1:] else "--help"
  if name == "--version":
    print(f"mixer-jax {mixer_jax.__version__}")
    return
  if name in ("--help", "-help", "-h"):
    print("\n".join(["mixer-jax COMMAND …, one of", *map(_line, COMMANDS)]))
    print("\nmixer-jax COMMAND --help describes one.")
    return
  if name not in COMMANDS:
    hint = configuration.nearest(name, COMMANDS)
    print(f"error: there is no command {name!r}.{hint}", file=sys.stderr)
    sys.exit(2)
  del sys.argv[1]
  runpy.run_module(f"mixer_jax.tools.{_module(name)}", run_name="__main__", alter_sys=True)


def _line(name: str) -> str:
  """Returns a command's name and the first line of its description."""
  source = pathlib.Path(__file__).with_name(f"{_module(name)}.py").read_text()
  return f"  {name:10}  {(ast.get_docstring(ast.parse(source)) or '').partition(chr(10))[0]}"


def _module(name: str) -> str:
  return name.replace("-", "_")
