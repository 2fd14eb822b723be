"""ConvMLP (Li et al., 2021, arXiv:2109.04454): a convolutional stem and stage, then MLPs with depthwise convolutions.

Axis letters: b images, h w pixels or positions, c channels, k classes. Any image size will do.
Facts: SHI-Labs/Convolutional-MLPs, src/convmlp.py and src/utils.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mixer_jax.configuration import NonNegativeInt, PositiveInt
from mixer_jax.errors import InputError
from mixer_jax.models import base, layers
from mixer_jax.models.layers import Index, Kept, Mask

TITLE = "ConvMLP"
_TRUNCATED_NORMAL = nn.initializers.truncated_normal(0.02)
_HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _variant(channels: int, convs: int, depths: tuple[int, ...], width: int, ratio: int) -> Any:
  return dict(
    stem_channels=channels,
    num_conv_blocks=convs,
    num_blocks=depths,
    widths=(width, 2 * width, 4 * width),
    mlp_ratios=(ratio,) * 3,
  )


VARIANTS = {
  "S": _variant(64, 2, (2, 4, 2), 128, 2),
  "M": _variant(64, 3, (3, 6, 3), 128, 3),
  "L": _variant(96, 3, (4, 8, 3), 192, 3),
}
"""Published size -> fields of the model."""


class Stem(layers.Layer):
  """Three convolutions, each normalised, with ReLU; the first with stride 2. Then maximum pooling with stride 2."""

  channels: int

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w p"], mask: Mask, train: bool
  ) -> Float[Array, "b y x c"]:
    for features, stride in ((self.channels // 2, 2), (self.channels // 2, 1), (self.channels, 1)):
      x = layers.conv(
        x, features, 3, stride=stride, use_bias=False, kernel_init=_HE_NORMAL, **self.dtypes
      )
      x = nn.relu(layers.batch_norm(x, mask, train, **self.dtypes))
    # By hand, since jax2onnx knows no padding of max_pool.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    return layers.max_pool(x, train)


class ConvBlock(layers.Layer):
  """x + three convolutions (1×1, 3×3, 1×1) of `hidden` channels, each normalised, with ReLU."""

  hidden: int

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], mask: Mask, train: bool
  ) -> Float[Array, "b h w c"]:
    y = x
    for features, size in ((self.hidden, 1), (self.hidden, 3), (x.shape[-1], 1)):
      y = layers.conv(y, features, size, use_bias=False, kernel_init=_HE_NORMAL, **self.dtypes)
      y = nn.relu(layers.batch_norm(y, mask, train, **self.dtypes))
    return x + y


class ConvMlpBlock(layers.Block):
  """x + MLP(norm(x)), then a depthwise 3×3 convolution of norm(x) without a residual, then x + MLP(norm(x)).

  Where `kept[i, j]` is False, image i skips MLP j (drop path).
  """

  mlp_dim: int

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], index: Index, kept: Kept, mask: Mask, train: bool
  ) -> Float[Array, "b h w c"]:
    norm = functools.partial(nn.LayerNorm, epsilon=1e-5, **self.dtypes)
    mlp = functools.partial(
      layers.MlpBlock, self.mlp_dim, gelu=self.gelu, kernel_init=_TRUNCATED_NORMAL, **self.dtypes
    )
    x = x + self.drop_path(mlp()(norm()(x), index, train=train), kept, 0)
    x = layers.depthwise(norm()(x), 3, use_bias=False, kernel_init=_HE_NORMAL, **self.dtypes)
    return x + self.drop_path(mlp()(norm()(x), index, train=train), kept, 1)


class Model(base.BlockModel):
  """ConvMLP: stem -> `num_conv_blocks` × ConvBlock -> three stages of ConvMlpBlock -> LayerNorm -> mean -> head.

  Between the stages a 3×3 convolution with stride 2. Drop path grows from 0 in each stage anew. Sows the convolutions'
  output (`stage_1`) and every MLP stage's (`stage_2` to `stage_4`) before it is narrowed, every MLP block's
  (`block_<i>`), `pre_logits`, and the four maps that the reference's dense wrapper returns, `dense_1` to `dense_4`: the
  stem's, the narrowed `stage_1` and `stage_2`, and `stage_4`.

  Attributes:
    stem_channels: channels that leave the stem.
    num_conv_blocks: residual convolutions; they are as wide inside as the first MLP stage.
    num_blocks: MLP blocks of each stage.
    widths: channels of each MLP stage.
    mlp_ratios: hidden width of each stage's MLPs, in its channels.
  """

  stem_channels: PositiveInt
  num_conv_blocks: NonNegativeInt
  num_blocks: tuple[int, ...]
  widths: tuple[int, ...]
  mlp_ratios: tuple[int, ...]

  def check(self, sides: tuple[int, ...]) -> None:
    if self.stem_channels < 2:
      raise InputError(
        f"stem_channels is {self.stem_channels}; the stem begins with half of them, so at least 2."
      )
    for name in ("num_blocks", "widths", "mlp_ratios"):
      value = getattr(self, name)
      if len(value) != 3 or min(value) < 1:
        raise InputError(
          f"{name} is {value}; expected a number from 1 for each of the three stages."
        )

  def logits(self, image: Array, index: Index, mask: Mask, train: bool) -> Array:
    x = self.run_stages(ConvMlpBlock, self.num_blocks, image, index, mask, train, first=2)
    self.sow("intermediates", "dense_4", x)
    x = nn.LayerNorm(epsilon=1e-5, name="pre_head_layer_norm", **self.dtypes)(x)
    return self.classify(jnp.mean(x, axis=(1, 2), dtype=jnp.float32), _TRUNCATED_NORMAL)

  def rates(self, depths: Sequence[int]) -> list[float]:
    return [rate for n in depths for rate in base.linear_rates(self.stoch_depth, n)]

  def stage_input(self, x: Array, stage: int, mask: Mask, train: bool) -> Array:
    if not stage:
      x = self._convolutions(x, mask, train)
    x = layers.conv(
      x,
      self.widths[stage],
      3,
      stride=2,
      kernel_init=_HE_NORMAL,
      bias_init=layers.uniform_bias(9 * x.shape[-1]),
      name=f"downsample_{stage}",
      **self.dtypes,
    )
    if stage < 2:
      self.sow("intermediates", f"dense_{stage + 2}", x)
    return x

  def _convolutions(self, x: Array, mask: Mask, train: bool) -> Array:
    """Returns the map of the first stage, which is without MLPs."""
    x = Stem(self.stem_channels, name="stem", **self.dtypes)(x, mask, train)
    self.sow("intermediates", "dense_1", x)
    block = nn.remat(ConvBlock, static_argnums=(3,)) if self.remat == "block" else ConvBlock
    for i in range(self.num_conv_blocks):
      x = block(self.widths[0], name=f"ConvBlock_{i}", **self.dtypes)(x, mask, train)
    self.sow("intermediates", "stage_1", x)
    return x

  def block_fields(self, x: Array, stage: int) -> list[dict[str, Any]]:
    mlp_dim, depth = x.shape[-1] * self.mlp_ratios[stage], self.num_blocks[stage]
    return [dict(mlp_dim=mlp_dim, name=f"ConvMlpBlock_{stage}_{i}") for i in range(depth)]


PREFIX = r"ConvMlpBlock_\d+_\d+/"
STEM = "stem/Conv_0/kernel"
LAYERS = (r"stem/", r"ConvBlock_(\d+)/", r"(?:downsample|ConvMlpBlock)_(\d+)(?:_(\d+))?/")
_BLOCK, _THEIRS = "ConvMlpBlock_{}_{}", "stages.{}.blocks.{}"
TORCH_NAMES = {
  "authors": (
    *((f"tokenizer.block.{3 * i}", f"stem/Conv_{i}") for i in range(3)),
    *((f"tokenizer.block.{3 * i + 1}", f"stem/BatchNorm_{i}") for i in range(3)),
    *((f"conv_stages.conv_blocks.{{}}.{3 * i}", f"ConvBlock_{{}}/Conv_{i}") for i in range(3)),
    *(
      (f"conv_stages.conv_blocks.{{}}.{3 * i + 1}", f"ConvBlock_{{}}/BatchNorm_{i}")
      for i in range(3)
    ),
    ("conv_stages.downsample", "downsample_0"),
    *((f"stages.{i}.downsample_mlp.downsample", f"downsample_{i + 1}") for i in range(2)),
    (f"{_THEIRS}.norm1", f"{_BLOCK}/LayerNorm_0"),
    (f"{_THEIRS}.connect_norm", f"{_BLOCK}/LayerNorm_1"),
    (f"{_THEIRS}.norm2", f"{_BLOCK}/LayerNorm_2"),
    (f"{_THEIRS}.connect", f"{_BLOCK}/Conv_0"),
    *(
      (f"{_THEIRS}.channel_mlp{i + 1}.fc{j + 1}", f"{_BLOCK}/MlpBlock_{i}/Dense_{j}")
      for i in range(2)
      for j in range(2)
    ),
    ("norm", "pre_head_layer_norm"),
    ("head", "head"),
  )
}


def fields_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """Returns the model's fields that parameter shapes tell."""
  depths = tuple(base.num_blocks(shapes, f"ConvMlpBlock_{stage}_") for stage in range(3))
  hidden = [shapes[f"ConvMlpBlock_{stage}_0/MlpBlock_0/Dense_0/kernel"] for stage in range(3)]
  return dict(
    stem_channels=shapes["stem/Conv_2/kernel"][3],
    num_conv_blocks=base.num_blocks(shapes, "ConvBlock_"),
    num_blocks=depths,
    widths=tuple(width for width, _ in hidden),
    mlp_ratios=tuple(mlp_dim // width for width, mlp_dim in hidden),
    num_classes=base.num_classes(shapes),
  )


def input_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int]:
  """Returns an image (height, width, channels) that the parameters are for; any other size will do, too."""
  return 224, 224, shapes[STEM][2]
