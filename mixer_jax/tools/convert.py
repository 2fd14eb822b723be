"""Converts weights: between the released layout (.npz) and torch's (.safetensors), from a run, to another size.

python -m mixer_jax.tools.convert INPUT OUTPUT [--image_size=448x224] [--image_channels=1] [--num_classes=10]

INPUT: a released name, an address, a weights file, or the workdir of a run (--checkpoint=newest|best|STEP).
OUTPUT: a file that does not exist yet, .npz or .safetensors.
"""

from absl import flags
from etils import epath

from mixer_jax import files, models, schema, weights
from mixer_jax.errors import InputError
from mixer_jax.models import resizing
from mixer_jax.tools import command
from mixer_jax.training import init_from
from mixer_jax.weights import torch_layout
from mixer_jax.workdir import checkpoint, directory, provenance, restore

_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", "newest", "Checkpoint of a workdir: newest, best, or a step."
)
_IMAGE_SIZE = flags.DEFINE_string(
  "image_size", None, "Resize the weights to this image size in pixels, SIDE or HEIGHTxWIDTH."
)
_FROM_IMAGE_SIZE = flags.DEFINE_string(
  "from_image_size",
  None,
  "Image size that the input's weights are for. Default: a square, or the run's own size.",
)
_METHOD = flags.DEFINE_enum(
  "method", "auto", ["auto", "paper", "interpolate"],
  "How to resize. paper is appendix C, for whole multiples. interpolate takes any size, and is not the paper's. "
  "auto is paper where that is possible.",
)  # fmt: skip
_LAYOUT = flags.DEFINE_string(
  "layout",
  None,
  "Whose parameter names a .safetensors file gets: timm or authors. Default: timm's if timm has the model.",
)
_NUM_CLASSES = flags.DEFINE_integer(
  "num_classes", None, "Replace the head by one of zeros for this many classes.", lower_bound=1
)

_IMAGE_CHANNELS = flags.DEFINE_enum(
  "image_channels", None, ["1", "4"], "Change the stem of a model for RGB to this many channels."
)


def main(argv: list[str]) -> None:
  if len(argv) != 3:
    raise InputError("give two arguments: convert INPUT OUTPUT")
  source, output = argv[1], files.path_of(argv[2], "OUTPUT")
  if output.suffix not in (".npz", ".safetensors"):
    raise InputError(f"{output} must end in .npz or .safetensors: the suffix decides the format.")
  if output.exists():
    raise InputError(f"{output} exists; choose another name or remove it.")
  if _LAYOUT.value and output.suffix == ".npz":
    raise InputError("--layout is for .safetensors; .npz has the layout of the released files.")
  variables, class_names = _load(source)
  if _IMAGE_SIZE.value:
    variables = _resized(variables, source)
  elif _FROM_IMAGE_SIZE.value or flags.FLAGS["method"].present:
    raise InputError("--from_image_size and --method need --image_size.")
  if _IMAGE_CHANNELS.value:
    variables = weights.replace_channels(variables, int(_IMAGE_CHANNELS.value))
    print(weights.channels_line(int(_IMAGE_CHANNELS.value)))
  if _NUM_CLASSES.value:
    variables, class_names = _with_new_head(variables, source, _NUM_CLASSES.value), ()
  spec = weights.describe(variables, source)
  weights.check_values(variables, source)
  if output.suffix == ".npz":
    weights.save_npz(output, variables, class_names)
  else:
    state = torch_layout.to_torch(variables, _LAYOUT.value)
    torch_layout.save_safetensors(output, state, class_names)
  print(f"{output}: {_summary(spec)}")


def _summary(spec: weights.ModelSpec) -> str:
  family = models.FAMILIES[spec.family]
  tokens = ""
  if spec.resize_methods:
    *_, height, width, _ = spec.input_shape
    rows, columns = resizing.token_grid((height, width), spec.fields["patch_size"])
    tokens = f" for {rows * columns} tokens"
  return f"{family.TITLE}{tokens}, " + " ".join(f"{k}={v}" for k, v in spec.fields.items())


def _load(source: str) -> tuple[weights.Variables, tuple[str, ...]]:
  """Returns the variables and the names of the classes, () if there are none."""
  if workdir := directory.find_run(source):
    return _load_run(workdir)
  if flags.FLAGS["checkpoint"].present:
    raise InputError(f"--checkpoint is for the workdir of a run, which {source} is not.")
  return weights.load(source), weights.class_names(source)


def _load_run(workdir: epath.Path) -> tuple[weights.Variables, tuple[str, ...]]:
  directory.load_config(workdir)  # raises if this is not the workdir of a run
  step, _ = checkpoint.choose(workdir, _CHECKPOINT.value)
  trained_by = provenance.read(workdir, step)
  print(f"{workdir} step {step}" + (f" of run {trained_by.run}" if trained_by else ""))
  return restore.load_variables(workdir, step), trained_by.class_names if trained_by else ()


def _resized(variables: weights.Variables, source: str) -> weights.Variables:
  # A run knows its image size, which weights alone may not.
  is_run = directory.find_run(source) is not None
  spec = init_from.describe(source) if is_run else weights.describe(variables, source)
  family = models.FAMILIES[spec.family]
  if not spec.resize_methods:
    raise InputError(
      f"{source} is a {family.TITLE}, whose parameters are those for every image size that it takes."
    )
  given = _size(_FROM_IMAGE_SIZE) if _FROM_IMAGE_SIZE.value else None
  if given is None and not spec.knows_sides:
    raise InputError(f"{source} is for no square: give --from_image_size=HEIGHTxWIDTH.")
  old_grid = weights.grid_of(spec, given)
  new_grid = resizing.token_grid(_size(_IMAGE_SIZE), spec.fields["patch_size"], spec.halvings)
  method = resizing.choose_method(old_grid, new_grid, _METHOD.value, spec.resize_methods)
  resized = weights.resize(variables, old_grid, new_grid, method)
  print(weights.resize_line(old_grid, new_grid, method))
  return resized


def _with_new_head(
  variables: weights.Variables, source: str, num_classes: int
) -> weights.Variables:
  spec = weights.describe(variables, source)
  head = models.FAMILIES[spec.family].HEAD.values()
  fields = {k: v for k, v in spec.fields.items() if k not in head}
  wanted = spec._replace(fields={**fields, "num_classes": num_classes}).abstract_variables()
  return weights.replace_head(variables, wanted)


def _size(flag: flags.FlagHolder[str | None]) -> tuple[int, int]:
  try:
    return schema.sides(flag.value or "")
  except InputError as e:
    raise InputError(f"--{flag.name}: {e}") from e


if __name__ == "__main__":
  command.run(main)
