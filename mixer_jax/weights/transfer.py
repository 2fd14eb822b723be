"""Transfer of a weights file over HTTP(S): bounded, checked as it arrives, resumable.

A transfer that breaks leaves its bytes, and the server's ETag and length. It is continued (Range, If-Range) only if
the server still has the same file.
"""

import dataclasses
import http.client
import io
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any

from mixer_jax.errors import InputError
from mixer_jax.weights import files

_TIMEOUT_SECONDS = 30.0  # without a byte
_FLOOR = 1000  # bytes a second, while two timeouts are waited
_RETRY_SECONDS = (1.0, 5.0)  # so three attempts
_CHUNK_BYTES = 1 << 20
_WAY_OUT = " Or fetch it with another program, and give the path of the file instead."
_NETWORK = (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException)


class _BrokenError(Exception):
  """A transfer that may succeed when it is tried again."""


@dataclasses.dataclass
class Partial:
  """The bytes that a broken download left, and the ETag and length of the file that they belong to."""

  path: Path

  @property
  def origin(self) -> Path:
    return self.path.with_name(f"{self.path.name}.json")

  def begin(self) -> tuple[int, dict[str, Any]]:
    """Returns the number of bytes, and the ETag and length of the whole file. 0 bytes if they cannot be used."""
    try:
      origin = json.loads(self.origin.read_text())
      size = self.path.stat().st_size
      if origin["etag"] and 0 < size < origin["length"]:
        return size, origin
    except (OSError, ValueError, KeyError, TypeError):
      pass
    self.delete()
    return 0, {}

  def delete(self) -> None:
    self.path.unlink(missing_ok=True)
    self.origin.unlink(missing_ok=True)


def transfer(url: str, partial: Partial) -> str | None:
  """Downloads an http(s):// address to the partial file, which is whole then.

  Returns:
    The MD5 in base64 that the server gave. None if it gave none.

  Raises:
    InputError: no such file, server or connection after three attempts, too large, or not weights.
    OSError: the partial file cannot be written.
  """
  pauses = iter(_RETRY_SECONDS)
  while True:
    try:
      return _continue(url, partial)
    except InputError:
      partial.delete()
      raise
    except ValueError as e:  # of a redirect to what is no address
      raise InputError(f"{url} could not be downloaded: {e}.") from e
    except (_BrokenError, *_NETWORK) as e:
      reason = getattr(e, "reason", None) or str(e) or type(e).__name__
      pause = next(pauses, None)
      if pause is None:
        kept = partial.begin()[0]
        note = f" {kept:,} bytes are kept: the next try continues from there." if kept else ""
        raise InputError(f"{url} could not be downloaded: {reason}.{note}{_WAY_OUT}") from e
    print(f"{url}: {reason}; trying again", file=sys.stderr, flush=True)
    time.sleep(pause)


def _continue(url: str, partial: Partial) -> str | None:
  size, origin = partial.begin()
  headers = {"Accept-Encoding": "identity", "User-Agent": "mixer-jax"}
  if size:
    headers |= {"Range": f"bytes={size}-", "If-Range": origin["etag"]}
  with _open(url, headers, partial) as reply:
    if reply.headers.get("Content-Encoding", "identity") != "identity":
      raise InputError(f"{url} is sent compressed, though the plain file was asked for.")
    if reply.status == 206:
      total = origin.get("length")
      wanted = f"bytes {size}-{(total or 0) - 1}/{total}", origin.get("etag")
      if (reply.headers.get("Content-Range"), reply.headers.get("ETag")) != wanted:
        partial.delete()
        raise _BrokenError("the file changed on the server since the download began")
    else:
      size, total = 0, _begin(url, reply, partial)
    with partial.path.open("ab") as f:
      _copy(url, reply, f, size, total)
    return _md5(reply.headers.get_all("x-goog-hash", []))


def _begin(url: str, reply: Any, partial: Partial) -> int | None:
  """Checks the headers of a whole file's reply, notes them beside the partial file and returns the length."""
  partial.delete()
  if reply.headers.get_content_type() == "text/html":
    raise InputError(f"{url} is a web page (HTML), not weights: is the address right?")
  length = reply.headers.get("Content-Length", "")
  total = int(length) if length.isascii() and length.isdigit() else None
  if total is not None and total > files.MAX_BYTES:
    raise InputError(
      f"{url} is {total:,} bytes; no weights file is larger than {files.MAX_BYTES:,}."
    )
  etag = reply.headers.get("ETag", "")
  # A weak one, W/"…", does not promise the same bytes.
  if total is not None and etag.startswith('"'):
    partial.origin.write_text(json.dumps({"etag": etag, "length": total}))
  return total


