"""A trained model as one file, weights inside: StableHLO (jax.export) or ONNX (jax2onnx).

What was written is read back and compared with Flax before the file gets its name.
"""

import contextlib
import io
import json
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from mixer_jax import files, losses
from mixer_jax.errors import InputError, SaveError, installing
from mixer_jax.evaluators import best
from mixer_jax.inference import trained as trained_lib
from mixer_jax.training import normalization

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")  # one file serves all
ONNX_OPSET = 20  # the first with GELU; the lowest serves most runtimes
PARITY_BATCHES = (1, 7)
COLOURS = {1: "grey", 3: "RGB", 4: "RGB and alpha"}
# Both formats end at 2 GiB; the program needs little beside weights.
MAX_BYTES = (1 << 31) - (1 << 24)

Logits = Callable[[np.ndarray], np.ndarray]


def make_function(trained: trained_lib.Trained, input_type: str) -> Callable[[Any], Any]:
  """Returns images -> logits in float32, with the weights inside.

  Args:
    trained: the model; a bfloat16 one is computed in float32.
    input_type: "uint8": pixels 0…255; "float32": values as config.normalize makes them.
  """
  fields: dict[str, Any] = {"dtype": "float32", "remat": "none", "kernels": "xla"}
  model = trained.setup.model
  model = model.clone(**{k: v for k, v in fields.items() if hasattr(model, k)})
  variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), trained.variables)

  def logits(image: Any) -> Any:
    return model.apply(
      variables, trained.setup.normalize(image) if input_type == "uint8" else image
    )

  return logits


def save_stablehlo(path: pathlib.Path, function: Callable, image: jax.ShapeDtypeStruct) -> Logits:
  """Writes jax.export's file of a function of such images; returns the function read back from it."""
  from jax import export

  (batch,) = export.symbolic_shape("batch")
  argument = jax.ShapeDtypeStruct((batch, *image.shape), image.dtype)
  exported = export.export(jax.jit(function), platforms=PLATFORMS)(argument)
  try:
    path.write_bytes(exported.serialize())
  except ImportError as e:
    raise InputError("StableHLO needs flatbuffers: pip install flatbuffers") from e
  read_back = export.deserialize(bytearray(path.read_bytes()))
  return lambda images: np.asarray(read_back.call(images))


def save_onnx(path: pathlib.Path, function: Callable, image: jax.ShapeDtypeStruct) -> Logits:
  """Writes an ONNX file, checked by onnx; returns the function as onnxruntime reads it back."""
  try:
    with _quiet():
      import jax2onnx  # pyright: ignore[reportMissingImports]
      import onnx  # pyright: ignore[reportMissingImports]
      import onnxruntime  # pyright: ignore[reportMissingImports]
  except ImportError as e:
    raise InputError(f"ONNX needs {e.name}: {installing('export')}") from e
  with _quiet(), mock.patch.object(jax.lax, "platform_dependent", _platform_default):
    model: Any = jax2onnx.to_onnx(
      function,
      inputs=[_WithBatch(image)],
      model_name="mixer_jax",
      opset=ONNX_OPSET,
      input_names=["image"],
      output_names=["logits"],
    )
  # Shapes between the operations, which the checker finds itself: jax2onnx's are wrong where it moved a transposition.
  del model.graph.value_info[:]
  path.write_bytes(model.SerializeToString())
  onnx.checker.check_model(str(path), full_check=True)
  session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
  return lambda images: np.asarray(session.run(["logits"], {"image": images})[0])


def _platform_default(*operands: Any, default: Callable, **_: Callable) -> Any:
  """Stands for jax.lax.platform_dependent, which ONNX has not: no platform is known there."""
  return default(*operands)


class _WithBatch:
  """What jax2onnx takes for an argument: a shape whose first axis has a name instead of a length."""

  def __init__(self, image: jax.ShapeDtypeStruct):
    self.shape, self.dtype = ("batch", *image.shape), image.dtype


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Hides what jax2onnx prints and logs, plugins for libraries that are absent among it."""
  before = logging.root.manager.disable
  logging.disable(logging.WARNING)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.disable(before)


FORMATS = {".stablehlo": save_stablehlo, ".onnx": save_onnx}


def parity(function: Logits, trained: trained_lib.Trained, input_type: str) -> dict[int, float]:
  """Returns batch size -> largest absolute difference of a logit from Flax in float32, on noise."""
  shape = trained.setup.options.input_shape
  model = jax.jit(make_function(trained, "float32"))
  differences = {}
  for batch in PARITY_BATCHES:
    pixels = np.random.default_rng(batch).integers(0, 256, (batch, *shape), np.uint8)
    values = np.asarray(trained.setup.normalize(jnp.asarray(pixels)))
    wanted = np.asarray(model(values))
    have = function(pixels if input_type == "uint8" else values)
    if have.shape != wanted.shape:
      raise SaveError(f"the exported function returns {have.shape}, Flax {wanted.shape}")
    differences[batch] = float(np.max(np.abs(have - wanted)))
  return differences


def description(trained: trained_lib.Trained, input_type: str) -> dict[str, Any]:
  """Returns what a program must know to use the file, as it is written beside it."""
  setup = trained.setup
  *sides, channels = setup.options.input_shape
  colours, values = COLOURS[channels], normalization.formula(setup.options.normalize, channels)
  return {
    "source": trained.name,
    "input": {
      "name": "image",
      "dtype": input_type,
      "shape": ["batch", *sides, channels],
      "values": f"{colours} pixels 0 to 255" if input_type == "uint8" else f"{colours}, {values}",
      "preprocessing": setup.options.evaluators[best(setup.options)[0]].ops,
    },
    "output": {
      "name": "logits",
      "dtype": "float32",
      "shape": ["batch", setup.options.num_classes],
      "probabilities": losses.PROBABILITIES[setup.options.loss].__name__,
    },
    "class_names": trained_lib.class_names(trained),
  }


def save(
  trained: trained_lib.Trained, output: pathlib.Path, *, input_type: str, tolerance: float
) -> dict[int, float]:
  """Writes the model and its description, `output` and `output`.json; returns the parity figures.

  Args:
    output: file; its suffix is one of FORMATS.
    input_type: see make_function.
    tolerance: of the parity figures.

  Raises:
    InputError: too large for the format, or the format's library is missing.
    SaveError: the file's logits differ from Flax by more, or it could not be written; nothing is left.
  """
  num_bytes = 4 * sum(x.size for x in jax.tree.leaves(trained.variables))
  if num_bytes > MAX_BYTES:
    raise InputError(f"{num_bytes >> 20} MiB of weights do not fit into a {output.suffix} file.")
  image = jax.ShapeDtypeStruct(trained.setup.options.input_shape, jnp.dtype(input_type))
  sidecar = output.with_name(f"{output.name}.json")
  with files.replacing(output) as partial:
    function = FORMATS[output.suffix](partial, make_function(trained, input_type), image)
    differences = parity(function, trained, input_type)
    worst = max(differences.values())
    if not worst <= tolerance:  # NaN is not
      raise SaveError(
        f"the exported logits differ from Flax by up to {worst:.1e}, more than --tolerance={tolerance:g};"
        " nothing was written. Very large logits round more coarsely: then allow more."
      )
    sidecar.write_text(json.dumps(description(trained, input_type), indent=1) + "\n")
  return differences
