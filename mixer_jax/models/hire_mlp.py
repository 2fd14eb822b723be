"""Hire-MLP (Guo et al., 2021, arXiv:2108.13341): rows and columns are shifted, joined to regions, and mixed as channels.

Axis letters: b images, h w pixels or positions, c channels, k classes. Any image size will do.
The defaults are what the authors trained. Version 1 of the paper differs from that code: it adds the three branches
without weights, and has LayerNorm where the code has BatchNorm.
Facts: ggjy/Hire-Wave-MLP.pytorch, mlp_based/hire_mlp.py.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from mixer_jax.errors import InputError
from mixer_jax.models import base, layers
from mixer_jax.models.layers import Index, Kept, Mask

TITLE = "Hire-MLP"
_TRUNCATED_NORMAL = nn.initializers.truncated_normal(0.02)
ShiftPadding = Literal["circular", "zero"]
RegionPadding = Literal["circular", "zero", "replicate"]
_PAD_MODES: dict[str, Any] = {"circular": "wrap", "zero": "constant", "replicate": "edge"}


def _variant(num_blocks: tuple[int, ...], widths: tuple[int, ...]) -> dict[str, Any]:
  sizes = dict(mlp_ratios=(4, 4, 4, 4), region_sizes=(4, 3, 3, 2))
  return dict(num_blocks=num_blocks, widths=widths, **sizes)


VARIANTS = {
  "T": _variant((2, 2, 4, 2), (64, 128, 320, 512)),
  "S": _variant((3, 4, 10, 3), (64, 128, 320, 512)),
  "B": _variant((4, 6, 24, 3), (64, 128, 320, 512)),
  "L": _variant((4, 6, 24, 3), (96, 192, 384, 768)),
}
"""Published size -> fields of the model."""


def to_regions(
  x: Float[Array, "b h w c"],
  size: int,
  shift: int,
  shift_padding: ShiftPadding = "circular",
  region_padding: RegionPadding = "circular",
) -> Float[Array, "b h g n"]:
  """Shifts columns to the right, pads them to a multiple of `size`, and joins each `size` of them as channels.

  Returns:
    the values of g regions, numbered r·c + channel with r the column in the region.
  """
  width = x.shape[2]
  if shift_padding == "circular":
    x = jnp.roll(x, shift, axis=2)
  else:
    x = jnp.pad(x, ((0, 0), (0, 0), (shift, 0), (0, 0)))[:, :, :width]
  if missing := -width % size:
    mode = _PAD_MODES[region_padding]
    x = jnp.pad(x, ((0, 0), (0, 0), (0, missing), (0, 0)), mode=mode)
  return x.reshape(*x.shape[:2], -1, size * x.shape[-1])


def from_regions(
  y: Float[Array, "b h g n"],
  size: int,
  shift: int,
  width: int,
  shift_padding: ShiftPadding = "circular",
) -> Float[Array, "b h w c"]:
  """Undoes `to_regions` for maps of this width; but a shift that brought in zeros stays, as in the reference."""
  x = y.reshape(*y.shape[:2], y.shape[2] * size, -1)[:, :, :width]
  return jnp.roll(x, -shift, axis=2) if shift_padding == "circular" else x


class RegionLinear(layers.Layer):
  """A linear map from a region's values, without a bias, or to them, with one.

  The kernel and the bias number a region's values as the released weights do, channel·size + r; the maps number them
  r·c + channel, for which no columns are transposed.

  Attributes:
    features: number of results.
    size: columns of a region.
    to_values: the results are a region's values.
  """

  features: int
  size: int
  to_values: bool

  @nn.compact
  def __call__(self, x: Float[Array, "b h g i"], train: bool) -> Float[Array, "b h g o"]:
    product = layers.dot_general(train) or jax.lax.dot_general
    shape = (x.shape[-1], self.features)
    kernel = self.param("kernel", _TRUNCATED_NORMAL, shape, self.param_dtype)
    kernel = self._renumbered(kernel, 1 if self.to_values else 0)
    y = product(x.astype(self.dtype), kernel, (((x.ndim - 1,), (0,)), ((), ())))
    if not self.to_values:
      return y
    bias = self.param("bias", nn.initializers.zeros, shape[1:], self.param_dtype)
    return y + self._renumbered(bias, 0)

  def _renumbered(self, x: Array | np.ndarray, axis: int) -> Array:
    split = x.reshape(*x.shape[:axis], -1, self.size, *x.shape[axis + 1 :])
    return jnp.swapaxes(split, axis, axis + 1).reshape(x.shape).astype(self.dtype)


class RegionMlp(layers.Layer):
  """regions -> linear (no bias) -> BatchNorm -> ReLU -> linear -> positions, along the width."""

  size: int
  shift: int
  shift_padding: ShiftPadding
  region_padding: RegionPadding

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], mask: Mask, train: bool
  ) -> Float[Array, "b h w c"]:
    y = to_regions(x, self.size, self.shift, self.shift_padding, self.region_padding)
    values = y.shape[-1]
    y = RegionLinear(x.shape[-1] // 2, self.size, to_values=False, **self.dtypes)(y, train)
    y = nn.relu(layers.batch_norm(y, mask, train, **self.dtypes))
    y = RegionLinear(values, self.size, to_values=True, **self.dtypes)(y, train)
    return from_regions(y, self.size, self.shift, x.shape[2], self.shift_padding)


class HireModule(layers.Layer):
  """linear(a₀⊙h + a₁⊙w + a₂⊙c), of mixed rows h, mixed columns w and c = linear(x).

  a = softmax over the three of MLP(mean over positions of h + w + c), for each channel.
  """

  size: int
  shift: int
  gelu: layers.Gelu = "erf"
  shift_padding: ShiftPadding = "circular"
  region_padding: RegionPadding = "circular"

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    index: Index,
    mask: Mask = None,
    train: bool = False,
  ) -> Float[Array, "b h w c"]:
    channels = x.shape[-1]
    mix = functools.partial(
      RegionMlp, self.size, self.shift, self.shift_padding, self.region_padding, **self.dtypes
    )
    linear = functools.partial(
      nn.Dense,
      channels,
      kernel_init=_TRUNCATED_NORMAL,
      dot_general=layers.dot_general(train),
      **self.dtypes,
    )
    rows = jnp.swapaxes(mix(name="rows")(jnp.swapaxes(x, 1, 2), mask, train), 1, 2)
    columns = mix(name="columns")(x, mask, train)
    alone = linear(name="channels")(x)
    logits = layers.MlpBlock(
      channels // 4,
      3 * channels,
      gelu=self.gelu,
      kernel_init=_TRUNCATED_NORMAL,
      name="reweight",
      **self.dtypes,
    )(jnp.mean(rows + columns + alone, axis=(1, 2)), index, train=train)
    logits = logits.reshape(-1, 1, 1, channels, 3)
    precise = logits.astype(jnp.promote_types(self.dtype, jnp.float32))
    shares = nn.softmax(precise).astype(self.dtype)
    y = shares[..., 0] * rows + shares[..., 1] * columns + shares[..., 2] * alone
    return linear(name="project")(y)


class HireBlock(layers.Block):
  """x + HireModule(BatchNorm(x)), then x + MLP(BatchNorm(x))."""

  mlp_dim: int
  size: int
  shift: int
  shift_padding: ShiftPadding = "circular"
  region_padding: RegionPadding = "circular"

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], index: Index, kept: Kept, mask: Mask, train: bool
  ) -> Float[Array, "b h w c"]:
    y = layers.batch_norm(x, mask, train, **self.dtypes)
    y = HireModule(
      self.size,
      self.shift,
      self.gelu,
      self.shift_padding,
      self.region_padding,
      name="hire",
      **self.dtypes,
    )(y, index, mask, train)
    x = x + self.drop_path(y, kept, 0)
    y = layers.MlpBlock(
      self.mlp_dim, gelu=self.gelu, kernel_init=_TRUNCATED_NORMAL, name="mlp", **self.dtypes
    )(layers.batch_norm(x, mask, train, **self.dtypes), index, train=train)
    return x + self.drop_path(y, kept, 1)


class ConvNorm(layers.Layer):
  """Convolution -> BatchNorm -> ReLU: the stem, and the way from stage to stage."""

  channels: int
  size: int
  stride: int
  padding: int

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w i"], mask: Mask, train: bool
  ) -> Float[Array, "b y x c"]:
    pad = (self.padding, self.padding)
    x = nn.Conv(
      self.channels,
      (self.size, self.size),
      strides=(self.stride, self.stride),
      padding=(pad, pad),
      kernel_init=_TRUNCATED_NORMAL,
      **self.dtypes,
    )(x)
    return nn.relu(layers.batch_norm(x, mask, train, **self.dtypes))


class Model(base.BlockModel):
  """Hire-MLP: stem -> four stages of HireBlock, the map halved between them -> BatchNorm -> mean -> head.

  Block i of a stage shifts its map by s = (i mod num_shifts)·shift_step positions before it cuts regions. Sows every
  block's output (`block_<i>`), every stage's (`stage_1` to `stage_4`) and `pre_logits`.

  Attributes:
    num_blocks: of each stage.
    widths: channels of each stage.
    mlp_ratios: hidden width of each stage's MLPs, in its channels.
    region_sizes: rows or columns of a region, of each stage.
    num_shifts: how many shifts alternate in each stage, 0 among them.
    shift_steps: positions between one shift and the next, of each stage.
    shift_padding: "circular" brings in what leaves at the other end, and shifts back behind the regions; "zero"
      brings in zeros and shifts nothing back.
    region_padding: what fills the last region: "circular", the map's beginning; "zero"; "replicate", its end.
  """

  num_blocks: tuple[int, ...]
  widths: tuple[int, ...]
  mlp_ratios: tuple[int, ...]
  region_sizes: tuple[int, ...]
  num_shifts: tuple[int, ...] = (2, 2, 3, 2)
  shift_steps: tuple[int, ...] = (2, 2, 1, 1)
  shift_padding: ShiftPadding = "circular"
  region_padding: RegionPadding = "circular"

  def check(self, sides: tuple[int, ...]) -> None:
    lowest = dict(num_blocks=1, widths=4, mlp_ratios=1, region_sizes=1, num_shifts=1, shift_steps=0)
    for name, low in lowest.items():
      value = getattr(self, name)
      if len(value) != 4 or min(value) < low:
        raise InputError(f"{name} is {value}; expected a number from {low} for each of 4 stages.")
    if min(sides) < 3:
      raise InputError(
        f"image_size {sides[0]}x{sides[1]} leaves nothing behind the stem: at least 3x3."
      )

  def logits(self, image: Array, index: Index, mask: Mask, train: bool) -> Array:
    x = self.run_stages(HireBlock, self.num_blocks, image, index, mask, train)
    x = layers.batch_norm(x, mask, train, name="pre_head_batch_norm", **self.dtypes)
    return self.classify(jnp.mean(x, axis=(1, 2), dtype=jnp.float32), _TRUNCATED_NORMAL)

  def stage_input(self, x: Array, stage: int, mask: Mask, train: bool) -> Array:
    size, stride, padding = (3, 2, 1) if stage else (7, 4, 2)
    name = f"downsample_{stage}" if stage else "stem"
    narrowed = ConvNorm(self.widths[stage], size, stride, padding, name=name, **self.dtypes)
    return narrowed(x, mask, train)

  def block_fields(self, x: Array, stage: int) -> list[dict[str, Any]]:
    return [
      dict(
        mlp_dim=x.shape[-1] * self.mlp_ratios[stage],
        size=self.region_sizes[stage],
        shift=i % self.num_shifts[stage] * self.shift_steps[stage],
        shift_padding=self.shift_padding,
        region_padding=self.region_padding,
        name=f"HireBlock_{stage}_{i}",
      )
      for i in range(self.num_blocks[stage])
    ]


PREFIX = r"HireBlock_\d+_\d+/"
STEM = "stem/Conv_0/kernel"
UNTOLD: dict[str, Any] = {
  "num_shifts": (2, 2, 3, 2),
  "shift_steps": (2, 2, 1, 1),
  "shift_padding": "circular",
  "region_padding": "circular",
}
LAYERS = (r"stem/", r"(?:downsample|HireBlock)_(\d+)(?:_(\d+))?/")


def _torch_block(stage: int) -> Any:
  theirs, ours = f"network.{2 * stage}.{{}}", f"HireBlock_{stage}_{{}}"
  linear = {
    "attn.mlp_h1": "hire/rows/RegionLinear_0",
    "attn.mlp_h2": "hire/rows/RegionLinear_1",
    "attn.mlp_w1": "hire/columns/RegionLinear_0",
    "attn.mlp_w2": "hire/columns/RegionLinear_1",
    "attn.mlp_c": "hire/channels",
    "attn.reweight.fc1": "hire/reweight/Dense_0",
    "attn.reweight.fc2": "hire/reweight/Dense_1",
    "attn.proj": "hire/project",
    "mlp.fc1": "mlp/Dense_0",
    "mlp.fc2": "mlp/Dense_1",
  }
  norms = {
    "norm1": "BatchNorm_0",
    "attn.mlp_h1_norm": "hire/rows/BatchNorm_0",
    "attn.mlp_w1_norm": "hire/columns/BatchNorm_0",
    "norm2": "BatchNorm_1",
  }
  return (
    *((f"{theirs}.{k}.weight", f"{ours}/{v}/kernel", (2, 3)) for k, v in linear.items()),
    *((f"{theirs}.{k}.bias", f"{ours}/{v}/bias") for k, v in linear.items()),
    *((f"{theirs}.{k}", f"{ours}/{v}") for k, v in norms.items()),
  )


TORCH_NAMES = {
  "authors": (
    *(
      (f"{theirs}.{k}", f"{ours}/{v}")
      for theirs, ours in (
        ("patch_embed", "stem"),
        *((f"network.{2 * stage - 1}", f"downsample_{stage}") for stage in range(1, 4)),
      )
      for k, v in (("proj", "Conv_0"), ("norm", "BatchNorm_0"))
    ),
    *(entry for stage in range(4) for entry in _torch_block(stage)),
    ("norm", "pre_head_batch_norm"),
    ("head", "head"),
  )
}


def fields_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """Returns the model's fields that parameter shapes tell; they do not tell the shifts, nor the padding."""
  hidden = [shapes[f"HireBlock_{stage}_0/mlp/Dense_0/kernel"] for stage in range(4)]
  regions = [
    shapes[f"HireBlock_{stage}_0/hire/rows/RegionLinear_0/kernel"][0] for stage in range(4)
  ]
  widths = tuple(width for width, _ in hidden)
  return dict(
    num_blocks=tuple(base.num_blocks(shapes, f"HireBlock_{stage}_") for stage in range(4)),
    widths=widths,
    mlp_ratios=tuple(mlp_dim // width for width, mlp_dim in hidden),
    region_sizes=tuple(values // width for values, width in zip(regions, widths, strict=True)),
    num_classes=base.num_classes(shapes),
  )


def input_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int]:
  """Returns an image (height, width, channels) that the parameters are for; any other size will do, too."""
  return 224, 224, shapes[STEM][2]
