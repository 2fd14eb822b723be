"""What is pushed is read back as it was, by us and by timm; what timm wrote is read with its own preprocessing and GELU."""

import base64
import dataclasses
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mixer_jax
from mixer_jax import inference, weights
from mixer_jax.errors import InputError
from mixer_jax.inference import hub
from mixer_jax.training import experiment
from tests import families, runs
from tests.configurations import of_clips, small_config, with_family
from tests.conftest import GOLDEN
from tests.inference.conftest import make_trained

TIMM = json.loads((GOLDEN / "family" / "timm_configs.json").read_text())


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
  """A model whose configuration differs from a weights file's in every respect, and the directory that it was pushed to."""
  val = {"type": "classification", "ops": "decode|resize(12, 20)|central_crop"}
  config = small_config(
    image_size=(8, 16), loss="sigmoid_xent", normalize=(0.1, 0.2, 0.3, 1.0, 2.0, 3.0), evaluators={"val": val}
  )  # fmt: skip
  config.data.dataset, config.init.weights = "/home/me/photos/1.0.0", "/home/me/before"
  trained = dataclasses.replace(make_trained(config=config), name="/home/me/run step 4", step=4)
  directory = tmp_path_factory.mktemp("pushed") / "model"
  hub.push(trained, str(directory), {"val/top1": 0.75})
  return trained, directory


IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def test_what_is_pushed_is_read_back_as_it_was(pushed):
  trained, directory = pushed
  again = mixer_jax.load(str(directory))
  assert repr(again) == f"Trained('{directory}': Mixer, 8x16 px, 10 classes)"
  assert again.predict(IMAGE) == trained.predict(IMAGE)
  np.testing.assert_array_equal(again.features(IMAGE)["logits"], trained.features(IMAGE)["logits"])
  card = (directory / "README.md").read_text()
  for fact in ("images of 8x16 px", "10 classes", "val/top1: 0.7500", "sigmoids"):
    assert fact in card
  assert "timm" not in card  # which has no Mixer of this size
  assert "trained on photos/1.0.0 (train), 4 steps" in card and "from before" in card
  assert "/home" not in card
  with pytest.raises(InputError, match="not empty"):
    hub.push(trained, str(directory), {})


def test_a_model_of_clips_is_read_back_with_its_length(tmp_path):
  """The weights of a Mixer tell the number of its tokens alone."""
  config = of_clips(small_config(), 4)
  config.model.tubelet = 2
  trained = make_trained(config=config)
  hub.push(trained, str(tmp_path), {})
  again = mixer_jax.load(str(tmp_path))
  assert again.setup.options.input_shape == trained.setup.options.input_shape
  jax.tree.map(np.testing.assert_array_equal, again.variables, trained.variables)
  card = (tmp_path / "README.md").read_text()
  assert "video-classification" in card
  assert "image" not in card


@pytest.mark.parametrize(
  ("family", "fields"),
  [
    ("mixer", dict(variant="S/32")),
    ("res_mlp", dict(variant="12")),
    ("vit", dict(variant="B/32", representation_size=0)),
  ],
)
def test_the_configuration_is_what_timm_writes(family, fields):
  config = with_family(small_config(image_size=224), family, fields)
  config.evaluators.val.ops = "decode|resize_small|central_crop"
  setup = experiment.build_model(config)
  trained = inference.Trained(setup, {}, "x", class_names=tuple(f"c{i}" for i in range(10)))
  have, want = hub.config(trained), TIMM[family]
  assert have["architecture"] == want["architecture"]
  want["model_args"]["img_size"] = 224
  assert have["model_args"].items() <= want["model_args"].items()
  assert have["label_names"] == want["pretrained_cfg"].pop("label_names")
  assert have["pretrained_cfg"] == want["pretrained_cfg"]


def test_what_timm_wrote_has_its_gelu_and_preprocessing(tmp_path):
  shutil.copy(GOLDEN / "mixer_timm.safetensors", tmp_path / "model.safetensors")
  golden, config = np.load(GOLDEN / "mixer_timm.npz"), TIMM["mixer"]
  image = golden["image_nchw"].transpose(0, 2, 3, 1)
  cfg = {"input_size": [3, *image.shape[1:3]], "crop_pct": 0.9, "mean": [0.0] * 3, "std": [1.0] * 3}
  config = {**config, "pretrained_cfg": config["pretrained_cfg"] | cfg}
  (tmp_path / "config.json").write_text(json.dumps(config))
  model = mixer_jax.load(tmp_path)
  logits = model.module.apply(model.variables, jnp.asarray(image))
  np.testing.assert_allclose(logits, golden["logits"], atol=2e-6, rtol=0)
  options = model.setup.options
  assert "resize_short(crop_pct=0.9, interpolation='bilinear')" in options.evaluators["val"].ops
  assert options.normalize == (0.0, 0.0, 0.0, 1.0, 1.0, 1.0)
  (tmp_path / "config.json").write_text("[1]")
  with pytest.raises(InputError, match=r"config\.json is no configuration"):
    mixer_jax.load(tmp_path)


