"""Models as the Hugging Face hub keeps them: model.safetensors in timm's layout, and config.json as timm reads and writes it.

A directory with these files is the same (timm, models/_hub.py: "local-dir:"). What timm's keys cannot say is below the key
"mixer_jax" of config.json: family, fields, image_size, frames, normalize, ops and loss.
"""

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from mixer_jax import files
from mixer_jax.errors import InputError, installing
from mixer_jax.weights.released import RELEASED, Released

WEIGHTS, CONFIG, OWN = "model.safetensors", "config.json", "mixer_jax"
_ADDRESS = re.compile(r"hf://([^/@]+/[^/@]+)(?:@([^@]+))?")
_PILLOW = "decode(mode='pillow')|resize_short(crop_pct={}, interpolation={!r})|central_crop(rounding='even')"


def find(source: str | os.PathLike[str]) -> epath.Path | None:
  """Returns the weights file of "hf://OWNER/NAME[@REVISION]" or of a directory. None if `source` is neither.

  Raises:
    InputError: a repository or file that is not there, or huggingface_hub is not installed.
  """
  if m := _ADDRESS.fullmatch(str(source)):
    return _fetched(m[1], m[2], WEIGHTS)
  if "://" in str(source):
    return None
  path = files.path_of(str(source), "the name of the weights") / WEIGHTS
  return path if path.is_file() else None


def _fetched(repository: str, revision: str | None, file: str) -> epath.Path:
  library = import_library()
  try:
    return epath.Path(library.hf_hub_download(repository, file, revision=revision))
  except (OSError, ValueError) as e:  # which all of its own are
    first = str(e).strip().partition("\n")[0]
    raise InputError(f"hf://{repository} has no {file} that can be loaded: {first}") from e


def import_library() -> Any:
  """Returns huggingface_hub; raises InputError if it is not installed."""
  try:
    import huggingface_hub  # pyright: ignore[reportMissingImports]
  except ImportError as e:
    raise InputError(f"hf:// needs huggingface_hub: {installing('hub')}") from e
  return huggingface_hub


def known(source: str) -> Released | None:
  """Returns what is known of released weights or of a model of the hub. None of other weights.

  Raises:
    InputError: a config.json that cannot be read; see `find`.
  """
  if source in RELEASED or find(source) is None:
    return RELEASED.get(source)
  m = _ADDRESS.fullmatch(source)
  path = _fetched(m[1], m[2], CONFIG) if m else epath.Path(source).expanduser() / CONFIG
  try:
    config = json.loads(path.read_text())
    return _of_own(source, config[OWN]) if OWN in config else _of_timm(source, config)
  except (OSError, ValueError, TypeError, LookupError, AttributeError) as e:
    raise InputError(
      f"{path} is no configuration of a model as timm writes it: {type(e).__name__} {e}"
    ) from e


def _of_own(source: str, own: Mapping[str, Any]) -> Released:
  return Released(
    source,
    "",
    dict(own["fields"]),
    family=own["family"],
    image_size=own["image_size"],
    frames=own.get("frames"),
    crop=own["ops"],
    normalize=own["normalize"],
    loss=own["loss"],
  )


def _of_timm(source: str, written: Mapping[str, Any]) -> Released:
  """Of a model that timm wrote; its MLPs and transformers have the exact GELU."""
  cfg = written.get("pretrained_cfg", written)
  fields = {"gelu": "erf"} if re.match("mixer|resmlp|vit|deit", written["architecture"]) else {}
  height, width = cfg.get("input_size", (3, 224, 224))[1:]
  return Released(
    source,
    "",
    fields,
    image_size=f"{height}x{width}",
    crop=_PILLOW.format(float(cfg.get("crop_pct", 0.875)), cfg.get("interpolation", "bicubic")),
    normalize=(*cfg["mean"], *cfg["std"]),
    licence=cfg.get("license", ""),
  )


def architecture(
  family: str, fields: Mapping[str, Any], sides: tuple[int, int], channels: int
) -> tuple[str, dict[str, Any]] | None:
  """Returns timm's name for a model, and the arguments of timm.create_model that it needs. None if timm has no such model.

  timm's Mixers and ResMLPs have the exact GELU, which no argument in a file changes.
  """
  height, width = sides
  arguments = {"img_size": height if height == width else [height, width], "in_chans": channels}
  size: Any = tuple(fields.get(k) for k in ("patch_size", "num_blocks", "hidden_dim"))
  if family == "mixer":
    name = _MIXERS.get(size)
    ratios = [fields[k] / fields["hidden_dim"] for k in ("tokens_mlp_dim", "channels_mlp_dim")]
    plain = fields.get("token_mixing", "mlp") == "mlp"
    return (name, {**arguments, "mlp_ratio": ratios}) if name and plain else None
  if family == "res_mlp":
    name = _RES_MLPS.get(size)
    plain = fields.get("token_mixing", "linear") == "linear"
    return (name, arguments) if name and plain else None
  if family == "vit" and not fields.get("representation_size"):
    return "vit_base_patch16_224", {
      **arguments,
      **dict(zip(("patch_size", "depth", "embed_dim"), size, strict=True)),
      "num_heads": fields["num_heads"],
      "mlp_ratio": fields["mlp_dim"] / fields["hidden_dim"],
      "act_layer": {"tanh": "gelu_tanh", "erf": "gelu"}[fields.get("gelu", "tanh")],
    }
  return None


_MIXERS = {
  (patch, blocks, dim): f"mixer_{letter}{patch}_224"
  for letter, blocks, dim in (("s", 8, 512), ("b", 12, 768), ("l", 24, 1024))
  for patch in (16, 32)
}
_RES_MLPS = {
  (16, 12, 384): "resmlp_12_224",
  (16, 24, 384): "resmlp_24_224",
  (16, 36, 384): "resmlp_36_224",
  (8, 24, 768): "resmlp_big_24_224",
}
