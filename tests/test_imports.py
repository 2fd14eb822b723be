"""Imports point down; the core never imports what is heavy or optional; keys are read and never guessed."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LAYERS = [
  {"errors"},
  {"files", "printing", "rules", "tables"},
  {"losses", "page"},
  {"labels", "configuration"},
  {"models"},
  {"schema"},
  {"data"},
  {"weights"},
  {"parallel"},
  {"workdir"},
  {"figures"},
  {"evaluators"},
  {"training"},
  {"inference"},
  {"configs"},
  {"tools"},
]  # lowest first: rooms of mixer_jax, by docs/code.md
TOOLS = [
  {"paper_numbers", "config_files", "host_memory", "supervisor"},
  {"preparation", "planning"},
  {"throughput"},
  {"sweep"},
  {"paper_tables"},
]  # below the commands, lowest first


def layer(layers, room):
  return next((i for i, rooms in enumerate(layers) if room in rooms), len(layers))


def points_down(module, other):
  """True if the first dotted name below mixer_jax is of a higher room than the second, or of the same."""
  (room, *inside), (other_room, *other_inside) = module.split("."), other.split(".")
  if room != other_room:
    return layer(LAYERS, other_room) < layer(LAYERS, room) < len(LAYERS)
  if room != "tools":
    return True
  a, b = inside[0], other_inside[0]
  return (
    a == b
    or layer(TOOLS, b) < layer(TOOLS, a)
    or min(layer(TOOLS, x) for x in (a, b)) == len(TOOLS)
  )


def imports(path):
  """Yields the dotted names that a file imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (a.name for a in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      yield from (f"{node.module}.{a.name}" for a in node.names)


FILES = [
  p
  for p in sorted((ROOT / "mixer_jax").rglob("*.py"))
  if p.parent != ROOT / "mixer_jax" or p.stem != "__init__"
]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
  module = ".".join(path.relative_to(ROOT / "mixer_jax").with_suffix("").parts)
  for name in imports(path):
    assert not name.startswith(("configs", "tests")), name
    assert name.split(".")[0] not in ("tensorflow", "torch", "timm", "flax.metrics"), name
    if name.startswith("mixer_jax."):
      assert points_down(module, name.removeprefix("mixer_jax.")), f"{module} imports {name}"


def loaded_by(statement):
  code = f"{statement}\nimport sys; print(*{{m.split('.')[0] for m in sys.modules}})"
  return set(
    subprocess.run(
      [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
  )


def test_model_and_step_need_only_jax_and_flax():
  """Flax imports Orbax."""
  loaded = loaded_by("import mixer_jax.training.step, mixer_jax.losses, mixer_jax.weights")
  heavy = {"grain", "tensorflow_datasets", "cv2", "simplejpeg", "sklearn", "tensorboardX"}
  assert not loaded & {*heavy, "safetensors"}


WITHOUT_LINUX = """
import importlib, os, pathlib, pkgutil, signal, select, sys
import absl.flags, grain, jax, ml_collections.config_flags, numba, orbax.checkpoint, tensorflow_datasets
sys.modules.update(fcntl=None, resource=None)
for where, names in {
  os: "sched_getaffinity memfd_create posix_fadvise pipe2 eventfd copy_file_range O_DIRECT O_TMPFILE",
  signal: "SIGPWR SIGPOLL SIGRTMIN sigtimedwait sigwaitinfo", select: "epoll",
}.items():
  for name in names.split():
    if hasattr(where, name):
      delattr(where, name)
import mixer_jax
for module in pkgutil.walk_packages(mixer_jax.__path__, "mixer_jax."):
  try:
    importlib.import_module(module.name)
  except absl.flags.DuplicateFlagError:
    pass  # each command is a process of its own
"""


def test_modules_import_without_tensorflow_and_without_what_only_linux_has():
  assert "tensorflow" not in loaded_by(WITHOUT_LINUX)


def test_no_configuration_key_is_guessed():
  for path in [*FILES, *(ROOT / "configs").glob("*.py"), ROOT / "train.py", ROOT / "eval.py"]:
    assert "config.get(" not in path.read_text(), path
    assert "pickle" not in {n.split(".")[0] for n in imports(path)}, path
