"""ResMLP (Touvron et al., 2021, arXiv:2105.03404): linear token mixing, affine transforms instead of LayerNorm.

Axis letters: b images, h w pixels, s tokens (patches in raster order), c hidden channels, k classes.
Facts: facebookresearch/deit, resmlp_models.py; timm, models/mlp_mixer.py (ResBlock). Circulant token mixing is that of
CCS (Yu et al., 2021, arXiv:2106.14882).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mixer_jax.configuration import NonNegativeFloat, PositiveInt
from mixer_jax.errors import InputError
from mixer_jax.models import base, layers, resizing
from mixer_jax.models.layers import Index, Kept, Mask
from mixer_jax.models.resizing import Grid

TITLE = "ResMLP"
_TRUNCATED_NORMAL = nn.initializers.truncated_normal(0.02)


def _variant(num_blocks: int, patch_size: int, hidden_dim: int, scale: float) -> dict[str, Any]:
  return dict(
    patch_size=patch_size,
    num_blocks=num_blocks,
    hidden_dim=hidden_dim,
    mlp_dim=4 * hidden_dim,
    layer_scale_init=scale,
  )


VARIANTS = {
  "12": _variant(12, 16, 384, 0.1),
  "24": _variant(24, 16, 384, 1e-5),
  "36": _variant(36, 16, 384, 1e-6),
  "B24": _variant(24, 8, 768, 1e-6),
}
"""Published size -> fields of the model. timm starts 12 at 1e-4."""


class ResMlpBlock(layers.Block):
  """Mixes across tokens, then across channels; each half is `x + gamma·branch(affine(x))`."""

  mlp_dim: int
  layer_scale_init: float
  circulants: int | None = (
    None  # vectors of circulant token mixing; None: one linear map for all channels
  )

  @nn.compact
  def __call__(
    self, x: Float[Array, "b s c"], index: Index, kept: Kept, mask: Mask, train: bool
  ) -> Float[Array, "b s c"]:
    y = self._mix_tokens(layers.Affine(**self.dtypes)(x), train)
    x = x + self.drop_path(layers.LayerScale(self.layer_scale_init, **self.dtypes)(y), kept, 0)
    y = layers.MlpBlock(
      self.mlp_dim,
      gelu=self.gelu,
      kernel_init=_TRUNCATED_NORMAL,
      name="channel_mixing",
      **self.dtypes,
    )(layers.Affine(**self.dtypes)(x), index, train=train)
    return x + self.drop_path(layers.LayerScale(self.layer_scale_init, **self.dtypes)(y), kept, 1)

  def _mix_tokens(self, x: Array, train: bool) -> Array:
    if self.circulants is not None:
      return layers.Circulant(self.circulants, name="circulant", **self.dtypes)(x)
    linear = nn.Dense(
      x.shape[1],
      kernel_init=_TRUNCATED_NORMAL,
      dot_general=layers.dot_general(train),
      name="token_mixing",
      **self.dtypes,
    )
    return jnp.swapaxes(linear(jnp.swapaxes(x, 1, 2)), 1, 2)


class Model(base.BlockModel):
  """ResMLP: patches -> stem -> `num_blocks` × ResMlpBlock -> affine -> mean over tokens -> head.

  All blocks drop their branches with the same probability, stoch_depth. Sows every block's output as tokens (`block_<i>`), the
  last one's as a map (`stage_1`), and `pre_logits`.

  Attributes:
    patch_size: side of a square patch in pixels.
    num_blocks: number of blocks L.
    hidden_dim: channels of a token c.
    mlp_dim: hidden width of channel mixing.
    layer_scale_init: start of gamma, the scale of each branch.
    token_mixing: "linear", one map for all channels; "circulant" (layers.Circulant).
    channel_groups: G vectors of "circulant" (published: 8).
  """

  patch_size: PositiveInt
  num_blocks: PositiveInt
  hidden_dim: PositiveInt
  mlp_dim: PositiveInt
  layer_scale_init: NonNegativeFloat = 1e-5
  token_mixing: Literal["linear", "circulant"] = "linear"
  channel_groups: PositiveInt = 1

  def check(self, sides: tuple[int, ...]) -> None:
    resizing.token_grid(sides, self.patch_size)
    if self.token_mixing == "linear" and self.channel_groups > 1:
      raise InputError(
        f"channel_groups {self.channel_groups} with token_mixing 'linear' must be 1: only 'circulant' has groups."
      )

  def logits(self, image: Array, index: Index, mask: Mask, train: bool) -> Array:
    x = self.run_stages(ResMlpBlock, [self.num_blocks], image, index, mask, train)
    self.sow_map(x, *resizing.token_grid(image.shape[1:3], self.patch_size))
    x = layers.Affine(name="pre_head_affine", **self.dtypes)(x)
    return self.classify(jnp.mean(x, axis=1, dtype=jnp.float32), _TRUNCATED_NORMAL)

  def rates(self, depths: Sequence[int]) -> list[float]:
    return [self.stoch_depth] * sum(depths)

  def stage_input(self, x: Array, stage: int, mask: Mask, train: bool) -> Array:
    x = nn.Conv(
      self.hidden_dim,
      (self.patch_size, self.patch_size),
      strides=(self.patch_size, self.patch_size),
      padding="VALID",
      kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
      bias_init=layers.uniform_bias(x.shape[-1] * self.patch_size**2),
      name="stem",
      **self.dtypes,
    )(x)
    return x.reshape(x.shape[0], -1, x.shape[-1])

  def block_fields(self, x: Array, stage: int) -> list[dict[str, Any]]:
    circulants = self.channel_groups if self.token_mixing == "circulant" else None
    sizes = dict(
      mlp_dim=self.mlp_dim, layer_scale_init=self.layer_scale_init, circulants=circulants
    )
    return [dict(sizes, name=f"ResMlpBlock_{i}") for i in range(self.num_blocks)]


_RING = "ResMlpBlock_0/circulant/kernel"
PREFIX = r"ResMlpBlock_\d+/"
STEM = "stem/kernel"
LAYERS = (r"stem/", r"ResMlpBlock_(\d+)/")


def _torch_names(linear: str, mlp: str, scale: str, stem: str, axes: tuple[int, ...]) -> Any:
  """Returns a table of torch names; `axes` are those of length 1 that alpha and beta have there."""
  block = "ResMlpBlock_{}"
  affine = {
    "norm": "pre_head_affine",
    "blocks.{}.norm1": f"{block}/Affine_0",
    "blocks.{}.norm2": f"{block}/Affine_1",
  }
  return (
    (stem, "stem"),
    ("blocks.{}.token.w", f"{block}/circulant/kernel"),
    (f"blocks.{{}}.{linear}", f"{block}/token_mixing"),
    (f"blocks.{{}}.{mlp}.fc1", f"{block}/channel_mixing/Dense_0"),
    (f"blocks.{{}}.{mlp}.fc2", f"{block}/channel_mixing/Dense_1"),
    (f"blocks.{{}}.{scale}1", f"{block}/LayerScale_0/gamma"),
    (f"blocks.{{}}.{scale}2", f"{block}/LayerScale_1/gamma"),
    *(
      (f"{theirs}.{x}", f"{ours}/{x}", axes)
      for theirs, ours in affine.items()
      for x in ("alpha", "beta")
    ),
    ("head", "head"),
  )


TORCH_NAMES = {
  "timm": _torch_names("linear_tokens", "mlp_channels", "ls", "stem.proj", (0, 1)),
  "authors": _torch_names("attn", "mlp", "gamma_", "patch_embed.proj", ()),
}
"""Neither has circulant token mixing: `token.w`, (G, tokens), is this project's name."""
RESIZE_METHODS = ("interpolate",)


