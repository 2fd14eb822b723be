"""Downloads from a server on this machine: cached, resumed, and every failure named with nothing left behind."""

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import os
import subprocess
import sys
import threading
import time

import cv2
import jax
import numpy as np
import pytest
from scipy import special

import mixer_jax
from mixer_jax import weights
from mixer_jax.errors import InputError, SaveError
from mixer_jax.inference import predict
from mixer_jax.weights import download, files, released, sources, transfer
from tests import runs
from tests.conftest import GOLDEN
from tests.weights import mixers

CONTENT = (GOLDEN / "mixer_tiny_checkpoint.npz").read_bytes()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PRELINEN = (GOLDEN / "mixer_tiny_checkpoint_prelinen.npz").read_bytes()  # of another length


@dataclasses.dataclass
class Behaviour:
  """What the server does."""

  content: bytes = CONTENT
  headers: dict = dataclasses.field(default_factory=lambda: {"ETag": '"one"'})
  ranges: bool = True
  break_after: int | None = None  # bytes of a reply
  status: int = 200
  hang: float = 0.0
  drips: bool = False  # from its status line on
  refuses_ranges: bool = False  # with 416, as for a file that is shorter by now
  location: str | None = None
  with_length: bool = True
  requests: list = dataclasses.field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
  def log_message(self, *args):
    pass

  def do_GET(self):
    b = self.server.behaviour
    b.requests.append((self.path, self.headers.get("Range")))
    time.sleep(b.hang)
    with contextlib.suppress(ConnectionError):  # the client goes
      for byte in b"HTTP/1.1 200 OK\r\n\r\n" + CONTENT if b.drips else b"":
        time.sleep(0.02)
        self.wfile.write(bytes([byte]))
    if b.status != 200 or (b.refuses_ranges and self.headers.get("Range")):
      self.send_response(b.status if b.status != 200 else 416)
      if b.location:
        self.send_header("Location", b.location)
      self.end_headers()
      return
    begin = 0
    wanted = self.headers.get("Range")
    if wanted and b.ranges and self.headers["If-Range"] == b.headers.get("ETag"):
      begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
    body = b.content[begin:]
    self.send_response(206 if begin else 200)
    if begin:
      self.send_header("Content-Range", f"bytes {begin}-{len(b.content) - 1}/{len(b.content)}")
    if b.with_length:
      self.send_header("Content-Length", str(len(body)))
    for name, value in b.headers.items():
      self.send_header(name, value)
    self.end_headers()
    self.wfile.write(body[: b.break_after])


