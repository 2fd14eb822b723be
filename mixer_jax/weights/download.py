"""Downloads of weights files over HTTP(S): cached with a checksum, resumable, whole or not at all.

The cache is $MIXER_JAX_CACHE or ~/.cache/mixer_jax. Beside each file lies its SHA-256, in the format of
`sha256sum --check`, recorded at the first download and compared at every use. A download that broke
leaves `NAME.partial`, which the next try continues. An address may end in `#sha256=…`, which the file must
then have.
"""

import hashlib
import os
import re
import sys
import urllib.parse
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

from mixer_jax import files
from mixer_jax.errors import InputError, SaveError
from mixer_jax.weights.transfer import Partial, transfer

ALLOW_INSECURE = "MIXER_JAX_ALLOW_INSECURE"
_CHUNK_BYTES = 1 << 20


def cache_dir() -> Path:
  """Returns the directory of downloaded files."""
  return Path(
    files.path_of(os.environ.get("MIXER_JAX_CACHE") or "~/.cache/mixer_jax", "$MIXER_JAX_CACHE")
  )


def fetch(url: str, *, check: Callable[[Path, str], None]) -> Path:
  """Returns the local path of a file, downloaded unless it is in the cache.

  Args:
    url: http:// or https://, perhaps with `#sha256=…`.
    check: called with a new file and its address; raises InputError where the file is not as it should be.

  Raises:
    InputError: no such file, server or connection; not weights; another file than the checksum's; a
      cached file that has changed.
    SaveError: the cache cannot be written.
  """
  url, pinned = _split(url)
  path = cache_dir() / _file_name(url)
  try:
    if (actual := _intact(path)) is None:
      path.parent.mkdir(parents=True, exist_ok=True)
      with files.locked(path.with_name(f"{path.name}.lock"), lambda: _say_waiting(path)):
        if (actual := _intact(path)) is None:
          _download(url, path, pinned, check)
          return path
  except OSError as e:
    raise SaveError(f"the cache {path.parent} cannot be used: {e}. Set $MIXER_JAX_CACHE.") from e
  if pinned and actual != pinned:
    raise InputError(f"{path}, from {url}, has SHA-256 {actual}, not {pinned} as asked for.")
  return path


def _split(url: str) -> tuple[str, str | None]:
  """Returns the address, in ASCII, and the SHA-256 that it asks for."""
  url, _, fragment = url.partition("#")
  host = _host(url)
  if "@" in urllib.parse.urlsplit(url).netloc:  # which is not repeated here
    raise InputError(
      f"an address of {host} holds a user name or password, which are not sent. Download the file, and give its path."
    )
  if url.lower().startswith("http:") and not fragment:
    _check_insecure(url, host)
  url = urllib.parse.quote(url, safe="%/:=&?~+!$,;'@()*[]")
  if not fragment:
    return url, None
  if not (m := re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)):
    raise InputError(
      f"{url}#{fragment}: after # only sha256= and 64 hexadecimal digits may follow."
    )
  return url, m[1].lower()


def _host(url: str) -> str:
  """Returns the server's name; raises InputError if this is no address."""
  try:
    parts = urllib.parse.urlsplit(url)
    host = str(parts.hostname or "")
    host.encode("idna")
    known = parts.scheme in ("http", "https") and host and (parts.port or 80) > 0
  except ValueError:
    known, host = False, ""
  if not known or re.search(r"[\s\x00-\x1f]", url):
    shown = re.sub(r"//[^/]*@", "//…@", url)
    raise InputError(f"{shown!r} is no http:// or https:// address.")
  return host


def _check_insecure(url: str, host: str) -> None:
  if host not in ("localhost", "127.0.0.1", "::1") and not os.environ.get(ALLOW_INSECURE):
    raise InputError(
      f"{url}: anyone on the way can change what http:// sends. Use https://, add #sha256= and the file's checksum, "
      f"or give --allow_insecure (in Python ${ALLOW_INSECURE}=1)."
    )


def _file_name(url: str) -> str:
  """Returns a name of its own for each address, with nothing in it that means something to a shell."""
  last = re.sub(r"[^\w.-]", "_", urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1])[-80:]
  return f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{last}"


def _checksum_file(path: Path) -> Path:
  return path.with_name(f"{path.name}.sha256")


def _intact(path: Path) -> str | None:
  """Returns the SHA-256 of a cached file; None if it is not there, or not as it was downloaded, which is printed."""
  if not path.exists() or not _checksum_file(path).exists():
    return None
  actual = _digests(path)[0]
  if actual == _checksum_file(path).read_text(errors="replace").split(" ")[0]:
    return actual
  print(f"{path} has changed since it was downloaded: again", file=sys.stderr, flush=True)
  return None


def _say_waiting(path: Path) -> None:
  print(f"waiting for the process that downloads {path.name}", file=sys.stderr, flush=True)


def _digests(path: Path) -> tuple[str, str]:
  """Returns the SHA-256 in hexadecimal, and the MD5 in base64 as Google's storage gives it."""
  sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
  with path.open("rb") as f:
    while chunk := f.read(_CHUNK_BYTES):
      sha256.update(chunk)
      md5.update(chunk)
  return sha256.hexdigest(), b64encode(md5.digest()).decode()


def _download(url: str, path: Path, pinned: str | None, check: Callable[[Path, str], None]) -> None:
  partial = Partial(path.with_name(f"{path.name}.partial"))
  md5 = transfer(url, partial)
  try:
    sha256, actual_md5 = _digests(partial.path)
    if md5 is not None and md5 != actual_md5:
      raise InputError(f"{url} arrived damaged: its MD5 is not the server's. Try again.")
    if pinned and sha256 != pinned:
      raise InputError(f"{url} has SHA-256 {sha256}, not {pinned} as asked for.")
    check(partial.path, url)
  except InputError:
    partial.delete()
    raise
  # In this order: a file in its place always has its checksum.
  with files.replacing(_checksum_file(path)) as checksum:
    checksum.write_text(f"{sha256}  {path.name}\n")
  partial.path.replace(path)
  partial.delete()
