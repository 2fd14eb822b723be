"""BiT ResNet-v2 (Kolesnikov et al., 2020, arXiv:1912.11370), a baseline of the paper.

Pre-activation bottlenecks (He et al., arXiv:1603.05027) with group normalisation and weight standardisation
instead of batch statistics; the stride is on the 3×3 convolution.

Axis letters: b images, h w pixels or positions, c channels, i o channels in and out, k classes. Parameter
names are those of the released files (big_transfer, bit_pytorch/models.py: load_from), all below `resnet`.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from mixer_jax.configuration import PositiveInt
from mixer_jax.errors import InputError
from mixer_jax.models import base, layers
from mixer_jax.models.layers import Index, Mask

TITLE = "BiT ResNet"

_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}


def _variant(depth: int, factor: int) -> dict[str, Any]:
  return dict(num_units=_DEPTHS[depth], width=64 * factor)


VARIANTS = {
  "R50x1": _variant(50, 1),
  "R50x2": _variant(50, 2),
  "R50x3": _variant(50, 3),
  "R101x1": _variant(101, 1),
  "R101x3": _variant(101, 3),
  "R152x1": _variant(152, 1),
  "R152x2": _variant(152, 2),
  "R152x4": _variant(152, 4),
  "R200x3": _variant(200, 3),
}
"""The paper's table 3 and the released files: size -> fields of the model."""


class GroupNorm(layers.Layer):
  """(x − mean)/√(variance + 1e-5)·gamma + beta, over positions and the channels of a group, in float32."""

  num_groups: int

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    channels = x.shape[-1:]
    gamma = self.param("gamma", nn.initializers.ones, channels, self.param_dtype)
    beta = self.param("beta", nn.initializers.zeros, channels, self.param_dtype)
    y = x.astype(jnp.float32).reshape(*x.shape[:3], self.num_groups, -1)
    y = y - jnp.mean(y, axis=(1, 2, 4), keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y**2, axis=(1, 2, 4), keepdims=True) + 1e-5)
    return (y.reshape(x.shape) * gamma + beta).astype(self.dtype)


