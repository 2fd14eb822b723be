"""Weights by name, address or path: one function for all of them."""

import functools
import os
import re
import sys
from typing import Any

from etils import epath
from flax import linen as nn

from mixer_jax import configuration, models
from mixer_jax import files as paths
from mixer_jax.errors import InputError, installing
from mixer_jax.weights import download, files, named_classes, npz, pth, torch_layout
from mixer_jax.weights.released import BUCKETS, RELEASED, STORAGE
from mixer_jax.weights.variables import Variables, check_match, check_values, describe

_PUBLIC = tuple(f"gs://{name}/" for name in BUCKETS)
_ENTRY = re.compile(r"(https?://.+|.+\.\w+)#([A-Za-z_]\w*)")


def load(
  source: str | os.PathLike[str], wanted: Variables | None = None, num_heads: int | None = None
) -> Variables:
  """Returns the variables of a released model, an address or a file.

  Args:
    source: a name in `RELEASED`; an http(s):// address, perhaps with `#sha256=…`; or a path, gs://
      included. The files may be `.npz` in the authors' layouts, or `.safetensors` or `.pth` in a torch
      layout that the family knows (weights/torch_layout.py). Their content decides, not their name. `#NAME` at
      the end chooses an entry of a `.pth` file, as in "file.pth#model_ema" (weights/pth.py).
    wanted: the variables of the model that they must fit (arrays or jax.ShapeDtypeStruct), in whose types they are
      returned. If None, a model of any known family will do.
    num_heads: of a Vision Transformer, which a torch layout does not tell. Default: that of `wanted`, or of a published
      size of the same width.

  Raises:
    InputError: no such name or file, a failed download, or a file that holds no such model; says which.
    SaveError: the cache cannot be written.
  """
  path, entry = _locate(source)
  if _kind(path, str(source), entry) == "npz":
    variables = npz.load_npz(path)
  else:
    taken, state = _state(path, str(source), entry)
    if taken is not None:
      print(f"{source}: the weights of its entry {taken}", file=sys.stderr, flush=True)
    if wanted is not None and num_heads is None:
      num_heads = describe(wanted).fields.get("num_heads")
    variables = torch_layout.from_torch(state, str(source), num_heads)
  if wanted is not None:
    return check_match(variables, wanted, str(source))
  spec = describe(variables, str(source))
  check_values(variables, str(source))
  released = RELEASED.get(str(source))
  told = {k: v for k, v in released.fields.items() if k in spec.fields} if released else {}
  if released and (spec.family, spec.fields) != (released.family, told):
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
  variables = load(source, num_heads=fields.get("num_heads"))
  spec = describe(variables, str(source))
  known = RELEASED[str(source)].fields if str(source) in RELEASED else {}
  model = models.build(spec.family, **{**spec.fields, **known, **fields})
  guessed = {*models.FAMILIES[spec.family].UNTOLD, "gelu"} - {*spec.fields, *known, *fields}
  taken = [f"{k}={getattr(model, k)!r}" for k in sorted(guessed) if hasattr(model, k)]
  if taken and not spec.variant:
    print(
      f"{source}: parameters do not tell {' '.join(taken)}; give load what they were trained with",
      file=sys.stderr,
      flush=True,
    )
  return model, variables


def class_names(source: str | os.PathLike[str]) -> tuple[str, ...]:
  """Returns the names of the classes of weights that `load` takes, () if they have none; raises InputError."""
  path, entry = _locate(source)
  in_header = _kind(path, str(source), entry) == "safetensors"
  return named_classes.read(path, in_header=in_header)


def _locate(source: str | os.PathLike[str]) -> tuple[epath.Path, str | None]:
  """Returns the path of the file, downloaded if need be, and the entry that is asked for; raises InputError."""
  text, entry = str(source), None
  if text in RELEASED:
    text = RELEASED[text].url
  if m := _ENTRY.fullmatch(text):
    text, entry = m.groups()
  if text.startswith(_PUBLIC):  # readable without a login
    text = STORAGE + text.removeprefix("gs://")
  if re.match(r"https?://", text):
    check = functools.partial(_check, entry=entry)
    return epath.Path(download.fetch(text, check=check)), entry
  return paths.path_of(text, "the name of the weights"), entry


def _check(path: os.PathLike[str], url: str, entry: str | None) -> None:
  """Raises InputError if a new download is not a whole weights file."""
  if _kind(epath.Path(path), url, entry) == "npz":
    npz.check_npz(path, url)
  else:
    torch_layout.from_torch(_state(epath.Path(path), url, entry)[1], url)


def _state(path: epath.Path, where: str, entry: str | None) -> tuple[str | None, dict[str, Any]]:
  """Returns the entry that was taken, if the file has several, and the arrays by torch's names."""
  if _kind(path, where, entry) == "pth":
    return pth.load_pth(path, entry, where)
  return None, torch_layout.load_safetensors(path, where)


def _kind(path: epath.Path, source: str, entry: str | None) -> files.Kind:
  try:
    with path.open("rb") as f:
      kind = files.kind_of(f.read(files.HEAD_BYTES), source)
  except ImportError as e:
    raise InputError(f"{source}: {e}. Install it with {installing('gcs')}") from e
  except OSError as e:
    hint = configuration.nearest(source, RELEASED)
    hint = hint if "Did you mean" in hint else " Released names: docs/weights.md."
    raise InputError(
      f"{source} is neither a file that can be read ({e.strerror or e}) nor a released model.{hint}"
    ) from e
  if entry and kind != "pth":
    raise InputError(f"{source}: only a .pth file has entries, such as {entry}; this is .{kind}.")
  return kind
