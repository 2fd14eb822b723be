"""Converts weights: between the released layout (.npz) and timm's (.safetensors), from a run, to another size.

python -m mixer_jax.tools.convert INPUT OUTPUT [--image_size=448 | --image_size=448x224] [--num_classes=10]

INPUT: a released name, an address, a weights file, or the workdir of a run (--checkpoint=newest|best|STEP).
OUTPUT: a file that does not exist yet, .npz or .safetensors.
"""

import re
from typing import Any, cast

import jax
from absl import app, flags
from etils import epath

from mixer_jax import weights
from mixer_jax.errors import InputError
from mixer_jax.tools import command
from mixer_jax.weights import resize, timm

_CHECKPOINT = flags.DEFINE_string("checkpoint", "newest", "Of a workdir: newest, best, or a step.")
_IMAGE_SIZE = flags.DEFINE_string(
  "image_size", None, "Resize to this image size in pixels, SIDE or HEIGHTxWIDTH."
)
_FROM_IMAGE_SIZE = flags.DEFINE_string(
  "from_image_size", None, "The input's image size; default: square."
)
_METHOD = flags.DEFINE_enum(
  "method", "auto", ["auto", "paper", "interpolate"],
  "paper: appendix C, for whole multiples; interpolate: any size, not the paper's; auto: paper if possible.",
)  # fmt: skip
_NUM_CLASSES = flags.DEFINE_integer(
  "num_classes", None, "Replace the head by one of zeros.", lower_bound=1
)


def main(argv: list[str]) -> None:
  if len(argv) != 3:
    raise InputError("give two arguments: convert INPUT OUTPUT")
  source, output = argv[1], epath.Path(argv[2]).expanduser()
  if output.suffix not in (".npz", ".safetensors"):
    raise InputError(f"{output} must end in .npz or .safetensors: that says what is written.")
  if output.exists():
    raise InputError(f"{output} exists; choose another name or remove it.")
  params = _load(source)
  fields = weights.model_fields(params, source)
  if _IMAGE_SIZE.value:
    params = _resized(params, fields, source)
  elif _FROM_IMAGE_SIZE.value or flags.FLAGS["method"].present:
    raise InputError("--from_image_size and --method need --image_size.")
  if _NUM_CLASSES.value:
    params = weights.replace_head(params, _NUM_CLASSES.value)
  if output.suffix == ".npz":
    weights.save_npz(output, params)
  else:
    timm.save_safetensors(output, timm.to_timm(params))
  sizes = " ".join(f"{k}={v}" for k, v in weights.model_fields(params).items())
  tokens = f" for {weights.num_tokens(params)} tokens" if "patch_size" in fields else ""
  print(f"{output}: {weights.FAMILIES[weights.family(params)].title}{tokens}, {sizes}")


def _load(source: str) -> dict[str, Any]:
  directory = epath.Path(source).expanduser() if source not in weights.RELEASED else None
  if directory is not None and "://" not in source and directory.is_dir():
    return _load_run(directory.absolute())
  if flags.FLAGS["checkpoint"].present:
    raise InputError(f"--checkpoint is for the workdir of a run, which {source} is not.")
  return weights.load(source)


def _load_run(workdir: epath.Path) -> dict[str, Any]:
  from mixer_jax import inference

  which = _CHECKPOINT.value
  if which not in ("newest", "best") and not which.isdigit():
    raise InputError(f"--checkpoint={which} is neither newest, best nor a step.")
  trained = inference.load(
    workdir=str(workdir), config=None, which=int(which) if which.isdigit() else which
  )
  print(trained.name)
  return jax.device_get(trained.params)


def _resized(params: dict[str, Any], fields: dict[str, Any], source: str) -> dict[str, Any]:
  if "patch_size" not in fields:
    raise InputError(f"{source} is a ResNet, whose parameters are those for every image size.")
  patch_size = fields["patch_size"]
  tokens = weights.num_tokens(params)
  if _FROM_IMAGE_SIZE.value:
    old_grid = weights.token_grid(_size(_FROM_IMAGE_SIZE), patch_size)
  else:
    side = round(tokens**0.5)
    if side * side != tokens:
      raise InputError(f"{tokens} tokens are no square: give --from_image_size=HEIGHTxWIDTH.")
    old_grid = side, side
  new_grid = weights.token_grid(_size(_IMAGE_SIZE), patch_size)
  family = weights.family(params)
  method = resize.resize_method(old_grid, new_grid, cast(resize.Method, _METHOD.value), family)
  how = "by interpolation" + (", which is not the paper's" if family == "mixer" else "")
  how = "as in appendix C" if method == "paper" else how
  print(f"from {old_grid[0]}x{old_grid[1]} to {new_grid[0]}x{new_grid[1]} tokens {how}")
  return weights.resize_tokens(params, old_grid, new_grid, method)


def _size(flag: flags.FlagHolder[str | None]) -> tuple[int, int]:
  m = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", flag.value or "")
  if not m:
    raise InputError(f"--{flag.name}={flag.value} is neither SIDE nor HEIGHTxWIDTH in pixels.")
  return int(m[1]), int(m[2] or m[1])


if __name__ == "__main__":
  command.run(app.run, main)