@pytest.fixture
def server(tmp_path, monkeypatch):
  """Yields (behaviour, address of a file); an empty cache, no waiting between attempts."""
  monkeypatch.setenv("MIXER_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(transfer, "_RETRY_SECONDS", (0.0, 0.0))
  httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  httpd.behaviour = Behaviour()
  threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
  yield httpd.behaviour, f"http://127.0.0.1:{httpd.server_port}/models/Mixer-B_16.npz"
  httpd.shutdown()
  httpd.server_close()


def cached():
  """Returns the names in the cache, locks apart."""
  names = (p.name for p in download.cache_dir().iterdir() if p.suffix != ".lock")
  return sorted(n.split("-", 1)[1] for n in names)


WHOLE = ["Mixer-B_16.npz", "Mixer-B_16.npz.sha256"]


def assert_golden(source):
  wanted = weights.load_npz(GOLDEN / "mixer_tiny_checkpoint.npz")
  jax.tree.map(np.testing.assert_array_equal, weights.load(source), wanted)


def test_an_address_is_downloaded_once(server, capsys):
  behaviour, url = server
  assert_golden(url)
  assert_golden(url)
  assert behaviour.requests == [("/models/Mixer-B_16.npz", None)]
  assert cached() == WHOLE
  assert "downloading Mixer-B_16.npz: 0.0 of 0.0 MB" in capsys.readouterr().err
  check = ["sha256sum", "--check", "--quiet", next(download.cache_dir().glob("*.sha256")).name]
  subprocess.run(check, cwd=download.cache_dir(), check=True)


def test_a_released_name_must_hold_the_model_that_it_names(server, monkeypatch):
  behaviour, url = server
  fields = weights.describe(weights.load_npz(GOLDEN / "mixer_tiny_checkpoint.npz")).fields
  entry = released.Released(url, "imagenet2012", fields)
  monkeypatch.setitem(weights.RELEASED, "imagenet1k/Mixer-T_4", entry)
  assert_golden("imagenet1k/Mixer-T_4")
  wrong = dataclasses.replace(entry, fields={**fields, "num_blocks": 12})
  monkeypatch.setitem(weights.RELEASED, "imagenet1k/Mixer-T_4", wrong)
  with pytest.raises(InputError, match=r"Mixer-T_4 should be the Mixer with .*'num_blocks': 12"):
    weights.load("imagenet1k/Mixer-T_4")
  with pytest.raises(InputError, match="Did you mean 'imagenet21k/Mixer-B_16'"):
    weights.load("imagenet21k/Mixer-B16")


def test_the_public_bucket_needs_no_login(server, monkeypatch):
  behaviour, url = server
  monkeypatch.setattr(sources, "STORAGE", url.removesuffix("Mixer-B_16.npz"))
  assert_golden("gs://mixer_models/imagenet1k/Mixer-B_16.npz")
  assert behaviour.requests == [("/models/mixer_models/imagenet1k/Mixer-B_16.npz", None)]


def test_timms_files_are_known_by_their_content(server):
  behaviour, url = server
  behaviour.content = (GOLDEN / "mixer_timm.safetensors").read_bytes()
  assert weights.describe(weights.load(f"{url}?download=1")).fields["patch_size"] == 8


def test_a_broken_download_resumes(server):
  behaviour, url = server
  behaviour.break_after = 9000
  assert_golden(url)
  assert [r for _, r in behaviour.requests] == [None, "bytes=9000-", "bytes=18000-"]
  assert cached() == WHOLE


def test_the_next_command_resumes_too(server):
  behaviour, url = server
  behaviour.break_after = 5000
  with pytest.raises(InputError, match=r"15,000 of 22,788 bytes.* 15,000 bytes are kept"):
    weights.load(url)
  assert cached() == ["Mixer-B_16.npz.partial", "Mixer-B_16.npz.partial.json"]
  behaviour.break_after = None
  assert_golden(url)
  assert behaviour.requests[-1][1] == "bytes=15000-"
  assert cached() == WHOLE


@pytest.mark.parametrize(
  ("first", "then"),
  [
    ({}, {"headers": {"ETag": '"two"'}}),
    ({}, {"content": PRELINEN}),
    ({"headers": {}}, {}),
    ({"headers": {"ETag": 'W/"one"'}}, {}),
    ({}, {"ranges": False}),
    ({}, {"refuses_ranges": True}),
    ({}, {}),
  ],
  ids=["etag", "length", "no etag", "weak etag", "no ranges", "416", "nothing differs"],
)
def test_a_half_of_another_file_is_never_continued(server, first, then):
  """It leaves 15 000 bytes. Where the server shows no difference, the whole is found damaged and deleted."""
  behaviour, url = server
  other = b"PK\x03\x04" + bytes(len(CONTENT) - 4)
  vars(behaviour).update(content=other, break_after=5000, **first)
  with pytest.raises(InputError, match="could not be downloaded"):
    weights.load(url)
  vars(behaviour).update({"break_after": None, "content": CONTENT, **then})
  if first == then:
    with pytest.raises(InputError, match=r"not a whole \.npz file"):
      weights.load(url)
    assert cached() == []
  assert_golden(url)
  assert cached() == WHOLE


HTML = b"\n<html>Sign in</html>"
TRUNCATED = (GOLDEN / "mixer_timm.safetensors").read_bytes()[:-8]
WRONG_MD5 = {"x-goog-hash": "crc32c=AAAA==,md5=rL0Y20zC+Fzt72VPzMSk2A=="}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"content": b"text", "headers": {"Content-Type": "text/html"}}, "is a web page"),
    ({"content": HTML}, "is a web page"),
    ({"content": b"<?xml version='1.0'?><Error/>"}, "is a web page"),
    ({"content": b"\x89HDF\r\n\x1a\n"}, "an HDF5 file, as Keras writes it"),
    ({"content": b"\x82\xa6params\x80"}, "a msgpack file, as flax"),
    ({"content": b"\x89PNG\r\n\x1a\n" + bytes(50)}, "neither .npz nor .safetensors"),
    ({"content": CONTENT[:-500]}, "not a whole .npz file"),
    ({"content": TRUNCATED}, "not a whole safetensors"),
    ({"content": b""}, "is empty"),
    ({"status": 404}, "answers 404 Not Found"),
    ({"status": 503}, "answers 503 Service Unavailable"),
    ({"status": 302, "location": "file:///etc/passwd"}, "Redirection to url .* is not allowed"),
    ({"headers": {"Content-Encoding": "gzip"}}, "is sent compressed"),
    ({"headers": WRONG_MD5}, "arrived damaged"),
    ({"max_bytes": 20_000}, "is 22,788 bytes; no weights file is larger than 20,000"),
    ({"max_bytes": 20_000, "with_length": False}, "sends more than the 20,000 bytes"),
    ({"hang": 0.5}, "could not be downloaded: timed out"),
    ({"drips": True}, "the server sends less than 1000 bytes a second"),
    ({"sha256": "0" * 64}, f"has SHA-256 {SHA256}, not 0000"),
  ],
)  # fmt: skip
def test_what_is_refused_leaves_nothing(server, monkeypatch, changes, message):
  behaviour, url = server
  vars(behaviour).update(changes)
  monkeypatch.setattr(files, "MAX_BYTES", changes.get("max_bytes", files.MAX_BYTES))
  monkeypatch.setattr(transfer, "_TIMEOUT_SECONDS", 0.1 if {"hang", "drips"} & {*changes} else 30)
  pinned = f"{url}#sha256={changes['sha256']}" if "sha256" in changes else url
  with pytest.raises(InputError, match=message) as error:
    weights.load(pinned)
  assert url in str(error.value)
  assert cached() == []
  if "could not" in message:
    assert len(behaviour.requests) == 3