def fields_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """Returns the model's fields that parameter shapes tell."""
  patch_size, _, _, hidden_dim = shapes[STEM]
  ring = shapes.get(_RING)
  return dict(
    patch_size=patch_size,
    num_blocks=base.num_blocks(shapes, "ResMlpBlock_"),
    hidden_dim=hidden_dim,
    mlp_dim=shapes["ResMlpBlock_0/channel_mixing/Dense_0/kernel"][1],
    num_classes=base.num_classes(shapes),
    **({"token_mixing": "circulant", "channel_groups": ring[1]} if ring else {}),
  )


def input_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int]:
  """Returns the image (height, width, channels) that the parameters are for: a square, if it can be one."""
  patch_size, _, channels, _ = shapes[STEM]
  mixing = shapes.get(_RING) or shapes["ResMlpBlock_0/token_mixing/kernel"]
  return resizing.image_shape(mixing[0], patch_size, channels)


def resize_fields(
  fields: Mapping[str, Any], old_grid: Grid, new_grid: Grid, method: str
) -> dict[str, Any]:
  """Returns the fields, which do not depend on the grid; raises InputError for circulant token mixing."""
  del method
  resizing.check_no_ring(fields, old_grid, new_grid)
  return dict(fields)


def resize(
  params: Mapping[str, Any], old_grid: Grid, new_grid: Grid, method: str
) -> dict[str, Any]:
  """Returns the parameters for another grid of tokens (rows, columns); types stay.

  The linear map over the tokens is framed by resampling, P·T·R (models/resizing.py).
  """
  del method  # there is only one

  def changed(block: Mapping[str, Any]) -> dict[str, Any]:
    mixing = resizing.resize_dense(block["token_mixing"], old_grid, new_grid)
    return {**block, "token_mixing": mixing}

  return {k: changed(v) if k.startswith("ResMlpBlock_") else v for k, v in params.items()}
