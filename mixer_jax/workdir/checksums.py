"""SHA-256 of a directory's files, in the format of `sha256sum --check`."""

import hashlib

from etils import epath

CHECKSUMS = "SHA256SUMS"
_COMMITTED = "commit_success.txt"  # Orbax writes it after the checksums; its text says nothing
_CHUNK_BYTES = 1 << 22


def _sha256(path: epath.Path) -> str:
  digest = hashlib.sha256()
  with path.open("rb") as f:
    while chunk := f.read(_CHUNK_BYTES):
      digest.update(chunk)
  return digest.hexdigest()


def _files(directory: epath.Path, prefix: str = "") -> dict[str, epath.Path]:
  """Returns {relative name: path} of all files below the directory that the checksums cover."""
  found = {}
  for path in sorted(directory.iterdir()):
    if path.is_dir():
      found.update(_files(path, f"{prefix}{path.name}/"))
    elif path.name not in (CHECKSUMS, _COMMITTED):
      found[prefix + path.name] = path
  return found


def write(directory: epath.Path) -> None:
  lines = [f"{_sha256(path)}  {name}\n" for name, path in _files(directory).items()]
  (directory / CHECKSUMS).write_text("".join(lines))


def find_damage(directory: epath.Path) -> str | None:
  """Returns what is wrong with the files of a saved item. None if each matches its checksum."""
  if not (directory / CHECKSUMS).exists():
    return f"{CHECKSUMS} is missing: it was not written completely"
  try:
    lines = (directory / CHECKSUMS).read_text().splitlines()
    wanted = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
  except ValueError:
    return f"{CHECKSUMS} is unreadable"
  files = _files(directory)
  if missing := sorted(set(wanted) - set(files)):
    return f"missing file {missing[0]}"
  for name, path in files.items():
    if name not in wanted:
      return f"unexpected file {name}"
    if _sha256(path) != wanted[name]:
      return f"{name} does not match its SHA-256"
  return None
