"""ConvMLP (Li et al., 2021, arXiv:2109.04454): a convolutional stem and stage, then MLPs with depthwise convolutions.

Axis letters: b images, h w pixels or positions, c channels, k classes. Any image size will do.
Facts: SHI-Labs/Convolutional-MLPs, src/convmlp.py and src/utils.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from mixer_jax.configuration import NonNegativeInt, PositiveInt, Rate
from mixer_jax.errors import InputError
from mixer_jax.models import layers

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


class Stem(nn.Module):
  """Three convolutions, each normalised, with ReLU; the first with stride 2. Then maximum pooling with stride 2."""

  channels: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w p"], mask: Float[Array, " b"] | None, train: bool
  ) -> Float[Array, "b y x c"]:
    dtypes: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    for features, stride in ((self.channels // 2, 2), (self.channels // 2, 1), (self.channels, 1)):
      x = layers.conv(
        x, features, 3, stride=stride, use_bias=False, kernel_init=_HE_NORMAL, **dtypes
      )
      x = nn.relu(layers.batch_norm(x, mask, train, **dtypes))
    # By hand, since jax2onnx knows no padding of max_pool.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    return layers.max_pool(x, train)


class ConvBlock(nn.Module):
  """x + three convolutions (1×1, 3×3, 1×1) of `hidden` channels, each normalised, with ReLU."""

  hidden: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], mask: Float[Array, " b"] | None, train: bool
  ) -> Float[Array, "b h w c"]:
    dtypes: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    y = x
    for features, size in ((self.hidden, 1), (self.hidden, 3), (x.shape[-1], 1)):
      y = layers.conv(y, features, size, use_bias=False, kernel_init=_HE_NORMAL, **dtypes)
      y = nn.relu(layers.batch_norm(y, mask, train, **dtypes))
    return x + y


class ConvMlpBlock(nn.Module):
  """x + MLP(norm(x)), then a depthwise 3×3 convolution of norm(x) without a residual, then x + MLP(norm(x)).

  Where `kept[i, j]` is False, image i skips MLP j (drop path).
  """

  mlp_dim: int
  gelu: layers.Gelu = "erf"
  drop_path_rate: float = 0.0
  rescale: bool = True
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    index: Int[Array, " b"],
    kept: Bool[Array, "b 2"] | None = None,
    train: bool = False,
  ) -> Float[Array, "b h w c"]:
    kept_first, kept_second = (None, None) if kept is None else (kept[:, 0], kept[:, 1])
    dtypes: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    drop_path = functools.partial(layers.drop_path, rate=self.drop_path_rate, rescale=self.rescale)
    norm = functools.partial(nn.LayerNorm, epsilon=1e-5, **dtypes)
    mlp = functools.partial(
      layers.MlpBlock, self.mlp_dim, gelu=self.gelu, kernel_init=_TRUNCATED_NORMAL, **dtypes
    )
    x = x + drop_path(mlp()(norm()(x), index, train=train), kept_first)
    x = layers.depthwise(norm()(x), 3, use_bias=False, kernel_init=_HE_NORMAL, **dtypes)
    return x + drop_path(mlp()(norm()(x), index, train=train), kept_second)


class Model(layers.ImageModel):
  """ConvMLP: stem -> `num_conv_blocks` × ConvBlock -> three stages of ConvMlpBlock -> LayerNorm -> mean -> head.

  Between the stages a 3×3 convolution with stride 2. Sows the convolutions' output (`stage_1`) and every MLP
  stage's (`stage_2` to `stage_4`) before it is narrowed, every MLP block's (`block_<i>`), `pre_logits`, and the four
  maps that the reference's dense wrapper returns, `dense_1` to `dense_4`: the stem's, the narrowed `stage_1` and
  `stage_2`, and `stage_4`.

  Attributes:
    stem_channels: channels that leave the stem.
    num_conv_blocks: residual convolutions; they are as wide inside as the first MLP stage.
    num_blocks: MLP blocks of each stage.
    widths: channels of each MLP stage.
    mlp_ratios: hidden width of each stage's MLPs, in its channels.
    num_classes: width of the head k. If None or 0, there is no head and the module returns `pre_logits`.
    gelu: "erf", the exact one; "tanh", the approximation.
    stoch_depth: s; block i of the L of a stage drops each MLP of an image with probability s·i/(L−1).
    stoch_depth_rescale: divide the branches that are kept by 1 − that.
    head_bias_init: start of the head's bias.
    dtype: compute type; statistics, the mean over positions and the head stay float32.
    param_dtype: type of the parameters.
    remat: "block" keeps only the blocks' inputs for the backward pass and recomputes the rest.
  """

  stem_channels: PositiveInt
  num_conv_blocks: NonNegativeInt
  num_blocks: tuple[int, ...]
  widths: tuple[int, ...]
  mlp_ratios: tuple[int, ...]
  num_classes: int | None = 1000
  gelu: layers.Gelu = "erf"
  stoch_depth: Rate = 0.0
  stoch_depth_rescale: bool = True
  head_bias_init: float = 0.0
  dtype: Literal["float32", "bfloat16"] = "float32"
  param_dtype: Literal["float32", "bfloat16"] = "float32"
  remat: Literal["none", "block"] = "none"

  @nn.compact
  def __call__(
    self,
    image: Float[Array, "b h w p"],
    *,
    train: bool = False,
    index: Int[Array, " b"] | None = None,
    mask: Float[Array, " b"] | None = None,
  ) -> Float[Array, "b k"]:
    """Returns logits, or `pre_logits` (b, c) without a head.

    Args:
      image: normalised values, of any size.
      train: draw drop path, from the random stream "dropout", and take the batch's statistics.
      index: the images' positions in the global batch, which their draws belong to; default 0 … b−1.
      mask: 0 for images that are padding, which do not enter the statistics; default: none are.

    Raises:
      InputError: num_blocks, widths and mlp_ratios are not three numbers from 1 each.
    """
    layers.check_image(image)
    self._check_stages()
    index = jnp.arange(image.shape[0]) if index is None else index
    dtypes: dict[str, Any] = dict(
      dtype=jnp.dtype(self.dtype), param_dtype=jnp.dtype(self.param_dtype)
    )
    conv_block, mlp_block = ConvBlock, ConvMlpBlock
    if self.remat == "block":
      conv_block = nn.remat(ConvBlock, static_argnums=(3,))
      mlp_block = nn.remat(ConvMlpBlock, static_argnums=(4,))
    x = Stem(self.stem_channels, name="stem", **dtypes)(image, mask, train)
    self.sow("intermediates", "dense_1", x)
    for i in range(self.num_conv_blocks):
      x = conv_block(self.widths[0], name=f"ConvBlock_{i}", **dtypes)(x, mask, train)
    self.sow("intermediates", "stage_1", x)
    rates = [layers.linear_rates(self.stoch_depth, n) for n in self.num_blocks]
    kept = None
    if train and self.stoch_depth:
      kept = layers.draw_kept(self.make_rng("dropout"), index, jnp.concatenate(rates))
    number = 0
    for stage, (depth, width) in enumerate(zip(self.num_blocks, self.widths, strict=True)):
      x = layers.conv(
        x,
        width,
        3,
        stride=2,
        kernel_init=_HE_NORMAL,
        bias_init=layers.uniform_bias(9 * x.shape[-1]),
        name=f"downsample_{stage}",
        **dtypes,
      )
      if stage < 2:
        self.sow("intermediates", f"dense_{stage + 2}", x)
      for i in range(depth):
        x = mlp_block(
          width * self.mlp_ratios[stage],
          gelu=self.gelu,
          drop_path_rate=layers.linear_rate(self.stoch_depth, i, depth),
          rescale=self.stoch_depth_rescale,
          name=f"ConvMlpBlock_{stage}_{i}",
          **dtypes,
        )(x, index, None if kept is None else kept[:, number], train)
        self.sow("intermediates", f"block_{number}", x)
        number += 1
      self.sow("intermediates", f"stage_{stage + 2}", x)
    self.sow("intermediates", "dense_4", x)
    x = nn.LayerNorm(epsilon=1e-5, name="pre_head_layer_norm", **dtypes)(x)
    pre_logits = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    return layers.classify(self, pre_logits, _TRUNCATED_NORMAL)

  def _check_stages(self) -> None:
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


PREFIX = r"ConvMlpBlock_\d+_\d+/"
UNTOLD: dict[str, Any] = {}
HEAD = {"head": "num_classes"}
STEM = "stem/Conv_0/kernel"
LAYERS = (r"stem/", r"ConvBlock_(\d+)/", r"(?:downsample|ConvMlpBlock)_(\d+)(?:_(\d+))?/")
RELEASED_RENAMES = ()
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
RESIZE_METHODS = ()


def fields_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """Returns the model's fields that parameter shapes tell."""
  depths = tuple(layers.num_blocks(shapes, f"ConvMlpBlock_{stage}_") for stage in range(3))
  hidden = [shapes[f"ConvMlpBlock_{stage}_0/MlpBlock_0/Dense_0/kernel"] for stage in range(3)]
  return dict(
    stem_channels=shapes["stem/Conv_2/kernel"][3],
    num_conv_blocks=layers.num_blocks(shapes, "ConvBlock_"),
    num_blocks=depths,
    widths=tuple(width for width, _ in hidden),
    mlp_ratios=tuple(mlp_dim // width for width, mlp_dim in hidden),
    num_classes=shapes["head/kernel"][1] if "head/kernel" in shapes else None,
  )


def input_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int]:
  """Returns an image (height, width, channels) that the parameters are for; any other size will do, too."""
  return 224, 224, shapes[STEM][2]