def _copy(url: str, reply: Any, f: IO[bytes], size: int, total: int | None) -> None:
  """Appends the reply to the file, which has `size` bytes of `total` so far."""
  progress = _Progress(url, size, total)
  while True:
    try:
      chunk = reply.read(_CHUNK_BYTES)
    except OSError as e:
      raise _BrokenError(
        f"no answer for {_TIMEOUT_SECONDS:g} s or the connection broke ({e})"
      ) from e
    if not chunk:
      break
    if size == 0:
      files.kind_of(chunk[: files.HEAD_BYTES], url)
    size += len(chunk)
    if size > (files.MAX_BYTES if total is None else total):
      raise InputError(
        f"{url} sends more than the {total or files.MAX_BYTES:,} bytes that it may have."
      )
    f.write(chunk)
    progress.renew(size)
  progress.say(size)
  if total is not None and size < total:
    raise _BrokenError(f"the connection broke after {size:,} of {total:,} bytes")
  if size == 0:
    raise InputError(f"{url} is empty.")


def _md5(hashes: list[str]) -> str | None:
  """Returns the MD5 of Google's storage header, "crc32c=…" and "md5=…" in one or several lines."""
  for part in ",".join(hashes).split(","):
    name, _, value = part.strip().partition("=")
    if name == "md5":
      return value
  return None


class _Paced(io.RawIOBase):
  """What a server sends, headers too; raises TimeoutError where it drips."""

  def __init__(self, raw: Any):
    self._raw, self._waited, self._bytes = raw, 0.0, 0

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int | None:
    begin = time.monotonic()
    count = self._raw.readinto(buffer)
    self._waited += time.monotonic() - begin
    self._bytes += count or 0
    if count and self._waited > 2 * _TIMEOUT_SECONDS:
      if self._bytes < _FLOOR * self._waited:
        raise TimeoutError(f"the server sends less than {_FLOOR} bytes a second")
      self._waited, self._bytes = 0.0, 0
    return count

  def close(self) -> None:
    self._raw.close()
    super().close()


class _Reply(http.client.HTTPResponse):
  def __init__(self, sock: Any, *args: Any, **kwargs: Any):
    super().__init__(sock, *args, **kwargs)
    self.fp = io.BufferedReader(_Paced(self.fp.detach()))


class _Http(urllib.request.HTTPHandler):
  def http_open(self, req: Any) -> Any:
    return self.do_open(_paced(http.client.HTTPConnection), req)


class _Https(urllib.request.HTTPSHandler):
  def https_open(self, req: Any) -> Any:
    return self.do_open(_paced(http.client.HTTPSConnection), req)


def _paced(kind: type[http.client.HTTPConnection]) -> Any:
  return type(kind.__name__, (kind,), {"response_class": _Reply})


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
  """Follows redirects to http:// and https://, and from https to nothing less."""

  def redirect_request(
    self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
  ) -> Any:
    known = ("https://", "http://")[: 2 if req.full_url.startswith("http://") else 1]
    if not newurl.startswith(known):
      raise InputError(f"{req.full_url} redirects to {newurl}, which is not https. Refused.")
    fp.close()  # or urllib reads what comes with a redirect, of whatever size, into memory
    return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, headers: dict[str, str], partial: Partial) -> Any:
  request = urllib.request.Request(url, headers=headers)  # noqa: S310
  try:
    return urllib.request.build_opener(_SafeRedirects, _Http, _Https).open(
      request, timeout=_TIMEOUT_SECONDS
    )
  except urllib.error.HTTPError as e:
    e.close()
    if e.code == 416:  # it has no such range: another file by now
      partial.delete()
    if e.code in (408, 416, 429) or e.code >= 500:
      raise _BrokenError(f"the server answers {e.code} {e.reason}") from e
    raise InputError(f"{url}: the server answers {e.code} {e.reason}.") from e


class _Progress:
  """A line at the beginning and the end; on a terminal it is renewed every second."""

  def __init__(self, url: str, size: int, total: int | None):
    self._name = url.rsplit("/", 1)[-1]
    self._total = f" of {total / 1e6:,.1f}" if total else ""
    self._first, self._began = size, time.monotonic()
    self._last = self._began
    self.say(size)

  def renew(self, size: int) -> None:
    if sys.stderr.isatty() and time.monotonic() - self._last > 1:
      self._last = time.monotonic()
      self.say(size, end="\r")

  def say(self, size: int, end: str = "\n") -> None:
    speed = (size - self._first) / 1e6 / max(time.monotonic() - self._began, 1e-3)
    text = f"downloading {self._name}: {size / 1e6:,.1f}{self._total} MB, {speed:,.1f} MB/s"
    print(f"{text:<78}", end=end, file=sys.stderr, flush=True)
