"""SPACH (Zhao et al., 2021, arXiv:2108.13002): convolution, attention and MLP as mixing of tokens in one framework.

Axis letters: b images, h w pixels or positions, s tokens (positions in raster order), c channels, k classes, n heads.
Facts: microsoft/SPACH, models/spach and models/spach_ms.
"""

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mixer_jax.configuration import NonNegativeInt, PositiveInt
from mixer_jax.errors import InputError
from mixer_jax.models import base, layers, resizing
from mixer_jax.models.layers import Index, Kept, Mask
from mixer_jax.models.resizing import Grid

TITLE = "SPACH"
_HYBRID = ("conv3", "conv2+attn2", "conv2+attn10", "conv1+attn2")
_XAVIER = nn.initializers.xavier_uniform()
_HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _variant(hidden_dim: int, mlp_ratio: int, *stages: str, **fields: Any) -> dict[str, Any]:
  return (
    dict(
      patch_size=16 if len(stages) == 1 else 4,
      hidden_dim=hidden_dim,
      stages=stages,
      mlp_ratio=mlp_ratio,
      shared_mixing=False,
      stem_channels=0,
    )
    | fields
  )


VARIANTS = {
  "XXS/conv": _variant(384, 2, "conv12"),
  "XXS/attn": _variant(192, 2, "attn12"),
  "XXS/mlp": _variant(384, 2, "mlp12"),
  "XS/conv": _variant(384, 2, "conv24"),
  "XS/attn": _variant(384, 2, "attn12"),
  "XS/mlp": _variant(384, 2, "mlp24"),
  "S/conv": _variant(512, 3, "conv24"),
  "S/attn": _variant(512, 3, "attn12"),
  "S/mlp": _variant(512, 3, "mlp24"),
  "MS-XXS/conv": _variant(64, 2, "conv2", "conv2", "conv6", "conv2"),
  "MS-XXS/attn": _variant(32, 2, "conv2", "attn2", "attn6", "attn2"),
  "MS-XXS/mlp": _variant(64, 2, "conv2", "mlp2", "mlp6", "mlp2"),
  "MS-XS/conv": _variant(96, 2, "conv3", "conv4", "conv12", "conv3"),
  "MS-XS/attn": _variant(64, 2, "conv3", "attn4", "attn12", "attn3"),
  "MS-XS/mlp": _variant(96, 2, "conv3", "mlp4", "mlp12", "mlp3"),
  "MS-XS/hybrid": _variant(96, 2, "conv3", "conv4", "conv2+attn10", "conv1+attn2"),
  "MS-S/conv": _variant(128, 3, "conv3", "conv4", "conv12", "conv3"),
  "MS-S/attn": _variant(96, 3, "conv3", "attn4", "attn12", "attn3"),
  "MS-S/mlp": _variant(128, 3, "conv3", "mlp4", "mlp12", "mlp3"),
  "MS-S/hybrid": _variant(128, 3, *_HYBRID),
  "MS-S+/hybrid": _variant(128, 3, *_HYBRID, stem_channels=64),
}
VARIANTS |= {f"{k}-shared": v | dict(shared_mixing=True) for k, v in VARIANTS.items() if "mlp" in k}
"""Published size and kind -> fields of the model."""


class Attention(layers.Layer):
  """Self-attention: out(softmax(query·keyᵀ/√(c/n))·value) in n heads; the softmax is float32 at least."""

  num_heads: int

  @nn.compact
  def __call__(self, x: Float[Array, "b s c"], index: Index, train: bool) -> Float[Array, "b s c"]:
    del index  # draws nothing
    dense: dict[str, Any] = dict(
      kernel_init=_XAVIER, dot_general=layers.dot_general(train), **self.dtypes
    )
    qkv = nn.Dense(3 * x.shape[-1], name="qkv", **dense)(x)
    query, key, value = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, self.num_heads, -1), 2, 0)
    scores = jnp.einsum("bsnd,btnd->bnst", query * query.shape[-1] ** -0.5, key)
    scores = scores.astype(jnp.promote_types(self.dtype, jnp.float32))
    y = jnp.einsum("bnst,btnd->bsnd", jax.nn.softmax(scores).astype(value.dtype), value)
    return nn.Dense(x.shape[-1], name="out", **dense)(y.reshape(x.shape))


class TokenMlp(layers.Layer):
  """MLP over the tokens, the same for all channels."""

  mlp_dim: int
  gelu: layers.Gelu = "erf"

  @nn.compact
  def __call__(self, x: Float[Array, "b s c"], index: Index, train: bool) -> Float[Array, "b s c"]:
    mlp = layers.MlpBlock(
      self.mlp_dim, gelu=self.gelu, kernel_init=_XAVIER, name="mlp", **self.dtypes
    )
    return jnp.swapaxes(mlp(jnp.swapaxes(x, 1, 2), index, train=train), 1, 2)


