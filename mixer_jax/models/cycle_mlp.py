"""CycleMLP (Chen et al., 2022, arXiv:2107.10224): linear maps that read each channel at a position beside.

B1 to B5 are the authors' code (ShoufaChen/CycleMLP, cycle_mlp.py): overlapping patches, step 3, branches weighted by
a softmax. The paper's figure has step 7 and sums the branches. T, S and B were published as weights without code;
their sizes are those of that figure in the skeleton of Swin, so they are defined here by it.

Axis letters: b images, h w pixels or positions, c channels, k classes. Any image size will do.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mixer_jax.configuration import PositiveInt
from mixer_jax.errors import InputError
from mixer_jax.models import base, layers
from mixer_jax.models.layers import Index, Kept, Mask

TITLE = "CycleMLP"
Fusion = Literal["reweight", "sum"]
TRUNCATED_NORMAL = nn.initializers.truncated_normal(0.02)
CONV_KERNEL = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _variant(
  depths: tuple[int, ...], widths: tuple[int, ...], ratios: tuple[int, ...] = (4, 4, 4, 4)
) -> dict[str, Any]:
  sizes = dict(num_blocks=depths, widths=widths, mlp_ratios=ratios)
  return dict(overlapping=True, step=3, fusion="reweight", **sizes)


def _swin(depths: tuple[int, ...], width: int) -> dict[str, Any]:
  sizes = _variant(depths, (width, 2 * width, 4 * width, 8 * width))
  return {**sizes, "overlapping": False, "step": 7, "fusion": "sum"}


_WIDTHS = (64, 128, 320, 512)
VARIANTS = {
  "B1": _variant((2, 2, 4, 2), _WIDTHS),
  "B2": _variant((2, 3, 10, 3), _WIDTHS),
  "B3": _variant((3, 4, 18, 3), _WIDTHS, (8, 8, 4, 4)),
  "B4": _variant((3, 8, 27, 3), _WIDTHS, (8, 8, 4, 4)),
  "B5": _variant((3, 4, 24, 3), (96, 192, 384, 768)),
  "T": _swin((2, 2, 6, 2), 96),
  "S": _swin((2, 2, 18, 2), 96),
  "B": _swin((2, 2, 18, 2), 128),
}
"""Published size -> fields of the model."""


def displace(x: Float[Array, "b *n c"], step: int, axis: int) -> Float[Array, "b *n c"]:
  """Returns maps whose channel c is read d(c) positions further along an axis; zeros beyond the edge.

  d runs through 0, 1, …, −1 in turn: d(c) = (c + ⌊step/2⌋) mod step − ⌊step/2⌋, as in the authors' code. The paper's
  begins at −⌊step/2⌋, which is a permutation of the channels.
  """
  half, length = step // 2, x.shape[axis]
  padding = [(half, half) if a == axis else (0, 0) for a in range(x.ndim)]
  padded = jnp.pad(x, padding)
  number = jnp.arange(x.shape[-1]) % step
  y = x
  for k in range(1, min(step, x.shape[-1])):
    offset = (k + half) % step  # of the slice that is displaced by d(k)
    y = jnp.where(number == k, jax.lax.slice_in_dim(padded, offset, offset + length, axis=axis), y)
  return y


class CycleMixing(layers.Layer):
  """proj(Σ_i w_i·branch_i): linear maps of x displaced along the width, along the height, and of x itself.

  With "reweight" w is, for each image and channel, the softmax over the branches of an MLP of the mean over positions
  of their sum; with "sum" it is 1. The last three axes of x are height, width and channels.
  """

  step: int
  fusion: Fusion
  gelu: layers.Gelu = "erf"

  @nn.compact
  def __call__(
    self, x: Float[Array, "b *n h w c"], index: Index, train: bool = False
  ) -> Float[Array, "b *n h w c"]:
    channels, rank = x.shape[-1], x.ndim
    common: dict[str, Any] = dict(kernel_init=TRUNCATED_NORMAL, **self.dtypes)
    dense = functools.partial(nn.Dense, dot_general=layers.dot_general(train), **common)
    width = dense(channels, name="width")(displace(x, self.step, rank - 2))
    height = dense(channels, name="height")(displace(x, self.step, rank - 3))
    third = self._third(x, dense)
    total = width + height + third
    if self.fusion == "reweight":
      mlp = layers.MlpBlock(channels // 4, 3 * channels, gelu=self.gelu, name="reweight", **common)
      mean = jnp.mean(total, axis=tuple(range(1, rank - 1)), dtype=jnp.float32)
      weights = mlp(mean, index, train=train).reshape(-1, *[1] * (rank - 2), channels, 3)
      weights = jax.nn.softmax(weights.astype(jnp.float32)).astype(self.dtype)
      total = width * weights[..., 0] + height * weights[..., 1] + third * weights[..., 2]
    return dense(channels, name="projection")(total)

  def _third(self, x: Array, dense: Any) -> Array:
    """Returns the branch beside those along the width and the height."""
    return dense(x.shape[-1], use_bias=False, name="channel")(x)


class CycleBlock(layers.Block):
  """Mixes across positions, then across channels; each half is `x + branch(norm(x))`."""

  mlp_dim: int
  step: int
  fusion: Fusion

  @nn.compact
  def __call__(
    self, x: Float[Array, "b *n c"], index: Index, kept: Kept, mask: Mask, train: bool
  ) -> Float[Array, "b *n c"]:
    norm = functools.partial(nn.LayerNorm, epsilon=1e-5, **self.dtypes)
    mixing = self._mixing(gelu=self.gelu, name="mixing", **self.dtypes)
    x = x + self.drop_path(mixing(norm()(x), index, train), kept, 0)
    mlp = layers.MlpBlock(self.mlp_dim, gelu=self.gelu, kernel_init=TRUNCATED_NORMAL, **self.dtypes)
    return x + self.drop_path(mlp(norm()(x), index, train=train), kept, 1)

  def _mixing(self, **fields: Any) -> Any:
    return CycleMixing(self.step, self.fusion, **fields)


class PatchMerging(layers.Layer):
  """Dense(norm(the four neighbours of every 2×2 positions joined)); odd maps are padded with zeros first.

  The order of the neighbours is (row, column) (0,0), (1,0), (0,1), (1,1), as in Swin.
  """

  features: int

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b y x o"]:
    x = _pad_to_multiple(x, 2)
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 4, 2, 5)
    x = nn.LayerNorm(epsilon=1e-5, **self.dtypes)(x.reshape(b, h // 2, w // 2, 4 * c))
    dense = nn.Dense(
      self.features,
      use_bias=False,
      kernel_init=TRUNCATED_NORMAL,
      dot_general=layers.dot_general(train),
      **self.dtypes,
    )
    return dense(x)


def _pad_to_multiple(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b y x c"]:
  _, height, width, _ = x.shape
  return jnp.pad(x, ((0, 0), (0, -height % side), (0, -width % side), (0, 0)))


class Model(base.BlockModel):
  """CycleMLP: stem -> four stages of CycleBlock -> LayerNorm -> mean over positions -> head.

  The stem divides each side by 4, what lies between two stages by 2. Sows every stage's output (`stage_1` to
  `stage_4`), which the authors' backbone for dense tasks returns behind a LayerNorm each, every block's (`block_<i>`)
  and `pre_logits`.

  Attributes:
    num_blocks: blocks of each stage.
    widths: channels of each stage; from 4 with "reweight".
    mlp_ratios: hidden width of each stage's MLPs, in its channels.
    overlapping: True (B1 to B5): patches of 7×7 with stride 4, of 3×3 with stride 2 between stages, no norms.
      False (T, S, B): patches of 4×4, then a LayerNorm, and 2×2 positions merged between stages.
    step: number of displacements that the channels take in turn: 3 in B1 to B5, 7 in T, S and B.
    fusion: "reweight", a softmax over the three branches; "sum", as in the paper's figure.
  """

  num_blocks: tuple[int, ...]
  widths: tuple[int, ...]
  mlp_ratios: tuple[int, ...]
  overlapping: bool = True
  step: PositiveInt = 3
  fusion: Fusion = "reweight"

  def check(self, sides: tuple[int, ...]) -> None:
    for name in ("num_blocks", "widths", "mlp_ratios"):
      value = getattr(self, name)
      if len(value) != 4 or min(value) < 1:
        raise InputError(
          f"{name} is {value}; expected a number from 1 for each of the four stages."
        )
    if self.fusion == "reweight" and min(self.widths) < 4:
      raise InputError(
        f"widths is {self.widths}; expected numbers from 4, as reweighting divides them by 4. "
        "fusion='sum' takes any."
      )

  def logits(self, image: Array, index: Index, mask: Mask, train: bool) -> Array:
    x = self.run_stages(CycleBlock, self.num_blocks, image, index, mask, train)
    x = nn.LayerNorm(epsilon=1e-5, name="pre_head_layer_norm", **self.dtypes)(x)
    return self.classify(jnp.mean(x, axis=(1, 2), dtype=jnp.float32), TRUNCATED_NORMAL)

  def stage_input(self, x: Array, stage: int, mask: Mask, train: bool) -> Array:
    width = self.widths[stage]
    if stage and not self.overlapping:
      return PatchMerging(width, name=f"downsample_{stage}", **self.dtypes)(x, train)
    size, stride, pad = (3, 2, 1) if stage else (7, 4, 2) if self.overlapping else (4, 4, 0)
    x = x if self.overlapping else _pad_to_multiple(x, 4)
    x = nn.Conv(
      width,
      (size, size),
      (stride, stride),
      padding=((pad, pad), (pad, pad)),
      kernel_init=CONV_KERNEL,
      bias_init=layers.uniform_bias(size**2 * x.shape[-1]),
      name=f"downsample_{stage}" if stage else "stem",
      **self.dtypes,
    )(x)
    if self.overlapping:
      return x
    return nn.LayerNorm(epsilon=1e-5, name="stem_layer_norm", **self.dtypes)(x)

  def block_fields(self, x: Array, stage: int) -> list[dict[str, Any]]:
    mlp_dim, depth = x.shape[-1] * self.mlp_ratios[stage], self.num_blocks[stage]
    sizes = dict(mlp_dim=mlp_dim, step=self.step, fusion=self.fusion)
    name = "CycleBlock" if self.overlapping else "CycleSwinBlock"
    return [dict(sizes, name=f"{name}_{stage}_{i}") for i in range(depth)]


PREFIX = r"Cycle(?:Swin)?Block_\d+_\d+/"
STEM = "stem/kernel"
UNTOLD: dict[str, Any] = {"step": 3}
LAYERS = (r"stem", r"(?:downsample|Cycle(?:Swin)?Block)_(\d+)(?:_(\d+))?/")


def block_names(theirs: str, ours: str) -> Any:
  """Returns the names of a stage's blocks; `offset`, the displacements, are constants."""
  return (
    (f"{theirs}.norm1", f"{ours}/LayerNorm_0"),
    (f"{theirs}.norm2", f"{ours}/LayerNorm_1"),
    (f"{theirs}.attn.mlp_c", f"{ours}/mixing/channel"),
    (f"{theirs}.attn.sfc_h.weight", f"{ours}/mixing/width/kernel", (2, 3)),
    (f"{theirs}.attn.sfc_h.bias", f"{ours}/mixing/width/bias"),
    (f"{theirs}.attn.sfc_h.offset", ""),
    (f"{theirs}.attn.sfc_w.weight", f"{ours}/mixing/height/kernel", (2, 3)),
    (f"{theirs}.attn.sfc_w.bias", f"{ours}/mixing/height/bias"),
    (f"{theirs}.attn.sfc_w.offset", ""),
    (f"{theirs}.attn.reweight.fc1", f"{ours}/mixing/reweight/Dense_0"),
    (f"{theirs}.attn.reweight.fc2", f"{ours}/mixing/reweight/Dense_1"),
    (f"{theirs}.attn.proj", f"{ours}/mixing/projection"),
    (f"{theirs}.mlp.fc1", f"{ours}/MlpBlock_0/Dense_0"),
    (f"{theirs}.mlp.fc2", f"{ours}/MlpBlock_0/Dense_1"),
  )