def test_a_length_that_is_no_number_counts_as_none(server):
  behaviour, url = server
  behaviour.with_length, behaviour.headers = False, {"Content-Length": "²"}
  assert_golden(url)


def test_the_servers_checksum_is_compared(server):
  behaviour, url = server
  md5 = base64.b64encode(hashlib.md5(CONTENT).digest()).decode()
  behaviour.headers = {"x-goog-hash": f"crc32c=AAAAAA==,md5={md5}"}
  assert_golden(url)


def test_a_cached_file_that_changed_is_downloaded_again(server, capsys):
  _, url = server
  weights.load(url)
  path = next(download.cache_dir().glob("*.npz"))
  content = bytearray(path.read_bytes())
  content[5000] ^= 1
  path.write_bytes(content)
  assert_golden(url)
  assert "has changed since it was downloaded" in capsys.readouterr().err
  assert cached() == WHOLE


def test_an_address_may_name_its_checksum(server):
  _, url = server
  assert_golden(f"{url}#sha256={SHA256}")
  with pytest.raises(InputError, match=f"has SHA-256 {SHA256}, not 0000"):  # cached, it counts too
    weights.load(f"{url}#sha256={'0' * 64}")
  assert_golden(url)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
  ("address", "message"),
  [
    ("http://127.0.0.1:9/x.npz", r"127\.0\.0\.1:9/x\.npz could not be downloaded: .*refused"),
    ("http:///x.npz", "is no http:// or https:// address"),
    ("http://[::1/x.npz", "is no http:// or https:// address"),
    ("http://host:port/x.npz", "is no http:// or https:// address"),
    ("https://a b/x.npz", "is no http:// or https:// address"),
    ("https://host/x.npz#md5=1234", "64 hexadecimal digits"),
    (f"https://{'h' * 64}.org/x.npz", "is no http:// or https:// address"),
    ("https://me:secret@host/x.npz", "^an address of host holds a user name or password"),
    (
      "http://127.0.0.1:9/mød%20el.npz",
      r"127\.0\.0\.1:9/m%C3%B8d%20el\.npz could not be downloaded: .*refused",
    ),
    ("http://example.org/x.npz", "#sha256= and the file's checksum, or give --allow_insecure"),
  ],
)
def test_addresses_without_a_server_or_malformed_are_named(address, message):
  with pytest.raises(InputError, match=message):
    weights.load(address)


