"""Servers that answer anything but properly: a download is the right weights or one error, and the next one works."""

import http.server
import threading
import time

import jax
import numpy as np
import pytest

from mixer_jax import weights
from mixer_jax.errors import InputError
from mixer_jax.weights import transfer
from tests import campaign
from tests.conftest import GOLDEN

CONTENT = (GOLDEN / "mixer_tiny_checkpoint.npz").read_bytes()
SIZE, LIMIT_SECS = len(CONTENT), 20
GOOD = f'HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\nETag: "one"\r\n\r\n'.encode() + CONTENT
STATUSES = [
  *["HTTP/1.1 200 OK"] * 8, *["HTTP/1.1 206 Partial Content"] * 4, *["HTTP/1.1 302 Found"] * 4, "HTTP/1.1 307 Temporary Redirect", "HTTP/1.1 300 x",
  "HTTP/1.1 100 Continue", "HTTP/1.1 204 No Content", "HTTP/1.1 304 Not Modified", "HTTP/1.1 401 Unauthorized", "HTTP/1.1 404 \x1b[31mNot\x07",
  "HTTP/1.1 416 Range", "HTTP/1.1 429 Too Many", "HTTP/1.1 503 Service", "HTTP/1.1 2000 x", "HTTP/1.1 -200 x", "HTTP/1.1", "HTTP/9.9 200 OK",
  "ICY 200 OK", "", "\0\xff", "HTTP/1.1 200 " + "x" * 70_000,
]  # fmt: skip
HEADERS = [
  *[f"Content-Length: {n}" for n in (SIZE, SIZE, SIZE, SIZE - 1, SIZE + 1, 0, -1, "1e3", "²", 10**13, 10**30, "9" * 5000)],
  *[f"Content-Range: bytes {r}" for r in (f"5000-{SIZE - 1}/{SIZE}", f"0-{SIZE - 1}/{SIZE}", "*/5", f"5000-{SIZE - 1}/*", "x")],
  *[f"ETag: {e}" for e in ('"one"', '"one"', '"two"', 'W/"one"', "one", '"', '"' + "é" * 99 + '"')],
  *[f"Location: {u}" for u in ("/models/x.npz", "/models/x.npz", "/a.npz", "", "file:///etc/passwd", "ftp://h/x", "//[::1", "http://127.0.0.1:9/x",
                               "http://127.0.0.1:1/ü \x1b", "https://", "http://h:port/", "data:,x", "http://" + "h" * 300 + "/")],
  "Transfer-Encoding: chunked", "Transfer-Encoding: gzip", "Content-Encoding: gzip", "Content-Encoding: identity", "Content-Type: text/html",
  "Content-Type: \xff", *[f"x-goog-hash: {h}" for h in ("md5=AAAA", "md5=", "crc32c=AAAA", "=,=,md5")], "Connection: keep-alive", "no colon", ": x",
  " folded", "X: " + "x" * 70_000, "\r\n".join(f"X{i}: 1" for i in range(200)),
]  # fmt: skip


def bodies(rng):
  damaged = bytearray(CONTENT)
  damaged[rng.randrange(SIZE)] ^= 1 << rng.randrange(8)
  chunk = f"{SIZE:x}\r\n".encode() + CONTENT
  whole = [CONTENT, CONTENT, CONTENT[5000:], CONTENT[:-500], CONTENT + b"x", bytes(damaged)]
  return [*whole, b"", b"<html>", chunk + b"\r\n0\r\n\r\n", chunk, b"zz\r\n" + CONTENT, b"-1\r\nx"]


def random_reply(rng):
  """Returns (bytes of a reply, after how many of them it pauses, seconds, whether the connection then breaks)."""
  head = [rng.choice(STATUSES), *rng.sample(HEADERS, rng.randrange(7))]
  content = "\r\n".join(head).encode("latin-1", "replace") + b"\r\n\r\n" + rng.choice(bodies(rng))
  return content, rng.randrange(len(content)), rng.choice([0, 0, 0.01, 0.3]), rng.random() < 0.3


class Handler(http.server.BaseHTTPRequestHandler):
  """Sends the next reply, or the good one when there is none."""

  def log_message(self, format, *args):
    pass

  def do_GET(self):
    replies = self.server.replies
    content, at, pause, breaks = replies.pop(0) if replies else (GOOD, 0, 0, False)
    self.close_connection = True
    try:
      self.wfile.write(content[:at])
      time.sleep(pause)  # beyond the client's patience, sometimes
      if not breaks:
        self.wfile.write(content[at:])
    except OSError:
      pass  # the client has gone


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setattr(transfer, "_RETRY_SECONDS", (0.0, 0.0))
  monkeypatch.setattr(transfer, "_TIMEOUT_SECONDS", 0.2)
  httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  httpd.replies = []
  threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
  yield httpd
  httpd.shutdown()
  httpd.server_close()


def fault_of(url, wanted, *, may_fail):
  begin = time.monotonic()
  try:
    jax.tree.map(np.testing.assert_array_equal, weights.load(url), wanted)
  except InputError as e:
    if not may_fail:
      return f"the next download, of a good server: {e}"
  except Exception as e:
    return repr(e)[:300]
  seconds = time.monotonic() - begin
  return f"{seconds:.0f} s" if seconds > LIMIT_SECS else None


@pytest.mark.campaign
def test_servers_that_misbehave(server, monkeypatch, tmp_path, capsys):
  wanted = weights.load_npz(GOLDEN / "mixer_tiny_checkpoint.npz")
  url = f"http://127.0.0.1:{server.server_port}/models/x.npz"
  count, faults = campaign.tries(1000), []
  for number in range(count):
    rng = campaign.generator(number)
    monkeypatch.setenv("MIXER_JAX_CACHE", str(tmp_path / f"{number}"))
    server.replies[:] = [random_reply(rng) for _ in range(rng.choice([1, 3, 12]))]
    replies = [(r[0][:200], r[1:]) for r in server.replies]
    found = [fault_of(url, wanted, may_fail=True)]
    server.replies.clear()
    monkeypatch.setattr(transfer, "_TIMEOUT_SECONDS", 30)
    found.append(fault_of(url, wanted, may_fail=False))
    monkeypatch.setattr(transfer, "_TIMEOUT_SECONDS", 0.2)
    faults += [f"try {number}: {f}: {replies}" for f in found if f]
  capsys.readouterr()  # progress
  with capsys.disabled():
    campaign.report("servers that misbehave", count, faults)
