"""sMLPNet (Tang et al., 2021, arXiv:2109.05422): each position mixes with its row and its column only.

Axis letters: b images, h w pixels or positions, c channels, k classes, n positions along an axis.
Facts: microsoft/SPACH, models/smlp.py.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mixer_jax.configuration import PositiveInt
from mixer_jax.errors import InputError
from mixer_jax.models import base, layers, resizing
from mixer_jax.models.layers import Index, Kept, Mask
from mixer_jax.models.resizing import Grid

TITLE = "sMLPNet"
_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _variant(hidden_dim: int, num_blocks: tuple[int, ...], mlp_ratio: int = 3) -> dict[str, Any]:
  return dict(patch_size=4, hidden_dim=hidden_dim, num_blocks=num_blocks, mlp_ratio=mlp_ratio)


VARIANTS = {
  "T*": _variant(80, (2, 8, 14, 2), mlp_ratio=2),
  "T": _variant(80, (2, 8, 14, 2)),
  "S": _variant(96, (2, 10, 24, 2)),
  "B": _variant(112, (2, 10, 24, 2)),
}
"""Published size -> fields of the model. The code has no T*, which the paper's tables have."""


_LAST_AXIS = (((3,), (0,)), ((), ()))


class AxisMixing(layers.Layer):
  """kernelᵀ·x + bias along one axis of the maps, the same for all that lies across it and for all channels."""

  axis: Literal[1, 2]

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
    n = x.shape[self.axis]
    kernel = self.param("kernel", _UNIFORM, (n, n), self.param_dtype)
    bias = self.param("bias", layers.uniform_bias(n), (n,), self.param_dtype)
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    if not train:
      product = "bnwc,nm->bmwc" if self.axis == 1 else "bhnc,nm->bhmc"
      return jnp.einsum(product, x, kernel) + bias.reshape([n] + [1] * (3 - self.axis))
    y = jnp.moveaxis(x, 3, 1)  # to (b, c, h, w), which both axes have in common
    y = jnp.swapaxes(y, self.axis + 1, 3)
    y = layers.dot_general(train)(y, kernel, _LAST_AXIS) + bias
    return jnp.moveaxis(jnp.swapaxes(y, self.axis + 1, 3), 1, 3)


class Fusion(layers.Layer):
  """kernelᵀ·(the maps' concatenation), as the sum of a product for each map."""

  @nn.compact
  def __call__(self, maps: list[Float[Array, "b h w c"]], train: bool) -> Float[Array, "b h w c"]:
    c = maps[0].shape[-1]
    kernel = self.param("kernel", _UNIFORM, (len(maps) * c, c), self.param_dtype)
    *maps, kernel = nn.dtypes.promote_dtype(*maps, kernel, dtype=self.dtype)
    product = layers.dot_general(train) or jax.lax.dot_general
    parts = zip(maps, jnp.split(kernel, len(maps)), strict=True)
    return functools.reduce(jnp.add, [product(x, part, _LAST_AXIS) for x, part in parts])


class SmlpBlock(layers.Block):
  """Mixes along rows and columns, then across channels; each half is `x + branch(x)`.

  The first branch is y = depthwise(GELU(norm(x))), then z = GELU(norm(y)) and fusion[z, width(z), height(z)], with
  BatchNorm and a depthwise 3×3 convolution; the second MLP(LayerNorm(x)). Of `residuals` "two", as in the paper's figure:
  x + depthwise(norm(x)), then with z = norm(x) of that x + fusion[z, width(z), height(z)].
  Where `kept[i, j]` is False, image i skips half j (drop path).
  """

  mlp_dim: int
  residuals: Literal["one", "two"] = "one"

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], index: Index, kept: Kept, mask: Mask, train: bool
  ) -> Float[Array, "b h w c"]:
    if self.residuals == "two":
      x = x + self.drop_path(self._depthwise(self._norm(x, mask, train)), kept, 0)
      x = x + self.drop_path(self._mix(self._norm(x, mask, train), train), kept, 0)
    else:
      gelu = layers.GELU[self.gelu]
      y = self._depthwise(gelu(self._norm(x, mask, train)))
      y = self._mix(gelu(self._norm(y, mask, train)), train)
      x = x + self.drop_path(y, kept, 0)
    y = nn.LayerNorm(epsilon=1e-5, **self.dtypes)(x)
    y = layers.MlpBlock(
      self.mlp_dim,
      gelu=self.gelu,
      kernel_init=_UNIFORM,
      name="channel_mixing",
      **self.dtypes,
    )(y, index, train=train)
    return x + self.drop_path(y, kept, 1)

  def _norm(self, x: Array, mask: Array | None, train: bool) -> Array:
    return layers.batch_norm(x, mask, train, **self.dtypes)

  def _depthwise(self, x: Array) -> Array:
    return layers.depthwise(
      x, 3, use_bias=False, kernel_init=_UNIFORM, name="depthwise", **self.dtypes
    )

  def _mix(self, z: Array, train: bool) -> Array:
    along_width = AxisMixing(2, name="width", **self.dtypes)(z, train)
    along_height = AxisMixing(1, name="height", **self.dtypes)(z, train)
    return Fusion(name="fusion", **self.dtypes)([z, along_width, along_height], train)