def test_a_cache_that_cannot_be_written_is_named(server, monkeypatch, tmp_path):
  _, url = server
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("MIXER_JAX_CACHE", str(tmp_path / "file" / "cache"))
  with pytest.raises(SaveError, match=r"cannot be used.*\$MIXER_JAX_CACHE"):
    weights.load(url)


def test_processes_do_not_download_twice(server):
  """What another process is downloading is waited for."""
  behaviour, url = server
  behaviour.hang = 0.5
  code = f"from mixer_jax import weights; weights.load({url!r})"
  other = subprocess.Popen([sys.executable, "-c", code], cwd=runs.ROOT, env=dict(os.environ))
  while not behaviour.requests:
    assert other.poll() is None
    time.sleep(0.01)
  assert_golden(url)
  assert other.wait(120) == 0
  assert len(behaviour.requests) == 1


def test_redirects_from_https_must_stay_on_it():
  handler = transfer._SafeRedirects()
  request = transfer.urllib.request.Request("https://host/x.npz")
  with pytest.raises(InputError, match=r"redirects to http://other/x\.npz, which is not https"):
    handler.redirect_request(request, None, 302, "Found", {}, "http://other/x.npz")
  request = transfer.urllib.request.Request("http://host/x.npz")
  with pytest.raises(InputError, match=r"redirects to ftp://other/x\.npz"):
    handler.redirect_request(request, None, 302, "Found", {}, "ftp://other/x.npz")


def test_a_photo_is_classified_by_a_released_name(server, tmp_path, monkeypatch):
  """No configuration, no data: the file's own size, ImageNet's words, and sigmoids where the biases say so."""
  behaviour, url = server
  variables = mixers.random_variables(8, 8, **{**mixers.TINY, "num_classes": 1000})
  variables["params"]["head"]["bias"] -= 7
  weights.save_npz(tmp_path / "x.npz", variables)
  behaviour.content = (tmp_path / "x.npz").read_bytes()
  entry = released.Released(url, "imagenet2012", weights.describe(variables).fields, image_size=8)
  monkeypatch.setitem(weights.RELEASED, "imagenet1k/Mixer-B_16", entry)
  model = mixer_jax.load("imagenet1k/Mixer-B_16")
  photo = str(GOLDEN / "photo_coffee.jpg")
  best = model.predict(photo, top=1000)[0]
  assert sorted(p["class"] for p in best) == [*range(1000)]
  assert {p["class"]: p["name"] for p in best}[967] == "espresso (n07920052)"
  logits = np.float64(model.features([photo])["logits"][0])
  for p in best[:5]:
    np.testing.assert_allclose(p["probability"], special.expit(logits[p["class"]]), rtol=1e-5)
  one = {"file": photo, "predictions": best}
  predict.save(tmp_path / "grid.png", [one, {"file": "bad", "error": "bad"}], [photo, "bad"])
  assert cv2.imread(str(tmp_path / "grid.png")).std() > 10


def test_an_entry_of_a_downloaded_file_is_taken_by_name(server):
  behaviour, url = server
  behaviour.content = (GOLDEN / "family" / "checkpoints" / "res_mlp_zip.pth").read_bytes()
  sha256 = hashlib.sha256(behaviour.content).hexdigest()
  want = weights.load(GOLDEN / "res_mlp_timm.safetensors")
  for suffix, scale in (("", 1), ("#model_ema", 2), (f"#sha256={sha256}#model_ema", 2)):
    have = jax.tree.map(lambda x, scale=scale: x * scale, weights.load(url + suffix))
    jax.tree.map(np.testing.assert_array_equal, have, want)
  assert len(behaviour.requests) == 1


def test_paths_are_loaded_by_content_and_named_when_they_fail(tmp_path):
  assert_golden(GOLDEN / "mixer_tiny_checkpoint_prelinen.npz")
  (tmp_path / "weights.npz").write_text("<html></html>")
  with pytest.raises(InputError, match=r"weights\.npz is a web page"):
    weights.load(tmp_path / "weights.npz")
  with (
    contextlib.chdir(tmp_path),
    pytest.raises(InputError, match="neither a file that can be read"),
  ):
    weights.load("nowhere.npz")
  with pytest.raises(InputError, match=r"gs://mine/x\.npz: .*pip install .*gcs"):
    weights.load("gs://mine/x.npz")
