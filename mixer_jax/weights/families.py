"""What parameters tell of their model: its family by their names, its fields by their shapes."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mixer_jax.errors import InputError

Flat = Mapping[str, Any]  # slash name -> array or jax.ShapeDtypeStruct
Shapes = dict[str, tuple[int, ...]]


class Family(NamedTuple):
  """A model family as parameters show it.

  Attributes:
    name: key of `models.FAMILIES`.
    title: what messages call it.
    first: a name that only its parameters begin with.
    head: module of the classifier.
    head_axes: leading axes of its kernel.
    last_norm: a parameter as wide as what reaches the head, but for a tanh layer.
    fields: parameters -> the module's fields; raises KeyError, ValueError or IndexError if they are others.
    shapes: (parameters, fields) -> shape of every parameter of that model, for the same image size.
  """

  name: str
  title: str
  first: str
  head: str
  head_axes: tuple[int, ...]
  last_norm: str
  fields: Callable[[Flat], dict[str, Any]]
  shapes: Callable[[Flat, Mapping[str, Any]], Shapes]


def _count(pattern: str, flat: Flat) -> int:
  """Returns how many different beginnings of names match."""
  return len({m[0] for name in flat if (m := re.match(pattern, name))})


def _dense(name: str, size_in: int, size_out: int) -> Shapes:
  return {f"{name}/kernel": (size_in, size_out), f"{name}/bias": (size_out,)}


def _norm(name: str, size: int) -> Shapes:
  return {f"{name}/scale": (size,), f"{name}/bias": (size,)}


def _group_norm(name: str, size: int) -> Shapes:
  return {f"{name}/gamma": (size,), f"{name}/beta": (size,)}


def _mixer_fields(flat: Flat) -> dict[str, Any]:
  patch_size, _, _, hidden_dim = flat["stem/kernel"].shape
  _, tokens_mlp_dim = flat["MixerBlock_0/token_mixing/Dense_0/kernel"].shape
  _, channels_mlp_dim = flat["MixerBlock_0/channel_mixing/Dense_0/kernel"].shape
  return dict(
    patch_size=patch_size,
    num_blocks=_count(r"MixerBlock_\d+", flat),
    hidden_dim=hidden_dim,
    tokens_mlp_dim=tokens_mlp_dim,
    channels_mlp_dim=channels_mlp_dim,
    num_classes=flat["head/kernel"].shape[1] if "head/kernel" in flat else None,
  )


def _mixer_shapes(flat: Flat, fields: Mapping[str, Any]) -> Shapes:
  c, patch = fields["hidden_dim"], fields["patch_size"]
  num_tokens = flat["MixerBlock_0/token_mixing/Dense_0/kernel"].shape[0]
  shapes: Shapes = {"stem/kernel": (patch, patch, 3, c), "stem/bias": (c,)}
  for i in range(fields["num_blocks"]):
    block = f"MixerBlock_{i}"
    shapes |= _norm(f"{block}/LayerNorm_0", c) | _norm(f"{block}/LayerNorm_1", c)
    for mlp, size, mlp_dim in (
      ("token_mixing", num_tokens, fields["tokens_mlp_dim"]),
      ("channel_mixing", c, fields["channels_mlp_dim"]),
    ):
      shapes |= _dense(f"{block}/{mlp}/Dense_0", size, mlp_dim)
      shapes |= _dense(f"{block}/{mlp}/Dense_1", mlp_dim, size)
  shapes |= _norm("pre_head_layer_norm", c)
  return shapes | (
    _dense("head", c, fields["num_classes"]) if fields["num_classes"] is not None else {}
  )


def _vit_fields(flat: Flat) -> dict[str, Any]:
  patch_size, _, _, hidden_dim = flat["embedding/kernel"].shape
  block = "Transformer/encoderblock_0"
  _, num_heads, _ = flat[f"{block}/MultiHeadDotProductAttention_1/query/kernel"].shape
  _, mlp_dim = flat[f"{block}/MlpBlock_3/Dense_0/kernel"].shape
  hidden = flat.get("pre_logits/kernel")
  return dict(
    patch_size=patch_size,
    num_blocks=_count(r"Transformer/encoderblock_\d+", flat),
    hidden_dim=hidden_dim,
    mlp_dim=mlp_dim,
    num_heads=num_heads,
    representation_size=0 if hidden is None else hidden.shape[1],
    num_classes=flat["head/kernel"].shape[1] if "head/kernel" in flat else None,
  )


def _vit_shapes(flat: Flat, fields: Mapping[str, Any]) -> Shapes:
  c, patch, heads = fields["hidden_dim"], fields["patch_size"], max(fields["num_heads"], 1)
  positions = "Transformer/posembed_input/pos_embedding"
  shapes: Shapes = {
    "cls": (1, 1, c),
    positions: (1, flat[positions].shape[1] if positions in flat else 1, c),
    "embedding/kernel": (patch, patch, 3, c),
    "embedding/bias": (c,),
  }
  for i in range(fields["num_blocks"]):
    block = f"Transformer/encoderblock_{i}"
    shapes |= _norm(f"{block}/LayerNorm_0", c) | _norm(f"{block}/LayerNorm_2", c)
    attention = f"{block}/MultiHeadDotProductAttention_1"
    for name in ("query", "key", "value"):
      shapes[f"{attention}/{name}/kernel"] = (c, heads, c // heads)
      shapes[f"{attention}/{name}/bias"] = (heads, c // heads)
    shapes |= {f"{attention}/out/kernel": (heads, c // heads, c), f"{attention}/out/bias": (c,)}
    shapes |= _dense(f"{block}/MlpBlock_3/Dense_0", c, fields["mlp_dim"])
    shapes |= _dense(f"{block}/MlpBlock_3/Dense_1", fields["mlp_dim"], c)
  shapes |= _norm("Transformer/encoder_norm", c)
  if hidden := fields["representation_size"]:
    shapes |= _dense("pre_logits", c, hidden)
  if fields["num_classes"] is None:
    return shapes
  return shapes | _dense("head", hidden or c, fields["num_classes"])


def _resnet_fields(flat: Flat) -> dict[str, Any]:
  stages = _count(r"resnet/block\d+", flat)
  head = flat.get("resnet/head/conv2d/kernel")
  return dict(
    num_units=tuple(_count(rf"resnet/block{i + 1}/unit\d+", flat) for i in range(stages)),
    width=flat["resnet/root_block/standardized_conv2d/kernel"].shape[3],
    num_classes=None if head is None else head.shape[3],
  )


def _resnet_shapes(flat: Flat, fields: Mapping[str, Any]) -> Shapes:
  del flat
  size_in = fields["width"]
  shapes: Shapes = {"resnet/root_block/standardized_conv2d/kernel": (7, 7, 3, size_in)}
  for i, num_units in enumerate(fields["num_units"]):
    width = fields["width"] * 2**i
    for j in range(num_units):
      unit = f"resnet/block{i + 1}/unit{j + 1:02d}"
      for part, size, a, b in (
        ("a", 1, size_in, width), ("b", 3, width, width), ("c", 1, width, 4 * width),
      ):  # fmt: skip
        shapes |= _group_norm(f"{unit}/{part}/group_norm", a)
        shapes[f"{unit}/{part}/standardized_conv2d/kernel"] = (size, size, a, b)
      if j == 0:
        shapes[f"{unit}/a/proj/standardized_conv2d/kernel"] = (1, 1, size_in, 4 * width)
      size_in = 4 * width
  shapes |= _group_norm("resnet/group_norm", size_in)
  if (k := fields["num_classes"]) is not None:
    shapes |= {"resnet/head/conv2d/kernel": (1, 1, size_in, k), "resnet/head/conv2d/bias": (k,)}
  return shapes


_MIXER = Family(
  name="mixer",
  title="Mixer",
  first="stem/",
  head="head",
  head_axes=(),
  last_norm="pre_head_layer_norm/scale",
  fields=_mixer_fields,
  shapes=_mixer_shapes,
)
_VIT = Family(
  name="vit",
  title="Vision Transformer",
  first="Transformer/",
  head="head",
  head_axes=(),
  last_norm="Transformer/encoder_norm/scale",
  fields=_vit_fields,
  shapes=_vit_shapes,
)
_RESNET = Family(
  name="resnet",
  title="BiT ResNet",
  first="resnet/",
  head="resnet/head/conv2d",
  head_axes=(1, 1),
  last_norm="resnet/group_norm/gamma",
  fields=_resnet_fields,
  shapes=_resnet_shapes,
)
FAMILIES = {family.name: family for family in (_MIXER, _VIT, _RESNET)}


def family_of(flat: Flat, where: str) -> Family:
  """Returns the family that parameters belong to by their names.

  Raises:
    InputError: to none that is known.
  """
  for family in FAMILIES.values():
    if any(name.startswith(family.first) for name in flat):
      return family
  known = ", ".join(f"{family.title}'s" for family in FAMILIES.values())
  begin = ", ".join(sorted(flat)[:5]) or "none"
  raise InputError(f"{where} holds none of {known} parameters; it begins with {begin}.")