class StdConv(layers.Layer):
  """Convolution without bias whose kernel is standardised for every channel that comes out of it."""

  features: int
  size: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b y x o"]:
    shape = self.size, self.size, x.shape[-1], self.features
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, self.param_dtype)
    kernel = kernel.astype(jnp.float32)
    kernel = kernel - jnp.mean(kernel, axis=(0, 1, 2))
    kernel = kernel * jax.lax.rsqrt(jnp.mean(kernel**2, axis=(0, 1, 2)) + 1e-10)
    pad = (self.size // 2, self.size // 2)
    return jax.lax.conv_general_dilated(
      x.astype(self.dtype),
      kernel.astype(self.dtype),
      window_strides=(self.stride, self.stride),
      padding=(pad, pad),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class NestedConv(layers.Layer):
  """A StdConv one name deeper, where the files have it."""

  features: int
  size: int
  stride: int

  @nn.compact
  def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b y x o"]:
    return StdConv(
      self.features, self.size, self.stride, name="standardized_conv2d", **self.dtypes
    )(x)


class PreActivation(layers.Layer):
  """GroupNorm -> ReLU -> StdConv. Returns that, and the shortcut past it.

  The shortcut is the input, or, `shortcut_features` wide and at `shortcut_stride`, a projection of the ReLU.
  """

  features: int
  size: int
  stride: int
  num_groups: int
  shortcut_features: int = 0
  shortcut_stride: int = 1

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w i"]
  ) -> tuple[Float[Array, "b y x o"], Float[Array, "b v u p"]]:
    y = nn.relu(GroupNorm(self.num_groups, name="group_norm", **self.dtypes)(x))
    if self.shortcut_features:
      x = NestedConv(self.shortcut_features, 1, self.shortcut_stride, name="proj", **self.dtypes)(y)
    y = StdConv(self.features, self.size, self.stride, name="standardized_conv2d", **self.dtypes)(y)
    return y, x


class Unit(layers.Layer):
  """Bottleneck: shortcut + 1×1 to `width`, 3×3 at the stride, 1×1 to 4 × `width`."""

  width: int
  stride: int
  num_groups: int

  @nn.compact
  def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b y x o"]:
    features = 4 * self.width
    common: dict[str, Any] = dict(num_groups=self.num_groups, **self.dtypes)
    reshaped = self.stride != 1 or x.shape[-1] != features
    y, shortcut = PreActivation(
      self.width,
      1,
      1,
      shortcut_features=features if reshaped else 0,
      shortcut_stride=self.stride,
      name="a",
      **common,
    )(x)
    y, _ = PreActivation(self.width, 3, self.stride, name="b", **common)(y)
    y, _ = PreActivation(features, 1, 1, name="c", **common)(y)
    return shortcut + y


class Stage(layers.Layer):
  """Units of one width; the first takes the stride."""

  num_units: int
  width: int
  stride: int
  num_groups: int
  remat: str

  @nn.compact
  def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b y x o"]:
    unit = nn.remat(Unit) if self.remat == "block" else Unit
    for i in range(self.num_units):
      x = unit(
        self.width,
        self.stride if i == 0 else 1,
        self.num_groups,
        name=f"unit{i + 1:02d}",
        **self.dtypes,
      )(x)
    return x


class Head(layers.Layer):
  """The linear classifier, which the files keep as a 1×1 convolution; float32."""

  num_classes: int
  bias_init: float

  @nn.compact
  def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b k"]:
    logits = nn.Conv(
      self.num_classes,
      (1, 1),
      kernel_init=nn.initializers.zeros,
      bias_init=nn.initializers.constant(self.bias_init),
      param_dtype=self.param_dtype,
      name="conv2d",
    )(x[:, None, None])
    return logits[:, 0, 0]


class Network(layers.Layer):
  """What the files have below `resnet`. Returns every stage's output, `pre_logits`, and logits if it has a head."""

  num_classes: int | None
  num_units: tuple[int, ...]
  width: int
  num_groups: int
  head_bias_init: float
  remat: str

  @nn.compact
  def __call__(
    self, image: Float[Array, "b h w p"]
  ) -> tuple[list[Array], Float[Array, "b c"], Float[Array, "b k"] | None]:
    x = NestedConv(self.width, 7, 2, name="root_block", **self.dtypes)(image)
    # Padded with zeros, as the authors do it, where a maximum's own padding is −∞.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    # Its size by name, as jax2onnx wants it.
    x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))
    outputs = []
    for i, num_units in enumerate(self.num_units):
      x = Stage(
        num_units,
        self.width * 2**i,
        1 if i == 0 else 2,
        self.num_groups,
        self.remat,
        name=f"block{i + 1}",
        **self.dtypes,
      )(x)
      outputs.append(x)
    x = nn.relu(GroupNorm(self.num_groups, name="group_norm", **self.dtypes)(x))
    x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    if not self.num_classes:
      return outputs, x, None
    head = Head(self.num_classes, self.head_bias_init, param_dtype=self.param_dtype, name="head")
    return outputs, x, head(x)


class Model(base.ImageModel):
  """7×7 convolution, max pooling -> stages of bottlenecks -> GroupNorm, ReLU -> mean over positions -> head.

  Sows every stage's output (`block_<i>`, and as maps `stage_<i + 1>`) and `pre_logits`. It draws nothing while
  training.

  Attributes:
    num_units: bottlenecks of each stage.
    width: channels inside the first stage's bottlenecks, 64 × the factor in the name; each stage has
      twice those of the one before it, and 4 × as many come out of it.
    num_groups: of group normalisation; it divides `width`.
  """

  num_units: tuple[int, ...]
  width: PositiveInt
  num_groups: PositiveInt = 32

  def check(self, sides: tuple[int, ...]) -> None:
    if self.width % self.num_groups:
      raise InputError(f"num_groups {self.num_groups} does not divide width {self.width}.")
    if min(self.num_units, default=0) < 1:
      raise InputError(f"num_units {self.num_units}: every stage needs a unit.")

  def logits(self, image: Array, index: Index, mask: Mask, train: bool) -> Array:
    outputs, pre_logits, logits = Network(
      self.num_classes,
      self.num_units,
      self.width,
      self.num_groups,
      self.head_bias_init,
      self.remat,
      name="resnet",
      **self.dtypes,
    )(image)
    for i, output in enumerate(outputs):
      self.sow("intermediates", f"block_{i}", output)
      self.sow("intermediates", f"stage_{i + 1}", output)
    self.sow("intermediates", "pre_logits", pre_logits)
    return pre_logits if logits is None else logits


