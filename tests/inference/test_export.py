"""Exported files against the model applied by hand, and what must leave no file."""

import contextlib
import importlib.util
import json

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from mixer_jax.errors import InputError, SaveError
from mixer_jax.inference import export
from tests import families
from tests.inference.conftest import make_trained
from tests.models.test_relatives import TINY

ONNX = [name for name in ("jax2onnx", "onnx", "onnxruntime") if not importlib.util.find_spec(name)]
needs_onnx = pytest.mark.skipif(
  bool(ONNX), reason=f"the extra 'export' is not installed: no {ONNX}"
)


FAMILIES = {**TINY, "vit": families.VIT, "resnet": families.RESNET}
PIXELS = np.random.default_rng(100).integers(0, 256, (7, 16, 16, 3), np.uint8)


def _logits(trained):
  apply = jax.jit(trained.setup.model.apply)
  return np.asarray(apply(trained.variables, trained.setup.normalize(jnp.asarray(PIXELS))))


@pytest.fixture(scope="module")
def wanted(trained):
  return _logits(trained)


def _call_stablehlo(path):
  exported = jax.export.deserialize(bytearray(path.read_bytes()))
  assert set(exported.platforms) == {"cpu", "cuda", "rocm", "tpu"}
  return exported.call


def _call_onnx(path):
  import onnxruntime

  session = onnxruntime.InferenceSession(str(path))
  return lambda images: session.run(["logits"], {"image": images})[0]


@contextlib.contextmanager
def _without_shape_checks():
  """Tracing for ONNX, jax2onnx calls the size of the batch by two names, which jaxtyping holds for two."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("input_type", ["uint8", "float32"])
@pytest.mark.parametrize("name", ["model.stablehlo", pytest.param("model.onnx", marks=needs_onnx)])
def test_files_give_the_models_logits(tmp_path, trained, wanted, name, input_type):
  path = tmp_path / name
  with _without_shape_checks():
    differences = export.save(trained, path, input_type=input_type, tolerance=1e-5)
  assert sorted(differences) == [1, 7]
  call = {".stablehlo": _call_stablehlo, ".onnx": _call_onnx}[path.suffix](path)
  given = (
    PIXELS if input_type == "uint8" else np.asarray(trained.setup.normalize(jnp.asarray(PIXELS)))
  )
  for batch in (1, 7):
    np.testing.assert_allclose(call(given[:batch]), wanted[:batch], rtol=0, atol=1e-5)
  assert sorted(p.name for p in tmp_path.iterdir()) == [name, f"{name}.json"]
  described = json.loads((tmp_path / f"{name}.json").read_text())
  assert described["input"]["dtype"] == input_type
  assert described["input"]["preprocessing"] == "decode|resize(16)"
  assert described["output"]["probabilities"] == "softmax"
  assert described["class_names"] == [str(i) for i in range(10)]


@pytest.mark.campaign
@pytest.mark.parametrize("suffix", [".stablehlo", pytest.param(".onnx", marks=needs_onnx)])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_exported(tmp_path, family, suffix):
  model, variables = families.random_variables(family, 32, 32, **FAMILIES[family])
  function = jax.jit(lambda image: model.apply(variables, image))
  image = jax.ShapeDtypeStruct(families.shape(family, 32, 32, 3), jnp.float32)
  with _without_shape_checks():
    exported = export.FORMATS[suffix](tmp_path / f"model{suffix}", function, image)
    for batch in (1, 7):
      given = families.image(batch, *image.shape)
      np.testing.assert_allclose(exported(np.asarray(given)), function(given), rtol=1e-5, atol=1e-5)


def test_a_bfloat16_model_is_exported_in_float32(wanted):
  half = make_trained(dtype="bfloat16")
  have = np.asarray(jax.jit(export.make_function(half, "uint8"))(jnp.asarray(PIXELS)))
  np.testing.assert_allclose(have, wanted, rtol=0, atol=1e-5)
  assert np.abs(have - _logits(half)).max() > 1e-3


@pytest.mark.parametrize("error", [2e-5, np.nan])
def test_a_file_that_differs_from_the_model_is_not_kept(tmp_path, trained, monkeypatch, error):
  def save_wrong(path, function, image):
    path.write_bytes(b"something")
    return lambda images: np.asarray(jax.jit(function)(images)) + np.float32(error)

  monkeypatch.setitem(export.FORMATS, ".stablehlo", save_wrong)
  (tmp_path / "model.stablehlo").write_bytes(b"before")
  with pytest.raises(SaveError, match="nothing was written"):
    export.save(trained, tmp_path / "model.stablehlo", input_type="float32", tolerance=1e-5)
  assert [p.name for p in tmp_path.iterdir()] == ["model.stablehlo"]
  assert (tmp_path / "model.stablehlo").read_bytes() == b"before"


def test_weights_beyond_the_formats_are_refused(tmp_path, trained, monkeypatch):
  monkeypatch.setattr(export, "MAX_BYTES", 1000)
  with pytest.raises(InputError, match=r"do not fit into a \.onnx file"):
    export.save(trained, tmp_path / "model.onnx", input_type="uint8", tolerance=1e-5)


@pytest.mark.parametrize(("channels", "colours"), [(1, "grey"), (4, "RGB and alpha")])
def test_rectangles_and_other_channels_are_exported(tmp_path, channels, colours):
  trained = make_trained(image_size="8x16", image_channels=channels)
  path = tmp_path / "model.stablehlo"
  export.save(trained, path, input_type="uint8", tolerance=1e-5)
  pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 16, channels), np.uint8)
  apply = jax.jit(trained.setup.model.apply)
  wanted = apply(trained.variables, trained.setup.normalize(jnp.asarray(pixels)))
  np.testing.assert_allclose(_call_stablehlo(path)(pixels), wanted, rtol=0, atol=1e-5)
  described = json.loads((tmp_path / "model.stablehlo.json").read_text())["input"]
  assert described["shape"] == ["batch", 8, 16, channels]
  assert described["values"] == f"{colours} pixels 0 to 255"