class _Hub(http.server.BaseHTTPRequestHandler):
  """As much of the hub as a download and a push need; files go with the commit itself."""

  def log_message(self, *args):
    pass

  def do_HEAD(self):
    self.do_GET(body=False)

  def do_GET(self, body=True):
    path = self.server.files.get(self.path.rsplit("/", 1)[1])
    self.send_response(200 if path else 404)
    if path is None:
      self.send_header("X-Error-Code", "EntryNotFound")
    content = path or b""
    self.send_header("Content-Length", str(len(content)))
    self.send_header("ETag", f'"{len(content)}"')
    self.send_header("X-Repo-Commit", "0" * 40)
    self.end_headers()
    self.wfile.write(content if body else b"")

  def do_POST(self):
    body = self.rfile.read(int(self.headers["Content-Length"]))
    reply = {"url": f"{self.server.url}/o/n", "id": "o/n"}
    if "preupload" in self.path:
      names = [one["path"] for one in json.loads(body)["files"]]
      modes = {"uploadMode": "regular", "shouldIgnore": False}
      reply = {"files": [{"path": name, **modes} for name in names]}
    elif "/commit/" in self.path:
      values = [json.loads(line)["value"] for line in body.splitlines()]
      self.server.files |= {
        one["path"]: base64.b64decode(one["content"]) for one in values if "content" in one
      }
      reply = {"commitUrl": f"{self.server.url}/o/n/commit/0", "commitOid": "0" * 40}
    content = json.dumps(reply).encode()
    self.send_response(200)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    self.wfile.write(content)


def test_a_repository_is_pushed_to_and_loaded_from(pushed, tmp_path):
  """In a process of its own, whose library asks a server on this machine."""
  pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install '.[hub]'")
  trained, directory = pushed
  httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
  httpd.files, httpd.url = {}, f"http://127.0.0.1:{httpd.server_port}"
  threading.Thread(target=httpd.serve_forever, daemon=True).start()
  code = f"""
import mixer_jax, numpy as np
from mixer_jax.inference import hub
model = mixer_jax.load({str(directory)!r})
hub.push(model, "hf://o/n", {{}})
again = mixer_jax.load("hf://o/n")
image = np.zeros((9, 20, 3), np.uint8)
assert again.predict(image) == model.predict(image)
"""
  environment = {"HF_ENDPOINT": httpd.url, "HF_HOME": str(tmp_path), "HF_TOKEN": "x"}
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=runs.ROOT,
    env={**os.environ, **environment},
    capture_output=True,
    text=True,
    timeout=300,
  )
  httpd.shutdown()
  assert done.returncode == 0, done.stderr
  assert sorted(httpd.files) == ["README.md", "config.json", "model.safetensors"]


_IN_TIMM = """
import functools, json, sys
sys.path.insert(0, "benchmarks")
import numpy as np, torch
from rival_timm import import_timm
timm, directory = import_timm(), sys.argv[1]
tanh = functools.partial(torch.nn.GELU, approximate="tanh")
given = {"act_layer": tanh} if sys.argv[2] == "mixer-tanh" else {}
model = timm.create_model(f"local-dir:{directory}", pretrained=True, **given).eval()
recorded = np.load(f"{directory}.npz")
with torch.no_grad():
  logits = model(torch.tensor(recorded["image"].transpose(0, 3, 1, 2))).numpy()
print(np.abs(logits - recorded["logits"]).max() / np.abs(logits).max())
"""


@pytest.mark.campaign
@pytest.mark.parametrize(
  ("name", "fields"),
  [
    ("mixer-erf", dict(variant="S/32", gelu="erf")),
    ("mixer-tanh", dict(variant="S/32")),
    ("res_mlp", dict(variant="12")),
    ("vit", dict(variant="B/32", representation_size=0)),
  ],
)
def test_timm_loads_what_is_pushed(tmp_path, name, fields):
  python = os.environ.get("TIMM_PYTHON")
  if python is None:
    pytest.skip("set TIMM_PYTHON to the Python of an environment with timm")
  family = name.partition("-")[0]
  _, variables = families.random_variables(family, 224, 224, num_classes=7, **fields)
  weights.save_npz(tmp_path / "x.npz", variables, [f"c{i}" for i in range(7)])
  trained = mixer_jax.load(
    tmp_path / "x.npz", gelu=fields.get("gelu", "erf" if family == "res_mlp" else "tanh")
  )
  hub.push(trained, str(tmp_path / "model"), {})
  image = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype(np.float32)
  logits = trained.module.apply(trained.variables, jnp.asarray(image))
  np.savez(tmp_path / "model.npz", image=image, logits=logits)
  command = [python, "-c", _IN_TIMM, str(tmp_path / "model"), name]
  done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, timeout=600)
  assert float(done.stdout.splitlines()[-1]) < 1e-5, done.stderr
