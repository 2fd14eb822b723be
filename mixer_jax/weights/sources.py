"""Weights by name, address or path: one function for all of them."""

import os
import re

from etils import epath

from mixer_jax import configuration
from mixer_jax.errors import InputError
from mixer_jax.weights import download, files, npz, timm
from mixer_jax.weights.params import check_match, family, model_fields
from mixer_jax.weights.released import BUCKETS, RELEASED, STORAGE

_PUBLIC = tuple(f"gs://{name}/" for name in BUCKETS)


def load(source: str | os.PathLike[str], wanted: dict | None = None) -> dict:
  """Returns the parameters of a released model, an address or a file, as a nested dictionary.

  Args:
    source: a name in `RELEASED`; an http(s):// address, perhaps with `#sha256=…`; or a path, gs://
      included. The files may be `.npz` in the authors' layouts, or `.safetensors` of timm's MlpMixer; which
      of them is told by their content.
    wanted: the parameters of the model that they must fit (arrays or jax.ShapeDtypeStruct); None: those of
      any known family will do.

  Raises:
    InputError: no such name or file, a failed download, or a file that holds no such model; says which.
    SaveError: the cache cannot be written.
  """
  path = locate(source)
  if _kind(path, str(source)) == "npz":
    params = npz.load_npz(path)
  else:
    params = timm.from_timm(timm.load_safetensors(path, str(source)), str(source))
  if wanted is not None:
    check_match(params, wanted, str(source))
    return params
  fields = model_fields(params, str(source))
  released = RELEASED.get(str(source))
  if released and (family(params), fields) != (released.family, released.fields):
    raise InputError(
      f"{source} should be the {released.family} with {released.fields}, but has {fields}. Load it by its address, "
      f"{released.url}, to take it as it is."
    )
  return params


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
    timm.from_timm(timm.load_safetensors(path, url), url)


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