class SpachBlock(layers.Block):
  """u -> x = u + gamma·mixing(norm(u)) + depthwise(u), with a 3×3 convolution, -> x + MLP(norm(x)).

  Without a `mixing`, x = u + depthwise(u). Branch 0 is the mixing, 1 the MLP.
  """

  mlp_dim: int
  mixing: Any  # a function that makes the module in this one, a module that blocks share, or None

  @nn.compact
  def __call__(
    self, u: Float[Array, "b h w c"], index: Index, kept: Kept, mask: Mask, train: bool
  ) -> Float[Array, "b h w c"]:
    batch, _, _, c = u.shape
    x = u
    if self.mixing is not None:
      mixing = self.mixing if isinstance(self.mixing, nn.Module) else self.mixing(name="mixing")
      y = nn.LayerNorm(name="norm_tokens", **self.dtypes)(u).reshape(batch, -1, c)
      y = layers.LayerScale(1e-4, name="scale", **self.dtypes)(mixing(y, index, train))
      x = x + self.drop_path(y, kept, 0).reshape(u.shape)
    x = x + layers.depthwise(u, 3, kernel_init=_HE_NORMAL, name="depthwise", **self.dtypes)
    y = layers.MlpBlock(
      self.mlp_dim, gelu=self.gelu, kernel_init=_XAVIER, name="channel_mixing", **self.dtypes
    )(nn.LayerNorm(name="norm_channels", **self.dtypes)(x), index, train=train)
    return x + self.drop_path(y, kept, 1)


