"""SHA-256 of a directory's files, in the format of `sha256sum --check`."""

import hashlib
import os

from etils import epath

from mixer_jax import files
from mixer_jax.files import CHECKSUMS

_COMMITTED = "commit_success.txt"  # Orbax writes it after the checksums; its text says nothing
_NEEDED = ("_METADATA", "manifest.ocdbt")  # without these Orbax restores nothing
_CHUNK_BYTES = 1 << 22


def _sha256(path: epath.Path) -> str:
  digest = hashlib.sha256()
  with path.open("rb") as f:
    while chunk := f.read(_CHUNK_BYTES):
      digest.update(chunk)
  return digest.hexdigest()


def _files(directory: epath.Path, prefix: str = "") -> dict[str, epath.Path]:
  """Returns {relative name: path} of all below the directory that the checksums cover; directories that are links are files."""
  found = {}
  for path in sorted(directory.iterdir()):
    if path.name in (CHECKSUMS, _COMMITTED) or files.is_foreign(path.name):
      continue
    if path.is_dir() and not os.path.islink(path):
      found.update(_files(path, f"{prefix}{path.name}/"))
    else:
      found[prefix + path.name] = path
  return found


def write(directory: epath.Path) -> None:
  """Lists the checksums; raises OSError if a file without which nothing can be restored is missing."""
  found = _files(directory)
  for name in _NEEDED:
    if name not in found:
      raise OSError(f"{directory} was written without {name}")
  lines = [f"{_sha256(path)}  {name}\n" for name, path in found.items()]
  (directory / CHECKSUMS).write_text("".join(lines))


def find_damage(directory: epath.Path) -> str | None:
  """Returns what is wrong with the files of a saved item. None if each matches its checksum.

  Raises:
    OSError: the storage does not give them.
  """
  if not directory.is_dir():
    return f"{directory.name} is no directory"
  try:
    lines = files.read(directory / CHECKSUMS).decode().splitlines()
    listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
  except FileNotFoundError:
    return f"{CHECKSUMS} is missing: it was not written completely"
  except ValueError:
    return f"{CHECKSUMS} is unreadable"
  wanted = {k: v for k, v in listed.items() if not any(map(files.is_foreign, k.split("/")))}
  found = _files(directory)
  if missing := sorted({*wanted, *_NEEDED} - {*found}):
    return f"missing file {missing[0]}"
  for name, path in found.items():
    if name not in wanted:
      return f"unexpected file {name}"
    if not files.is_regular(path):
      return f"{name} is no regular file"
    if _sha256(path) != wanted[name]:
      return f"{name} does not match its SHA-256"
  return None
