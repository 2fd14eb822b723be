"""Exports a trained model, weights inside, for programs that have neither Flax nor this project.

python -m mixer_jax.tools.export --workdir=DIR --output=model.stablehlo
python -m mixer_jax.tools.export --config=configs/NAME.py --weights=FILE.npz --output=model.onnx

The exported function maps images (batch, height, width, channels), of any batch size, to float32 logits. It is
read back from the file and compared with Flax before the file gets its name. ONNX needs
pip install '.[export]'.
"""

from absl import flags

from mixer_jax.tools import command, model_flags

_OUTPUT = flags.DEFINE_string(
  "output", None, "File to write: .stablehlo (jax.export) or .onnx.", required=True
)
_INPUT = flags.DEFINE_enum(
  "input",
  "uint8",
  ["uint8", "float32"],
  "Type of the exported function's images: uint8 pixels, which it normalises, or float32 values as config.normalize makes them.",
)
_TOLERANCE = flags.DEFINE_float(
  "tolerance", 1e-5, "Largest allowed difference of a logit from Flax in float32.", lower_bound=0.0
)


def main(argv: list[str]) -> None:
  command.no_arguments(argv)
  from mixer_jax.inference import export, predict

  output = predict.check_output(_OUTPUT.value, tuple(export.FORMATS))
  import jax

  # Accelerators multiply float32 more coarsely by default; on the CPU both sides are exact float32.
  jax.config.update("jax_platforms", "cpu")
  trained = model_flags.load()
  differences = export.save(trained, output, input_type=_INPUT.value, tolerance=_TOLERANCE.value)
  shown = ", ".join(f"{d:.1e} (batch {b})" for b, d in differences.items())
  print(
    f"{trained.name} -> {output}: {output.stat().st_size:,} bytes, {_INPUT.value} {trained.setup.options.examples}"
  )
  print(f"largest difference of a logit from Flax in float32: {shown}")
  print(f"input, output and class names: {output}.json")


if __name__ == "__main__":
  command.run(main)