class Model(base.BlockModel):
  """sMLPNet: patches -> stages of SmlpBlock -> BatchNorm -> mean over positions -> head.

  Between the stages a 2×2 convolution with stride 2 and twice as many channels; neither it nor the patches' has a bias
  or a norm. Sows every stage's map (`stage_<i>`), every block's (`block_<i>`), and `pre_logits`.

  Attributes:
    patch_size: side of a square patch in pixels.
    hidden_dim: channels of the first stage.
    num_blocks: blocks of each stage.
    mlp_ratio: hidden width of channel mixing, in a stage's channels.
    residuals: of the mixing of tokens: "one", as the released code and weights have it; "two", as the paper draws it.
  """

  patch_size: PositiveInt
  hidden_dim: PositiveInt
  num_blocks: tuple[int, ...]
  mlp_ratio: PositiveInt
  residuals: Literal["one", "two"] = "one"

  def check(self, sides: tuple[int, ...]) -> None:
    if not self.num_blocks or min(self.num_blocks) < 1:
      raise InputError(f"num_blocks is {self.num_blocks}; expected a number from 1 for each stage.")
    resizing.token_grid(sides, self.patch_size, len(self.num_blocks) - 1)

  def logits(self, image: Array, index: Index, mask: Mask, train: bool) -> Array:
    x = self.run_stages(SmlpBlock, self.num_blocks, image, index, mask, train)
    x = layers.batch_norm(x, mask, train, name="pre_head_batch_norm", **self.dtypes)
    return self.classify(jnp.mean(x, axis=(1, 2), dtype=jnp.float32), _UNIFORM)

  def stage_input(self, x: Array, stage: int, mask: Mask, train: bool) -> Array:
    side = 2 if stage else self.patch_size
    name = f"downsample_{sum(self.num_blocks[:stage])}" if stage else "stem"
    fields = dict(padding="VALID", use_bias=False, kernel_init=_UNIFORM, name=name)
    width = self.hidden_dim * 2**stage
    return nn.Conv(width, (side, side), strides=side, **fields, **self.dtypes)(x)

  def block_fields(self, x: Array, stage: int) -> list[dict[str, Any]]:
    sizes = dict(mlp_dim=x.shape[-1] * self.mlp_ratio, residuals=self.residuals)
    first = sum(self.num_blocks[:stage])
    return [dict(sizes, name=f"SmlpBlock_{first + i}") for i in range(self.num_blocks[stage])]


PREFIX = r"SmlpBlock_\d+/"
STEM = "stem/kernel"
UNTOLD: dict[str, Any] = {"residuals": "one"}
LAYERS = (r"stem/", r"(?:downsample|SmlpBlock)_(\d+)/")


