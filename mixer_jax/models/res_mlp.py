"""ResMLP (Touvron et al., 2021, arXiv:2105.03404): linear token mixing, affine transforms instead of LayerNorm.

Axis letters: b images, h w pixels, s tokens (patches in raster order), c hidden channels, k classes.
Facts: facebookresearch/deit, resmlp_models.py; timm, models/mlp_mixer.py (ResBlock). Circulant token mixing is that of
CCS (Yu et al., 2021, arXiv:2106.14882).
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from mixer_jax.configuration import NonNegativeFloat, PositiveInt, Rate
from mixer_jax.errors import InputError
from mixer_jax.models import layers, resizing
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


class ResMlpBlock(nn.Module):
  """Mixes across tokens, then across channels; each half is `x + gamma·branch(affine(x))`.

  Where `kept[i, j]` is False, image i skips branch j (drop path).
  """

  mlp_dim: int
  layer_scale_init: float
  circulants: int | None = (
    None  # vectors of circulant token mixing; None: one linear map for all channels
  )
  gelu: layers.Gelu = "erf"
  drop_path_rate: float = 0.0
  rescale: bool = True
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b s c"],
    index: Int[Array, " b"],
    kept: Bool[Array, "b 2"] | None = None,
    train: bool = False,
  ) -> Float[Array, "b s c"]:
    kept_tokens, kept_channels = (None, None) if kept is None else (kept[:, 0], kept[:, 1])
    dtypes: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    drop_path = functools.partial(layers.drop_path, rate=self.drop_path_rate, rescale=self.rescale)
    y = self._mix_tokens(layers.Affine(**dtypes)(x), train, **dtypes)
    x = x + drop_path(layers.LayerScale(self.layer_scale_init, **dtypes)(y), kept_tokens)
    y = layers.MlpBlock(
      self.mlp_dim,
      gelu=self.gelu,
      kernel_init=_TRUNCATED_NORMAL,
      name="channel_mixing",
      **dtypes,
    )(layers.Affine(**dtypes)(x), index, train=train)
    return x + drop_path(layers.LayerScale(self.layer_scale_init, **dtypes)(y), kept_channels)

  def _mix_tokens(self, x: Array, train: bool, **dtypes: Any) -> Array:
    if self.circulants is not None:
      return layers.Circulant(self.circulants, name="circulant", **dtypes)(x)
    linear = nn.Dense(
      x.shape[1],
      kernel_init=_TRUNCATED_NORMAL,
      dot_general=layers.dot_general(train),
      name="token_mixing",
      **dtypes,
    )
    return jnp.swapaxes(linear(jnp.swapaxes(x, 1, 2)), 1, 2)


class Model(layers.ImageModel):
  """ResMLP: patches -> stem -> `num_blocks` × ResMlpBlock -> affine -> mean over tokens -> head.

  Sows every block's output as tokens (`block_<i>`), the last one's as a map (`stage_1`), and `pre_logits`.

  Attributes:
    patch_size: side of a square patch in pixels.
    num_blocks: number of blocks L.
    hidden_dim: channels of a token c.
    mlp_dim: hidden width of channel mixing.
    num_classes: width of the head k. If None or 0, there is no head and the module returns `pre_logits`.
    layer_scale_init: start of gamma, the scale of each branch.
    gelu: "erf", the exact one; "tanh", the approximation.
    token_mixing: "linear", one map for all channels; "circulant" (layers.Circulant).
    channel_groups: G vectors of "circulant" (published: 8).
    stoch_depth: each block drops each branch of an image with this probability, the same for all blocks.
    stoch_depth_rescale: divide the branches that are kept by 1 − that.
    head_bias_init: start of the head's bias.
    dtype: compute type; the mean over tokens and the head stay float32.
    param_dtype: type of the parameters.
    remat: "block" keeps only the blocks' inputs for the backward pass and recomputes the rest.
  """

  patch_size: PositiveInt
  num_blocks: PositiveInt
  hidden_dim: PositiveInt
  mlp_dim: PositiveInt
  num_classes: int | None = 1000
  layer_scale_init: NonNegativeFloat = 1e-5
  gelu: layers.Gelu = "erf"
  token_mixing: Literal["linear", "circulant"] = "linear"
  channel_groups: PositiveInt = 1
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
      image: normalised values; the number of tokens, hw/patch_size², is fixed by the parameters.
      train: draw drop path, from the random stream "dropout".
      index: the images' positions in the global batch, which their draws belong to; default 0 … b−1.
      mask: without effect, as no statistics are taken over the batch.

    Raises:
      InputError: the patch does not divide the image, or the options of token mixing do not go together.
    """
    del mask
    layers.check_image(image)
    _, height, width, channels = image.shape
    resizing.token_grid((height, width), self.patch_size)
    if self.token_mixing == "linear" and self.channel_groups > 1:
      raise InputError(
        f"channel_groups {self.channel_groups} with token_mixing 'linear' must be 1: only 'circulant' has groups."
      )
    index = jnp.arange(image.shape[0]) if index is None else index
    dtypes: dict[str, Any] = dict(
      dtype=jnp.dtype(self.dtype), param_dtype=jnp.dtype(self.param_dtype)
    )
    x = nn.Conv(
      self.hidden_dim,
      (self.patch_size, self.patch_size),
      strides=(self.patch_size, self.patch_size),
      padding="VALID",
      kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
      bias_init=layers.uniform_bias(channels * self.patch_size**2),
      name="stem",
      **dtypes,
    )(image)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    kept = self._draw_kept(index) if train and self.stoch_depth else None
    block = nn.remat(ResMlpBlock, static_argnums=(4,)) if self.remat == "block" else ResMlpBlock
    for i in range(self.num_blocks):
      x = block(
        self.mlp_dim,
        self.layer_scale_init,
        self.channel_groups if self.token_mixing == "circulant" else None,
        gelu=self.gelu,
        drop_path_rate=self.stoch_depth,
        rescale=self.stoch_depth_rescale,
        name=f"ResMlpBlock_{i}",
        **dtypes,
      )(x, index, None if kept is None else kept[:, i], train)
      self.sow("intermediates", f"block_{i}", x)
    layers.sow_map(self, "stage_1", x, height // self.patch_size, width // self.patch_size)
    x = layers.Affine(name="pre_head_affine", **dtypes)(x)
    return layers.classify(self, jnp.mean(x, axis=1, dtype=jnp.float32), _TRUNCATED_NORMAL)

  def _draw_kept(self, index: Array) -> Array:
    rates = jnp.full(self.num_blocks, self.stoch_depth)
    return layers.draw_kept(self.make_rng("dropout"), index, rates)


_RING = "ResMlpBlock_0/circulant/kernel"
PREFIX = r"ResMlpBlock_\d+/"
UNTOLD: dict[str, Any] = {}
HEAD = {"head": "num_classes"}
STEM = "stem/kernel"
LAYERS = (r"stem/", r"ResMlpBlock_(\d+)/")
RELEASED_RENAMES = ()


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
    num_blocks=layers.num_blocks(shapes, "ResMlpBlock_"),
    hidden_dim=hidden_dim,
    mlp_dim=shapes["ResMlpBlock_0/channel_mixing/Dense_0/kernel"][1],
    num_classes=shapes["head/kernel"][1] if "head/kernel" in shapes else None,
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
    kernel, bias = (np.asarray(block["token_mixing"][name]) for name in ("kernel", "bias"))
    new = resizing.interpolate_in(kernel, old_grid, new_grid)
    mixing = dict(
      kernel=resizing.interpolate_out(new, old_grid, new_grid).astype(kernel.dtype),
      bias=resizing.interpolate_out(bias, old_grid, new_grid).astype(bias.dtype),
    )
    return {**block, "token_mixing": mixing}

  return {k: changed(v) if k.startswith("ResMlpBlock_") else v for k, v in params.items()}
