"""MS-MLP (Zheng et al., 2022, arXiv:2202.06510): groups of channels, each shifted by another distance and then mixed.

Axis letters: b images, h w pixels or positions, c channels, k classes. Any image size will do.
The defaults are what the released weights need. The paper draws it otherwise: it mixes first and shifts then, by 0 to 4
positions to one side, and leaves the first group as it is.
Facts: JegZheng/MS-MLP, models/ms_mlp.py and configs.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mixer_jax.configuration import NonNegativeFloat, PositiveInt
from mixer_jax.errors import InputError
from mixer_jax.models import base, layers
from mixer_jax.models.layers import Index, Kept, Mask

TITLE = "MS-MLP"
_TRUNCATED_NORMAL = nn.initializers.truncated_normal(0.02)
_TORCH_CONV = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
SHIFTS = (-2, -1, 0, 1, 2)
"""Positions that each group moves to the right, and down."""


def _variant(width: int, num_blocks: tuple[int, ...]) -> dict[str, Any]:
  return dict(
    patch_size=4,
    width=width,
    num_blocks=num_blocks,
    mlp_ratio=4,
    mix_sizes=((1, 1, 3, 5, 7), (1, 3, 3, 5, 7), (1, 5, 5, 5, 7), (1, 7, 7, 7, 7)),
  )


VARIANTS = {
  "T": _variant(96, (3, 3, 9, 3)),
  "S": _variant(96, (3, 3, 27, 3)),
  "B": _variant(128, (3, 3, 27, 3)),
}
"""Published size -> fields of the model."""


def group_sizes(channels: int) -> list[int]:
  """Returns the channels of each group: of ⌈c/5⌉ each, and what is left for the last.

  Raises:
    InputError: the last groups would be empty.
  """
  size = -(-channels // len(SHIFTS))
  last = channels - size * (len(SHIFTS) - 1)
  if last < 1:
    raise InputError(
      f"width {channels} leaves nothing for the last of {len(SHIFTS)} groups of {size} channels; take a multiple of "
      f"{len(SHIFTS)}, or more than 16."
    )
  return [size] * (len(SHIFTS) - 1) + [last]


class MixShift(layers.Layer):
  """across + down, of groups of channels with a shift of their own.

  Of each group, across is a depthwise convolution of the group moved around the width by its shift, and down another
  one of the group moved around the height. The shift is circular; the convolutions see zeros beyond the border.
  """

  mix_sizes: tuple[int, ...]

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    sizes = group_sizes(x.shape[-1])
    mixed, begin = [], 0
    for i, (channels, shift, size) in enumerate(zip(sizes, SHIFTS, self.mix_sizes, strict=True)):
      group = x[..., begin : begin + channels]
      fields = dict(kernel_init=_TORCH_CONV, bias_init=layers.uniform_bias(size**2), **self.dtypes)
      across = layers.depthwise(jnp.roll(group, shift, axis=2), size, name=f"across_{i}", **fields)
      down = layers.depthwise(jnp.roll(group, shift, axis=1), size, name=f"down_{i}", **fields)
      mixed.append(across + down)
      begin += channels
    return jnp.concatenate(mixed, axis=-1)


class MsMlpBlock(layers.Block):
  """x + gamma·MLP(norm(mix(x)))."""

  mlp_dim: int
  mix_sizes: tuple[int, ...]
  layer_scale_init: float

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], index: Index, kept: Kept, mask: Mask, train: bool
  ) -> Float[Array, "b h w c"]:
    y = MixShift(self.mix_sizes, name="mix", **self.dtypes)(x)
    y = nn.LayerNorm(epsilon=1e-6, **self.dtypes)(y)
    y = layers.MlpBlock(
      self.mlp_dim, gelu=self.gelu, kernel_init=_TRUNCATED_NORMAL, name="mlp", **self.dtypes
    )(y, index, train=train)
    y = layers.LayerScale(self.layer_scale_init, **self.dtypes)(y)
    return x + self.drop_path(y, kept, 0)


class PatchNorm(layers.Layer):
  """A convolution of square patches that do not overlap, then LayerNorm: the stem, and the way from stage to stage.

  Rows and columns at the end that fill no patch are left out.
  """

  channels: int
  size: int

  @nn.compact
  def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b y x c"]:
    x = nn.Conv(
      self.channels,
      (self.size, self.size),
      strides=(self.size, self.size),
      padding="VALID",
      kernel_init=_TORCH_CONV,
      bias_init=layers.uniform_bias(x.shape[-1] * self.size**2),
      **self.dtypes,
    )(x)
    return nn.LayerNorm(epsilon=1e-6, **self.dtypes)(x)


class Model(base.BlockModel):
  """MS-MLP: patches -> four stages of MsMlpBlock, the map halved between them -> mean -> LayerNorm -> head.

  Each stage is twice as wide as the one before it. Sows every block's output (`block_<i>`), every stage's (`stage_1` to
  `stage_4`) and `pre_logits`. The authors' code takes one image size, which nothing needs.

  Attributes:
    patch_size: side of a square patch in pixels.
    width: channels of the first stage. They are split into five groups.
    num_blocks: of each stage.
    mlp_ratio: hidden width of the MLPs, in channels.
    mix_sizes: side of each group's convolutions, odd, of each stage.
    layer_scale_init: start of gamma, the scale of each branch.
  """

  patch_size: PositiveInt
  width: PositiveInt
  num_blocks: tuple[int, ...]
  mlp_ratio: PositiveInt
  mix_sizes: tuple[tuple[int, ...], ...]
  layer_scale_init: NonNegativeFloat = 1e-6

  def check(self, sides: tuple[int, ...]) -> None:
    if len(self.num_blocks) != 4 or min(self.num_blocks) < 1:
      raise InputError(
        f"num_blocks is {self.num_blocks}; expected a number from 1 for each of 4 stages."
      )
    sizes = [size for stage in self.mix_sizes for size in stage]
    if [len(stage) for stage in self.mix_sizes] != [5] * 4 or any(
      s < 1 or s % 2 == 0 for s in sizes
    ):
      raise InputError(
        f"mix_sizes is {self.mix_sizes}; expected five odd numbers for each of 4 stages."
      )
    lowest = 8 * self.patch_size  # which is one position of the last stage
    if min(sides) < lowest:
      raise InputError(
        f"images of {sides[0]}x{sides[1]} pixels have too few patches of {self.patch_size}x{self.patch_size} for four "
        f"stages; make image_size {lowest} or more, or patch_size smaller."
      )

  def logits(self, image: Array, index: Index, mask: Mask, train: bool) -> Array:
    x = self.run_stages(MsMlpBlock, self.num_blocks, image, index, mask, train)
    norm = nn.LayerNorm(
      epsilon=1e-6, param_dtype=jnp.dtype(self.param_dtype), name="pre_head_layer_norm"
    )
    return self.classify(norm(jnp.mean(x, axis=(1, 2), dtype=jnp.float32)), _TRUNCATED_NORMAL)

  def stage_input(self, x: Array, stage: int, mask: Mask, train: bool) -> Array:
    size, name = (2, f"downsample_{stage}") if stage else (self.patch_size, "stem")
    return PatchNorm(self.width * 2**stage, size, name=name, **self.dtypes)(x)

  def block_fields(self, x: Array, stage: int) -> list[dict[str, Any]]:
    sizes = dict(
      mlp_dim=x.shape[-1] * self.mlp_ratio,
      mix_sizes=self.mix_sizes[stage],
      layer_scale_init=self.layer_scale_init,
    )
    return [dict(sizes, name=f"MsMlpBlock_{stage}_{i}") for i in range(self.num_blocks[stage])]


PREFIX = r"MsMlpBlock_\d+_\d+/"
STEM = "stem/Conv_0/kernel"
LAYERS = (r"stem/", r"(?:downsample|MsMlpBlock)_(\d+)(?:_(\d+))?/")
_BLOCK, _THEIRS = "MsMlpBlock_{}_{}", "layers.{}.blocks.{}"
TORCH_NAMES = {
  "authors": (
    ("patch_embed.proj", "stem/Conv_0"),
    ("patch_embed.norm", "stem/LayerNorm_0"),
    *(
      (f"layers.{stage}.downsample.{theirs}", f"downsample_{stage + 1}/{ours}")
      for stage in range(3)
      for theirs, ours in (("proj", "Conv_0"), ("norm", "LayerNorm_0"))
    ),
    (f"{_THEIRS}.gamma", f"{_BLOCK}/LayerScale_0/gamma"),
    *((f"{_THEIRS}.dwconv_lr.{i}", f"{_BLOCK}/mix/across_{i}") for i in range(5)),
    *((f"{_THEIRS}.dwconv_td.{i}", f"{_BLOCK}/mix/down_{i}") for i in range(5)),
    (f"{_THEIRS}.norm", f"{_BLOCK}/LayerNorm_0"),
    *((f"{_THEIRS}.pwconv{i + 1}", f"{_BLOCK}/mlp/Dense_{i}") for i in range(2)),
    ("norm", "pre_head_layer_norm"),
    ("head", "head"),
  )
}


def fields_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """Returns the model's fields that parameter shapes tell."""
  width, mlp_dim = shapes["MsMlpBlock_0_0/mlp/Dense_0/kernel"]
  return dict(
    patch_size=shapes["stem/Conv_0/kernel"][0],
    width=width,
    num_blocks=tuple(base.num_blocks(shapes, f"MsMlpBlock_{stage}_") for stage in range(4)),
    mlp_ratio=mlp_dim // width,
    mix_sizes=tuple(
      tuple(shapes[f"MsMlpBlock_{stage}_0/mix/across_{i}/kernel"][0] for i in range(5))
      for stage in range(4)
    ),
    num_classes=base.num_classes(shapes),
  )


def input_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int]:
  """Returns an image (height, width, channels) that the parameters are for; any other size will do, too."""
  return 224, 224, shapes[STEM][2]