PREFIX = r"resnet/|root_block/conv_root/"
HEAD = {"resnet/head/conv2d": "num_classes"}
STEM = "resnet/root_block/standardized_conv2d/kernel"
LAYERS = (r"resnet/root_block/", r"resnet/block(\d+)/unit(\d+)/")
UNTOLD = {"num_groups": 1}
RELEASED_RENAMES = ((r"^(resnet/.*/standardized_conv2d)_\d+/", r"\1/"),)
"""From those of the files that number the convolutions."""
_BIG_VISION = (
  (r"^root_block/conv_root/", "resnet/root_block/standardized_conv2d/"),
  (r"^(block\d+/unit\d+)/conv_proj/", r"resnet/\1/a/proj/standardized_conv2d/"),
  *(
    (rf"^(block\d+/unit\d+)/{theirs}{i}/{leaf}", rf"resnet/\1/{part}/{ours}")
    for i, part in enumerate("abc", 1)
    for theirs, leaf, ours in (
      ("conv", "", "standardized_conv2d/"), ("gn", "scale", "group_norm/gamma"), ("gn", "bias", "group_norm/beta"),
    )
  ),
  (r"^norm-pre-head/scale", "resnet/group_norm/gamma"),
  (r"^norm-pre-head/bias", "resnet/group_norm/beta"),
  (r"^head/", "resnet/head/conv2d/"),
)  # fmt: skip


def released_form(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the parameters of a file of big_vision (models/bit_paper.py) by the names and in the shapes of the first release."""
  found = {}
  for name, value in flat.items():
    new = name
    for pattern, replacement in _BIG_VISION if "root_block/conv_root/kernel" in flat else ():
      new = re.sub(pattern, replacement, new)
    if new != name and new.endswith(("gamma", "beta")):
      value = np.asarray(value).reshape(-1)
    elif new != name and new == "resnet/head/conv2d/kernel":
      value = np.asarray(value)[None, None]
    found[new] = value
  return found


def _torch_names(root: str, unit: str, norm: str, projection: str, ends: tuple[str, str]) -> Any:
  """Returns a table of torch names; `ends` are the final norm and the head."""
  ours = "resnet/block{1}/unit{01}"
  return (
    (f"{root}.weight", STEM),
    *(
      (f"{theirs}.{leaf}", f"{place}/group_norm/{name}")
      for theirs, place in (
        *((f"{unit}.{norm}{i + 1}", f"{ours}/{part}") for i, part in enumerate("abc")),
        (ends[0], "resnet"),
      )
      for leaf, name in (("weight", "gamma"), ("bias", "beta"))
    ),
    *(
      (f"{unit}.conv{i + 1}", f"{ours}/{part}/standardized_conv2d") for i, part in enumerate("abc")
    ),
    (f"{unit}.{projection}", f"{ours}/a/proj/standardized_conv2d"),
    (ends[1], "resnet/head/conv2d"),
  )


TORCH_NAMES = {
  "timm": _torch_names(
    "stem.conv", "stages.{}.blocks.{}", "norm", "downsample.conv", ("norm", "head.fc")
  ),
  "authors": _torch_names(
    "root.conv", "body.block{1}.unit{01}", "gn", "downsample", ("head.gn", "head.conv")
  ),
}
"""timm's resnetv2_*_bit, and big_transfer, bit_pytorch/models.py."""


def fields_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """Returns the model's fields that parameter shapes tell; all but num_groups."""
  stages = base.num_blocks(shapes, "resnet/block")
  return dict(
    num_units=tuple(base.num_blocks(shapes, f"resnet/block{i + 1}/unit") for i in range(stages)),
    width=shapes[STEM][3],
    num_classes=shapes.get("resnet/head/conv2d/kernel", (None,))[-1],
  )


def input_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int]:
  """Returns an image (height, width, channels) that the parameters are for; any other size will do, too."""
  return 224, 224, shapes[STEM][2]
