"""Weights by name, address or path: one function for all of them."""

import os
import re
from typing import Any

from etils import epath
from flax import linen as nn

from mixer_jax import configuration, models
from mixer_jax.errors import InputError
from mixer_jax.weights import download, files, npz, torch_layout
from mixer_jax.weights.released import BUCKETS, RELEASED, STORAGE
from mixer_jax.weights.variables import Variables, check_match, check_values, describe

_PUBLIC = tuple(f"gs://{name}/" for name in BUCKETS)


def load(source: str | os.PathLike[str], wanted: Variables | None = None) -> Variables:
  """Returns the variables of a released model, an address or a file.

  Args:
    source: a name in `RELEASED`; an http(s):// address, perhaps with `#sha256=…`; or a path, gs://
      included. The files may be `.npz` in the authors' layouts, or `.safetensors` in a torch
      layout that the family knows (weights/torch_layout.py). Their content decides, not their name.
    wanted: the variables of the model that they must fit (arrays or jax.ShapeDtypeStruct). If None, a
      model of any known family will do.

  Raises:
    InputError: no such name or file, a failed download, or a file that holds no such model; says which.
    SaveError: the cache cannot be written.
  """
  path = locate(source)
  if _kind(path, str(source)) == "npz":
    variables = npz.load_npz(path)
  else:
    state = torch_layout.load_safetensors(path, str(source))
    variables = torch_layout.from_torch(state, str(source))
  if wanted is not None:
    check_match(variables, wanted, str(source))
    return variables
  spec = describe(variables, str(source))
  check_values(variables, str(source))
  released = RELEASED.get(str(source))
  if released and (spec.family, spec.fields) != (released.family, released.fields):
    title = models.FAMILIES[released.family].TITLE
    raise InputError(
      f"{source} should be the {title} with {released.fields}, but has {spec.fields}. Load it by its address, "
      f"{released.url}, to take it as it is."
    )
  return variables


def load_model(source: str | os.PathLike[str], **fields: Any) -> tuple[nn.Module, Variables]:
  """Returns the Flax module and the variables of a released model, an address or a file, see `load`.

  Args:
    source: see `load`.
    fields: of the module, instead of what the shapes tell or the defaults: gelu="erf" for weights that timm
      trained, dtype="bfloat16".

  Raises:
    InputError: see `load`; or fields that the module does not have.
  """
  variables = load(source)
  spec = describe(variables, str(source))
  return models.build(spec.family, **{**spec.fields, **fields}), variables


def locate(source: str | os.PathLike[str]) -> epath.Path:
  """Returns the path of the file that `load` would read, downloading it if need be; raises InputError."""
  text = str(source)
  if text in RELEASED:
    text = RELEASED[text].url
  elif text.startswith(_PUBLIC):  # readable without a login
    text = STORAGE + text.removeprefix("gs://")
  if re.match(r"https?://", text):
    return epath.Path(download.fetch(text, check=_check))
  return epath.Path(source).expanduser()


def _check(path: os.PathLike[str], url: str) -> None:
  """Raises InputError if a new download is not a whole weights file."""
  if _kind(epath.Path(path), url) == "npz":
    npz.check_npz(path, url)
  else:
    torch_layout.from_torch(torch_layout.load_safetensors(path, url), url)


def _kind(path: epath.Path, source: str) -> files.Kind:
  try:
    with path.open("rb") as f:
      return files.kind_of(f.read(files.HEAD_BYTES), source)
  except ImportError as e:
    raise InputError(f"{source}: {e}. Install it with pip install 'mixer-jax[gcs]'") from e
  except OSError as e:
    hint = configuration.nearest(source, RELEASED)
    raise InputError(
      f"{source} is neither a file that can be read ({e.strerror or e}) nor a released model.{hint}"
    ) from e