class Stem(layers.Layer):
  """Three convolutions (7×7 with stride 2, then 3×3), each normalised, with ReLU; then patches of half the size."""

  channels: int
  patch_size: int
  hidden_dim: int

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w p"], mask: Mask, train: bool
  ) -> Float[Array, "b y x c"]:
    for size, stride in ((7, 2), (3, 1), (3, 1)):
      x = layers.conv(
        x, self.channels, size, stride=stride, use_bias=False, kernel_init=_HE_NORMAL, **self.dtypes
      )
      x = nn.relu(layers.batch_norm(x, mask, train, **self.dtypes))
    return _patches(x, self.hidden_dim, self.patch_size // 2, **self.dtypes)


def _patches(x: Array, features: int, size: int, **fields: Any) -> Array:
  """Convolves patches; what fills none at the lower and the right border is left out."""
  kernel = (size, size)
  return nn.Conv(
    features, kernel, strides=kernel, padding="VALID", kernel_init=_HE_NORMAL, **fields
  )(x)


class Model(base.BlockModel):
  """SPACH: stem -> LayerNorm -> stages of SpachBlock -> LayerNorm -> mean over positions -> head.

  Between the stages a 2×2 convolution with stride 2 and twice as many channels, then GroupNorm of one group: it
  normalises an image's whole map. With one stage, all blocks drop their branches with the same probability, stoch_depth; the
  depthwise convolution is never dropped. Sows every stage's map (`stage_<i>`), every block's (`block_<i>`), and `pre_logits`.

  Attributes:
    patch_size: side of a square patch in pixels.
    hidden_dim: channels of the first stage.
    stages: blocks of each stage by their mixing of tokens: "conv", the depthwise convolution alone; "attn", attention
      besides; "mlp", an MLP over the tokens besides. "conv2+attn10" is 2 of the one, then 10 of the other.
    mlp_ratio: hidden width of channel mixing, in a stage's channels.
    num_heads: attention's heads n in every stage. Default: a 32nd of hidden_dim, as in all published sizes.
    token_mlp_dims: hidden widths of the stages' MLPs over the tokens. Default: half the stage's tokens.
    shared_mixing: the blocks of a stage share their attention or MLP over the tokens, but not gamma and norm.
    stem_channels: width of three convolutions before the patches; 0: the patches alone.
  """

  patch_size: PositiveInt
  hidden_dim: PositiveInt
  stages: tuple[str, ...]
  mlp_ratio: PositiveInt
  num_heads: PositiveInt | None = None
  token_mlp_dims: tuple[int, ...] | None = None
  shared_mixing: bool = False
  stem_channels: NonNegativeInt = 0

  def check(self, sides: tuple[int, ...]) -> None:
    stages = _kinds(self.stages)
    heads = _heads(self.num_heads, self.hidden_dim)
    used = {kind for kinds in stages for kind in kinds}
    if "attn" in used and self.hidden_dim % heads:
      raise InputError(f"num_heads {heads} does not divide hidden_dim {self.hidden_dim}.")
    if "mlp" in used:
      resizing.token_grid(sides, self.patch_size, len(stages) - 1)
    if min(sides) < (least := self.patch_size * 2 ** (len(stages) - 1)):
      raise InputError(
        f"an image of {sides[0]}x{sides[1]} pixels is smaller than a patch of the last stage, {least}x{least}."
      )
    if self.shared_mixing and any({"attn", "mlp"} <= {*kinds} for kinds in stages):
      raise InputError(f"shared_mixing needs one kind of mixing a stage, not stages={self.stages}.")
    widths = self.token_mlp_dims or [1] * len(stages)
    if len(widths) != len(stages) or any(
      "mlp" in kinds and n < 1 for n, kinds in zip(widths, stages, strict=False)
    ):
      raise InputError(
        f"token_mlp_dims is {widths}; expected a number for each stage, from 1 for mlp."
      )
    if self.stem_channels and self.patch_size % 2:
      raise InputError(f"patch_size {self.patch_size} is odd, but the stem halves the image.")

  def logits(self, image: Array, index: Index, mask: Mask, train: bool) -> Array:
    depths = [len(kinds) for kinds in _kinds(self.stages)]
    x = self.run_stages(SpachBlock, depths, image, index, mask, train)
    x = nn.LayerNorm(name="pre_head_layer_norm", **self.dtypes)(x)
    return self.classify(jnp.mean(x, axis=(1, 2), dtype=jnp.float32))

  def rates(self, depths: Sequence[int]) -> list[float]:
    return super().rates(depths) if len(depths) > 1 else [self.stoch_depth] * depths[0]

  def stage_input(self, x: Array, stage: int, mask: Mask, train: bool) -> Array:
    if stage:
      width = self.hidden_dim * 2**stage
      x = _patches(x, width, 2, use_bias=False, name=f"downsample_{stage}", **self.dtypes)
      # Its default axes, all but the batch's, but jax2onnx writes for the default an operation that ONNX has abolished.
      norm = nn.GroupNorm(
        1, epsilon=1e-5, reduction_axes=(3, 2, 1), name=f"norm_downsample_{stage}", **self.dtypes
      )
      return norm(x)
    if self.stem_channels:
      stem = Stem(self.stem_channels, self.patch_size, self.hidden_dim, name="stem", **self.dtypes)
      x = stem(x, mask, train)
    else:
      x = _patches(x, self.hidden_dim, self.patch_size, name="stem", **self.dtypes)
    return nn.LayerNorm(name="norm_stem", **self.dtypes)(x)

  def block_fields(self, x: Array, stage: int) -> list[dict[str, Any]]:
    kinds = _kinds(self.stages)[stage]
    widths = self.token_mlp_dims or [_half(x.shape[1] * x.shape[2])] * len(self.stages)
    mixings: dict[str, Any] = {
      "attn": functools.partial(Attention, _heads(self.num_heads, self.hidden_dim), **self.dtypes),
      "mlp": functools.partial(TokenMlp, widths[stage], self.gelu, **self.dtypes),
    }
    if self.shared_mixing:
      name = f"SharedMixing_{stage}"
      mixings = {kind: make(name=name) for kind, make in mixings.items() if kind in kinds}
    mlp_dim = x.shape[-1] * self.mlp_ratio
    return [
      dict(mlp_dim=mlp_dim, mixing=mixings.get(kind), name=f"SpachBlock_{stage}_{i}")
      for i, kind in enumerate(kinds)
    ]


def _kinds(stages: tuple[str, ...]) -> list[list[str]]:
  """Returns the kinds of each stage's blocks: ("conv1+attn2",) -> [["conv", "attn", "attn"]]."""
  read = []
  for stage in stages:
    parts = [re.fullmatch(r"(conv|attn|mlp)([1-9]\d{0,3})", part) for part in stage.split("+")]
    read.append([m[1] for m in parts if m for _ in range(int(m[2]))])
    if None in parts:
      raise InputError(
        f'stages has {stage!r}; expected blocks like "conv2+attn10": conv, attn, mlp.'
      )
  if not read:
    raise InputError("stages is empty; expected one stage at least.")
  return read


def _heads(num_heads: int | None, hidden_dim: int) -> int:
  return num_heads or max(hidden_dim // 32, 1)


def _half(num_tokens: int) -> int:
  return max(num_tokens // 2, 1)


PREFIX = r"SpachBlock_\d+_\d+/"
STEM = r"stem/(?:Conv_0/)?kernel"
UNTOLD = {"num_heads": 1}
LAYERS = (
  r"(?:norm_)?stem/",
  r"(?:(?:norm_)?downsample|SharedMixing|SpachBlock)_(\d+)(?:_(\d+))?/",
)
_BLOCK = {
  "norm1": "norm_tokens",
  "norm2": "norm_channels",
  "cpe_net.net.1": "depthwise",
  "channel_func.fc1": "channel_mixing/Dense_0",
  "channel_func.fc2": "channel_mixing/Dense_1",
}
_MIXING = {"qkv": "qkv", "proj": "out", "fc1": "mlp/Dense_0", "fc2": "mlp/Dense_1"}


def _torch_names(state: Mapping[str, Any]) -> Any:
  """Returns the table of a state, theirs or ours; there, a shared mixing is repeated under every block of a stage."""
  blocks = _blocks(state)
  shared = _is_shared(state, blocks)
  table: list[Any] = [
    ("stem.proj", "stem"),
    *((f"stem.proj.{3 * i}", f"stem/Conv_{i}") for i in range(4)),
    *((f"stem.proj.{3 * i + 1}", f"stem/BatchNorm_{i}") for i in range(3)),
    *((f"norm{i + 1}", name) for i, name in enumerate(("norm_stem", "pre_head_layer_norm"))),
    ("head", "head"),
  ]
  for stage in {stage for stage, _, _ in blocks if stage}:
    table.append((f"layer{stage + 1}.0.net.1.0", f"downsample_{stage}"))
    table.append((f"layer{stage + 1}.0.net.1.1", f"norm_downsample_{stage}"))
  for stage, i, theirs in blocks:
    ours = f"SpachBlock_{stage}_{i}"
    mixing = f"SharedMixing_{stage}" if shared else f"{ours}/mixing"
    table += [(f"{theirs}.{their}", f"{ours}/{our}") for their, our in _BLOCK.items()]
    table += [(f"{theirs}.spatial_func.{k}", f"{mixing}/{v}") for k, v in _MIXING.items()]
    table.append((f"{theirs}.gamma_1", f"{ours}/scale/gamma", (0, 1)))
  return table


def _blocks(state: Mapping[str, Any]) -> list[tuple[int, int, str]]:
  """Returns the blocks of a state: stage, number in it, and their name; from the second stage on their 0 is what narrows."""
  found = []
  for name in state:
    if m := re.fullmatch(r"SpachBlock_(\d+)_(\d+)/norm_channels/bias", name):
      found.append((int(m[1]), int(m[2])))
    if m := re.fullmatch(r"(?:blocks|layer(\d+))\.(\d+)\.norm2\.bias", name):
      stage = int(m[1] or 1) - 1
      found.append((stage, int(m[2]) - (stage > 0)))
  single = all(stage == 0 for stage, _ in found)
  return [
    (stage, i, f"blocks.{i}" if single else f"layer{stage + 1}.{i + (stage > 0)}")
    for stage, i in sorted(found)
  ]


def _is_shared(state: Mapping[str, Any], blocks: list[tuple[int, int, str]]) -> bool:
  """Whether the mixings of a stage are one: in their state, if all are equal, wherever a stage has several."""
  found: dict[tuple[int, str], list[bytes]] = {}
  for stage, _, theirs in blocks:
    for name, value in state.items():
      if name.startswith(f"{theirs}.spatial_func."):
        found.setdefault((stage, name.removeprefix(theirs)), []).append(value.tobytes())
  repeated = [values for values in found.values() if len(values) > 1]
  equal = bool(repeated) and all(len({*values}) == 1 for values in repeated)
  return equal or any(name.startswith("SharedMixing_") for name in state)


TORCH_NAMES = {"authors": _torch_names}


def fields_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """Returns the model's fields that parameter shapes tell; the heads are not among them."""
  patches = "stem/kernel" if "stem/kernel" in shapes else "stem/Conv_3/kernel"
  patch_size, _, stem_channels, hidden_dim = shapes[patches]
  has_stem = patches != "stem/kernel"
  stages, mlps = _stages(shapes), _token_mlps(shapes)
  widths = tuple(mlps.get(stage, (0, 0))[1] for stage in range(len(stages)))
  told = any(width != _half(num_tokens) for num_tokens, width in mlps.values())
  return (
    dict(
      patch_size=patch_size * (1 + has_stem),
      hidden_dim=hidden_dim,
      stages=stages,
      mlp_ratio=shapes["SpachBlock_0_0/channel_mixing/Dense_0/kernel"][1] // hidden_dim,
      num_classes=base.num_classes(shapes),
      shared_mixing=any(name.startswith("SharedMixing_") for name in shapes),
      stem_channels=stem_channels if has_stem else 0,
    )
    | (dict(token_mlp_dims=widths) if told else {})
    | ({} if any("attn" in stage for stage in stages) else dict(num_heads=None))
  )


def _stages(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
  """Returns the field `stages`."""

  def kind(stage: int, i: int) -> str:
    block = f"SpachBlock_{stage}_{i}"
    if f"{block}/scale/gamma" not in shapes:
      return "conv"
    mixings = (f"{block}/mixing", f"SharedMixing_{stage}")
    return "attn" if any(f"{mixing}/qkv/kernel" in shapes for mixing in mixings) else "mlp"

  stages = []
  for stage in range(1 + base.num_blocks(shapes, "downsample_")):
    depth = base.num_blocks(shapes, f"SpachBlock_{stage}_")
    runs = itertools.groupby(kind(stage, i) for i in range(depth))
    stages.append("+".join(f"{name}{len([*run])}" for name, run in runs))
  return tuple(stages)


def _token_mlps(shapes: Mapping[str, tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
  """Returns (number of tokens, hidden width) of the stages that have an MLP over tokens."""
  pattern = r"(?:SpachBlock_(\d+)_\d+/mixing|SharedMixing_(\d+))/mlp/Dense_0/kernel"
  found = ((re.fullmatch(pattern, name), shape) for name, shape in shapes.items())
  return {int(m[1] or m[2]): shape for m, shape in found if m}


def input_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int]:
  """Returns an image (height, width, channels) that the parameters are for.

  With an MLP over tokens, it is a square if it can be one; without, any other size will do, too.
  """
  fields, mlps = fields_of(shapes), _token_mlps(shapes)
  last = len(fields["stages"]) - 1
  patch_size = fields["patch_size"] * 2**last
  channels = shapes["stem/Conv_0/kernel" if fields["stem_channels"] else "stem/kernel"][2]
  if not mlps:
    return (side := patch_size * max(224 // patch_size, 1)), side, channels
  stage, (num_tokens, _) = next(iter(mlps.items()))
  return resizing.image_shape(num_tokens * 4**stage // 4**last, patch_size, channels)


def _resize_methods(fields: Mapping[str, Any]) -> tuple[str, ...]:
  return ("interpolate",) if any("mlp" in stage for stage in fields["stages"]) else ()


RESIZE_METHODS = _resize_methods


def resize_fields(
  fields: Mapping[str, Any], old_grid: Grid, new_grid: Grid, method: str
) -> dict[str, Any]:
  """Returns the fields for another grid, where the MLPs over tokens have as many hidden units as before."""
  del method  # there is only one
  if old_grid == new_grid:
    return dict(fields)
  old = [rows * columns for rows, columns in _grids(old_grid, len(fields["stages"]))]
  _grids(new_grid, len(fields["stages"]))  # raises if there is none
  widths = fields.get("token_mlp_dims") or [_half(n) for n in old]
  used = tuple(
    width if "mlp" in stage else 0 for width, stage in zip(widths, fields["stages"], strict=True)
  )
  return {**fields, "token_mlp_dims": used}


def _grids(grid: Grid, num_stages: int) -> list[Grid]:
  return [resizing.halved(grid, num_stages - 1, stage) for stage in range(num_stages)]


def resize(
  params: Mapping[str, Any], old_grid: Grid, new_grid: Grid, method: str
) -> dict[str, Any]:
  """Returns the parameters for another grid of patches (rows, columns); types stay.

  The MLPs over tokens are framed by resampling, P·T·R (models/resizing.py).

  Raises:
    InputError: the grid cannot be halved for every stage.
  """
  del method  # there is only one
  stages = 1 + base.num_blocks((f"{name}/" for name in params), "downsample_")
  grids = [*zip(_grids(old_grid, stages), _grids(new_grid, stages), strict=True)]

  def changed(name: str, module: Mapping[str, Any]) -> dict[str, Any]:
    if "mixing" in module:
      return {**module, "mixing": changed(name, module["mixing"])}
    if "mlp" not in module:
      return dict(module)
    old, new = grids[int(name.split("_")[1])]
    return {"mlp": resizing.resize_mlp(module["mlp"], resizing.interpolate_mlp, old, new)}

  resizable = ("SpachBlock_", "SharedMixing_")
  return {k: changed(k, v) if k.startswith(resizable) else v for k, v in params.items()}