TORCH_NAMES = {
  "authors": (
    ("patch_embed.proj", "stem"),
    ("patch_embed.norm", "stem_layer_norm"),
    *(
      entry
      for stage in range(4)
      for entry in block_names(f"network.{2 * stage}.{{}}", f"CycleBlock_{stage}_{{}}")
    ),
    *((f"network.{2 * stage - 1}.proj", f"downsample_{stage}") for stage in (1, 2, 3)),
    *block_names("layers.{}.blocks.{}", "CycleSwinBlock_{}_{}"),
    *(
      (f"layers.{stage - 1}.downsample.{theirs}", f"downsample_{stage}/{ours}")
      for stage in (1, 2, 3)
      for theirs, ours in (("norm", "LayerNorm_0"), ("reduction", "Dense_0"))
    ),
    ("norm", "pre_head_layer_norm"),
    ("head", "head"),
  )
}
"""Of T, S and B no names are known; theirs are here those of Swin."""


def fields_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """Returns the model's fields that parameter shapes tell."""
  overlapping = "CycleBlock_0_0/MlpBlock_0/Dense_0/kernel" in shapes
  block = "CycleBlock" if overlapping else "CycleSwinBlock"
  hidden = [shapes[f"{block}_{stage}_0/MlpBlock_0/Dense_0/kernel"] for stage in range(4)]
  reweight = any("/reweight/" in name for name in shapes)
  return dict(
    num_blocks=tuple(base.num_blocks(shapes, f"{block}_{stage}_") for stage in range(4)),
    widths=tuple(width for width, _ in hidden),
    mlp_ratios=tuple(mlp_dim // width for width, mlp_dim in hidden),
    num_classes=base.num_classes(shapes),
    overlapping=overlapping,
    fusion="reweight" if reweight else "sum",
  )


def input_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int]:
  """Returns an image (height, width, channels) that the parameters are for; any other size will do, too."""
  return 224, 224, shapes[STEM][2]