def _torch_names(state: Mapping[str, Any]) -> Any:
  """Returns the table of a state, theirs or ours.

  Blocks are numbered throughout, theirs and ours; so is what narrows before block i here, which there has its stage's number.
  """
  block, mix = "SmlpBlock_{}", "token_mix.{}.1"
  return (
    ("to_patch_embedding.0.0", "stem"),
    *(
      (f"to_patch_embedding.{stage}.0", f"downsample_{first}")
      for stage, first in enumerate(_first_blocks(state), 1)
    ),
    ("token_mix.{}.0.conv_merge.BN", f"{block}/BatchNorm_0"),
    ("token_mix.{}.0.conv_merge.Conv", f"{block}/depthwise"),
    (f"{mix}.BN", f"{block}/BatchNorm_1"),
    (f"{mix}.proj_h.weight", f"{block}/width/kernel", (2, 3)),
    (f"{mix}.proj_h.bias", f"{block}/width/bias"),
    (f"{mix}.proh_w.weight", f"{block}/height/kernel", (2, 3)),
    (f"{mix}.proh_w.bias", f"{block}/height/bias"),
    (f"{mix}.fuse.weight", f"{block}/fusion/kernel", (2, 3)),
    ("channel_mix.{}.1", f"{block}/LayerNorm_0"),
    ("channel_mix.{}.2.net.0", f"{block}/channel_mixing/Dense_0"),
    ("channel_mix.{}.2.net.3", f"{block}/channel_mixing/Dense_1"),
    ("batch_norm", "pre_head_batch_norm"),
    ("mlp_head.0", "head"),
  )


def _first_blocks(state: Mapping[str, Any]) -> list[int]:
  """Returns the numbers of the blocks that begin a stage, but for the first one's."""
  widths: dict[int, int] = {}
  for name, value in state.items():
    if m := re.fullmatch(r"channel_mix\.(\d+)\.1\.bias|SmlpBlock_(\d+)/LayerNorm_0/bias", name):
      widths[int(m[1] or m[2])] = value.shape[0]
  return [i for i in sorted(widths) if i and widths[i] != widths.get(i - 1)]


TORCH_NAMES = {"authors": _torch_names}
RESIZE_METHODS = ("interpolate",)


def fields_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """Returns the model's fields that parameter shapes tell."""
  patch_size, _, _, hidden_dim = shapes[STEM]
  depth = base.num_blocks(shapes, "SmlpBlock_")
  widths = [shapes[f"SmlpBlock_{i}/LayerNorm_0/bias"][0] for i in range(depth)]
  return dict(
    patch_size=patch_size,
    hidden_dim=hidden_dim,
    num_blocks=tuple(
      widths.count(hidden_dim * 2**stage)
      for stage in range(1 + base.num_blocks(shapes, "downsample_"))
    ),
    mlp_ratio=shapes["SmlpBlock_0/channel_mixing/Dense_0/kernel"][1] // hidden_dim,
    num_classes=base.num_classes(shapes),
  )


def input_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int]:
  """Returns the image (height, width, channels) that the parameters are for."""
  patch_size, _, channels, _ = shapes[STEM]
  height, width = (shapes[f"SmlpBlock_0/{axis}/bias"][0] for axis in ("height", "width"))
  return height * patch_size, width * patch_size, channels


def resize(
  params: Mapping[str, Any], old_grid: Grid, new_grid: Grid, method: str
) -> dict[str, Any]:
  """Returns the parameters for another grid of patches (rows, columns); types stay.

  The maps along both axes are framed by resampling, P·T·R (models/resizing.py).

  Raises:
    InputError: a stage of the new grid would have a row or column that is not whole.
  """
  del method  # there is only one
  stages = 1 + base.num_blocks((f"{name}/" for name in params), "downsample_")
  resizing.halved(new_grid, stages - 1, 0)  # raises if the stages cannot do so

  def changed(block: Mapping[str, Any]) -> dict[str, Any]:
    lines = {
      name: _resize_line(block[name], old_grid[axis], new_grid[axis])
      for axis, name in enumerate(("height", "width"))
    }
    return {**block, **lines}

  return {k: changed(v) if k.startswith("SmlpBlock_") else v for k, v in params.items()}


def _resize_line(mixing: Mapping[str, Any], old: int, new: int) -> dict[str, Any]:
  """Returns the map along an axis that has `new` patches instead of `old`, fewer in later stages."""
  size = mixing["bias"].size
  return resizing.resize_dense(mixing, (size, 1), (new * size // old, 1))
