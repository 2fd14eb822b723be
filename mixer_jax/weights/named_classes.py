"""Names of the classes beside weights: in the header of a .safetensors file, in FILE.json beside an .npz one.

Both hold {"class_names": […]}, in the order of the head's outputs; the header's value is text, as safetensors demands.
"""

import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from mixer_jax import files, printing
from mixer_jax.errors import InputError

_KEY = "class_names"
_MAX_BYTES = 1 << 24


def metadata(names: Sequence[str]) -> dict[str, str]:
  """Returns what the header of a .safetensors file holds of them."""
  return {_KEY: json.dumps([*names], ensure_ascii=False)} if names else {}


def write_beside(path: epath.Path, names: Sequence[str]) -> None:
  """Writes the names of an .npz file's classes; raises SaveError."""
  with files.replacing(_beside(path)) as partial:
    partial.write_text(json.dumps({_KEY: [*names]}, indent=1, ensure_ascii=False) + "\n")


def read(path: epath.Path, *, in_header: bool) -> tuple[str, ...]:
  """Returns the names of a weights file's classes, () if it has none.

  Args:
    path: the weights file.
    in_header: it is a .safetensors file.

  Raises:
    InputError: they are no list of names that can be printed.
  """
  place = path if in_header else _beside(path)
  try:
    content = _header(path) if in_header else _beside_it(place)
    names = content.get(_KEY, [])
    names = json.loads(names) if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
      raise ValueError(f"class_names is no list of names: {names!r:.40}")
    if bad := [name for name in names if not printing.is_printable(name)]:
      raise ValueError(f"the class {bad[0]!a} cannot be printed")
  except (ValueError, AttributeError, RecursionError, OSError) as e:
    raise InputError(f"{place}: {e}") from e
  return tuple(names)


def _beside(path: epath.Path) -> epath.Path:
  return path.with_name(f"{path.name}.json")


def _header(path: epath.Path) -> dict[str, Any]:
  with path.open("rb") as f:
    size = int.from_bytes(f.read(8), "little")
    if size > path.stat().length:
      raise ValueError("its header is longer than the file")
    return json.loads(f.read(size)).get("__metadata__") or {}


def _beside_it(path: epath.Path) -> dict[str, Any]:
  if not path.exists():
    return {}
  if path.stat().length > _MAX_BYTES:
    raise ValueError(f"larger than {_MAX_BYTES >> 20} MiB")
  return json.loads(path.read_text())
