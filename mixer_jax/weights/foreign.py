"""State of other programs: a prefix that all its names have, and whose it is."""

import itertools
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

Array = TypeVar("Array")
_MAX_PARTS = 4  # of a prefix: "module._orig_mod." has two
_FROM_TIMM = "timm's vit_* models have the same weights: save the state dictionary of one."
_LIBRARIES = (
  (r"(vit|deit)\.(embeddings|encoder)\.|(vit\.)?encoder\.layer\.\d+\.attention\.attention\.query",
   "Hugging Face transformers' Vision Transformer", _FROM_TIMM),
  (r"encoder\.layers\.encoder_layer_\d+\.|conv_proj\.",
   "torchvision's Vision Transformer", _FROM_TIMM),
  (r"transformer\.(embeddings\.position_embeddings|encoder\.layer\.\d+\.attention_norm)",
   "jeonsworld/ViT-pytorch's Vision Transformer", "Load the authors' .npz that it was made of."),
  (r"(visual|vision_model)\.", "a CLIP", "It has an image encoder that is not among the models here."),
  (r"layers\.\d+\.blocks\.\d+\.attn\.relative_position_bias_table",
   "a Swin Transformer", "That is not among the models here."),
  (r"layer1\.0\.(conv1|bn1)\.",
   "a ResNet with BatchNorm, torchvision's or timm's", "The ResNet here is BiT's, timm's resnetv2_*_bit."),
)  # fmt: skip
"""Expression that one of the names begins with, perhaps below a module -> whose they are, and what to do."""


def without_prefix(
  state: Mapping[str, Array], known: Callable[[Mapping[str, Array]], bool], where: str
) -> dict[str, Array]:
  """Returns the state without the shortest prefix of all its names that leaves known ones; as it is if there is none.

  Prefixes end at dots and slashes: "module.", "params/". The one that is taken off is printed to stderr.

  Args:
    state: name -> array.
    known: whether names without a prefix are a model's.
    where: the file, for the line.
  """
  first = next(iter(state), "")
  for end in itertools.islice(re.finditer(r"[./]", first), _MAX_PARTS):
    prefix = first[: end.end()]
    if not all(name.startswith(prefix) for name in state):
      break
    shorter = {name.removeprefix(prefix): value for name, value in state.items()}
    if known(shorter):
      print(f"{where}: the prefix {prefix} of all names is taken off", file=sys.stderr, flush=True)
      return shorter
  return dict(state)


def whose(names: Iterable[str]) -> str | None:
  """Returns a sentence on the program that names are known of, and what to do; None if they are not."""
  names = list(names)
  for expression, title, advice in _LIBRARIES:
    if any(re.match(rf"(\w+\.)?({expression})", name) for name in names):
      return f"It is of {title}. {advice}"
  return None
