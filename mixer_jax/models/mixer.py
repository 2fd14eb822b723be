"""MLP-Mixer (Tolstikhin et al., 2021, arXiv:2105.01601).

With `tubelet` it takes clips: a patch spans so many frames, too, and tokens are mixed over time and space at once. That
is this project's, and no paper's; it is the same model with other patches.

Axis letters: b images, t frames, h w pixels, s tokens (patches in raster order), c hidden channels, k classes.
Parameter names are those of the released files (vision_transformer, vit_jax/models_mixer.py).
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from mixer_jax.configuration import Fraction, PositiveInt, Rate
from mixer_jax.errors import InputError
from mixer_jax.models import layers, resizing
from mixer_jax.models.kernels import Kernels, gpu_token_mixing
from mixer_jax.models.resizing import Grid
from mixer_jax.models.token_mixing import TOKEN_MIXING, Name, TokenMixing, check_token_mixing

TITLE = "Mixer"


def _variant(num_blocks: int, patch_size: int, hidden_dim: int) -> dict[str, int]:
  # In table 1 both MLP widths follow from the hidden one: channels 4 × and tokens ½ ×.
  return dict(
    patch_size=patch_size,
    num_blocks=num_blocks,
    hidden_dim=hidden_dim,
    tokens_mlp_dim=hidden_dim // 2,
    channels_mlp_dim=hidden_dim * 4,
  )


VARIANTS = {
  "S/32": _variant(8, 32, 512),
  "S/16": _variant(8, 16, 512),
  "B/32": _variant(12, 32, 768),
  "B/16": _variant(12, 16, 768),
  "L/32": _variant(24, 32, 1024),
  "L/16": _variant(24, 16, 1024),
  "H/14": _variant(32, 14, 1280),
}
"""Table 1: published size -> fields of the model."""


class MixerBlock(nn.Module):
  """Mixes across tokens, then across channels; each half is `x + branch(norm(x))`.

  Where `kept[i, j]` is False, image i skips branch j (drop path). `mix_tokens` makes the token mixing,
  one of token_mixing.TOKEN_MIXING.
  """

  mix_tokens: Callable[..., TokenMixing]
  channels_mlp_dim: int
  gelu: layers.Gelu = "tanh"
  dropout_rate: float = 0.0
  drop_path_rate: float = 0.0
  rescale: bool = False
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b s c"],
    index: Int[Array, " b"],
    kept: Bool[Array, "b 2"] | None = None,
    train: bool = False,
  ) -> Float[Array, "b t c"]:
    kept_tokens, kept_channels = (None, None) if kept is None else (kept[:, 0], kept[:, 1])
    dtypes: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    drop_path = functools.partial(layers.drop_path, rate=self.drop_path_rate, rescale=self.rescale)
    mlp: dict[str, Any] = dict(gelu=self.gelu, dropout_rate=self.dropout_rate, **dtypes)
    # Flax's LayerNorm takes its statistics in float32 whatever the compute type.
    y = nn.LayerNorm(**dtypes)(x)
    y = self.mix_tokens(name="token_mixing", **mlp)(y, index, train=train)
    # Another number of tokens has nothing to be added to; the paper does not say what was done.
    x = x + drop_path(y, kept_tokens) if y.shape == x.shape else y
    y = nn.LayerNorm(**dtypes)(x)
    y = layers.MlpBlock(self.channels_mlp_dim, name="channel_mixing", **mlp)(y, index, train=train)
    return x + drop_path(y, kept_channels)


class Model(layers.ImageModel):
  """MLP-Mixer: patches -> stem -> `num_blocks` × MixerBlock -> LayerNorm -> mean over tokens -> head.

  Sows every block's output as tokens (`block_<i>`), the last one's as a map (`stage_1`), and `pre_logits`.

  Attributes:
    num_classes: width of the head k. If None or 0, there is no head and the module returns `pre_logits`.
    patch_size: side of a square patch in pixels.
    tubelet: frames that a patch of a clip spans. If None, the model takes images.
    num_blocks: number of Mixer blocks L.
    hidden_dim: channels of a token c.
    tokens_mlp_dim: hidden width of token mixing.
    channels_mlp_dim: hidden width of channel mixing.
    gelu: "tanh", the authors' approximation; "erf", the exact one, as in timm.
    dropout_rate: dropout inside the MLPs while training.
    stoch_depth: s; block i of L drops each branch of an image with probability s·i/(L−1).
    stoch_depth_rescale: divide the branches that are kept by 1 − that; the authors do not.
    token_mixing: "mlp", appendix A's "untied", "grouped", "views", or "circulant" (models/token_mixing.py), which have
      other parameters below `MixerBlock_<i>/token_mixing`. "circulant" has no use for tokens_mlp_dim.
    channel_groups: G channels that are joined in "grouped" and "views"; G vectors of "circulant" (published: 8).
    pyramid: tokens that leave each block (appendix A); (): as many as enter it. Where their number changes,
      token mixing has no skip connection and is never dropped.
    head_bias_init: start of the head's bias (its kernel starts at zero).
    dtype: compute type; statistics of LayerNorm, the mean over tokens and the head stay float32.
    param_dtype: type of the parameters.
    remat: "block" keeps only the blocks' inputs for the backward pass and recomputes the rest.
    kernels: how tokens are mixed on NVIDIA GPUs, from config.kernels.
  """

  patch_size: PositiveInt
  num_blocks: PositiveInt
  hidden_dim: PositiveInt
  tokens_mlp_dim: PositiveInt
  channels_mlp_dim: PositiveInt
  num_classes: int | None = 1000
  tubelet: PositiveInt | None = None
  gelu: layers.Gelu = "tanh"
  dropout_rate: Rate = 0.0
  stoch_depth: Fraction = 0.0
  stoch_depth_rescale: bool = False
  token_mixing: Name = "mlp"
  channel_groups: PositiveInt = 1
  pyramid: tuple[int, ...] = ()
  head_bias_init: float = 0.0
  dtype: Literal["float32", "bfloat16"] = "float32"
  param_dtype: Literal["float32", "bfloat16"] = "float32"
  remat: Literal["none", "block"] = "none"
  kernels: Kernels = "xla"

  def takes_kernel(self, input_shape: tuple[int, ...]) -> bool:
    """Returns whether the fused kernel can mix the tokens of such images or clips."""
    tokens = math.prod(input_shape[:-1]) // (self.patch_size**2 * (self.tubelet or 1))
    fits = gpu_token_mixing.fits(tokens, *self.pyramid)
    return self.token_mixing == "mlp" and fits and not self.dropout_rate

  @nn.compact
  def __call__(
    self,
    image: Float[Array, "b *t h w p"],
    *,
    train: bool = False,
    index: Int[Array, " b"] | None = None,
    mask: Float[Array, " b"] | None = None,
  ) -> Float[Array, "b k"]:
    """Returns logits, or `pre_logits` (b, c) without a head.

    Args:
      image: normalised values; the number of tokens, hw/patch_size² times t/tubelet, is fixed by the parameters.
      train: draw drop path and dropout, from the random stream "dropout".
      index: the images' positions in the global batch, which their draws belong to; default 0 … b−1.
      mask: without effect, as no statistics are taken over the batch.

    Raises:
      InputError: the patch does not divide the image (the authors' code pads it silently), images in place of clips or
        clips in place of images, or the options of token mixing do not go together.
    """
    del mask
    layers.check_image(image, clips=self.tubelet is not None)
    grid = self._grid(image.shape[1:-1])
    check_token_mixing(
      self.token_mixing, self.channel_groups, self.pyramid, self.num_blocks, self.hidden_dim
    )
    index = jnp.arange(image.shape[0]) if index is None else index
    dtypes: dict[str, Any] = dict(
      dtype=jnp.dtype(self.dtype), param_dtype=jnp.dtype(self.param_dtype)
    )
    patch = (self.tubelet or 1,) * (image.ndim - 4) + (self.patch_size,) * 2
    convolution = None if self.tubelet else layers.patch_convolution
    stem = dict(padding="VALID", conv_general_dilated=convolution, name="stem")
    x = nn.Conv(self.hidden_dim, patch, strides=patch, **stem, **dtypes)(image)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    kept = self._draw_kept(index) if train and self.stoch_depth else None
    block = nn.remat(MixerBlock, static_argnums=(4,)) if self.remat == "block" else MixerBlock
    for i in range(self.num_blocks):
      x = block(
        self._mix_tokens(i),
        self.channels_mlp_dim,
        gelu=self.gelu,
        dropout_rate=self.dropout_rate,
        drop_path_rate=layers.linear_rate(self.stoch_depth, i, self.num_blocks),
        rescale=self.stoch_depth_rescale,
        name=f"MixerBlock_{i}",
        **dtypes,
      )(x, index, None if kept is None else kept[:, i], train)
      self.sow("intermediates", f"block_{i}", x)
    layers.sow_map(self, "stage_1", x, *grid)
    x = nn.LayerNorm(name="pre_head_layer_norm", **dtypes)(x)
    return layers.classify(self, jnp.mean(x, axis=1, dtype=jnp.float32))

  def _grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the grid of tokens ([time,] rows, columns) of an image or clip ([frames,] height, width)."""
    *clip, height, width = shape
    grid = resizing.token_grid((height, width), self.patch_size)
    if self.tubelet is None:
      return grid
    if clip[0] % self.tubelet:
      raise InputError(
        f"frames is {clip[0]}, which tubelet {self.tubelet} does not divide: take a multiple."
      )
    return clip[0] // self.tubelet, *grid

  def _mix_tokens(self, block: int) -> Callable[..., TokenMixing]:
    return functools.partial(
      TOKEN_MIXING[self.token_mixing],
      self.tokens_mlp_dim,
      num_tokens=self.pyramid[block] if self.pyramid else None,
      channel_groups=self.channel_groups,
      kernels=self.kernels,
    )

  def _draw_kept(self, index: Array) -> Array:
    rates = layers.linear_rates(self.stoch_depth, self.num_blocks)
    return layers.draw_kept(self.make_rng("dropout"), index, rates)


_RING = "MixerBlock_0/token_mixing/kernel"
PREFIX = r"(MixerBlock_\d+|Mixer)/"
UNTOLD: dict[str, Any] = {}
HEAD = {"head": "num_classes"}
STEM = "stem/kernel"
LAYERS = (r"stem/", r"MixerBlock_(\d+)/")
RELEASED_RENAMES = (
  (r"^embedding/", "stem/"),
  (r"^Mixer/encoder_norm/", "pre_head_layer_norm/"),
  (r"^Mixer/encoderblock_(\d+)/", r"MixerBlock_\1/"),
  (r"_mixing_phase_0/(kernel|bias)1$", r"_mixing/Dense_0/\1"),
  (r"_mixing_phase_0/(kernel|bias)2$", r"_mixing/Dense_1/\1"),
  (r"^(MixerBlock_\d+)/LayerNorm_2/", r"\1/LayerNorm_1/"),
)
"""From the authors' older layout (big_vision, models/mlp_mixer.py: load), which may number all of a block's submodules."""
TORCH_NAMES = {
  "timm": (
    ("stem.proj", "stem"),
    ("blocks.{}.norm1", "MixerBlock_{}/LayerNorm_0"),
    ("blocks.{}.norm2", "MixerBlock_{}/LayerNorm_1"),
    ("blocks.{}.token.w", "MixerBlock_{}/token_mixing/kernel"),
    ("blocks.{}.mlp_tokens.fc1", "MixerBlock_{}/token_mixing/Dense_0"),
    ("blocks.{}.mlp_tokens.fc2", "MixerBlock_{}/token_mixing/Dense_1"),
    ("blocks.{}.mlp_channels.fc1", "MixerBlock_{}/channel_mixing/Dense_0"),
    ("blocks.{}.mlp_channels.fc2", "MixerBlock_{}/channel_mixing/Dense_1"),
    ("norm", "pre_head_layer_norm"),
    ("head", "head"),
  )
}
"""timm has no circulant token mixing: `token.w`, (G, tokens), is this project's name."""


def _resize_methods(fields: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns how a model of these fields is resized; one of clips is not."""
  return ("paper", "interpolate") if fields.get("tubelet") is None else ()


RESIZE_METHODS = _resize_methods


def fields_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """Returns the model's fields that parameter shapes tell; only of the paper's own token mixing and of "circulant"."""
  if "MixerBlock_0/token_mixing/mlp/Dense_0/kernel" in shapes:
    raise InputError(
      "token mixing of appendix A (untied, grouped, views) is known only by its run's workdir."
    )
  *tubelet, patch_size, _, _, hidden_dim = shapes[STEM]
  mixing: dict[str, Any]
  if ring := shapes.get(_RING):  # which tells no tokens_mlp_dim: table 1's
    mixing = {
      "token_mixing": "circulant",
      "channel_groups": ring[1],
      "tokens_mlp_dim": hidden_dim // 2,
    }
  else:
    mixing = dict(tokens_mlp_dim=shapes["MixerBlock_0/token_mixing/Dense_0/kernel"][1])
  _, channels_mlp_dim = shapes["MixerBlock_0/channel_mixing/Dense_0/kernel"]
  return dict(
    patch_size=patch_size,
    **({"tubelet": tubelet[0]} if tubelet else {}),
    num_blocks=layers.num_blocks(shapes, "MixerBlock_"),
    hidden_dim=hidden_dim,
    **mixing,
    channels_mlp_dim=channels_mlp_dim,
    num_classes=shapes["head/kernel"][1] if "head/kernel" in shapes else None,
  )


def input_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
  """Returns the image (height, width, channels) that the parameters are for: a square, if it can be one.

  Of clips only the number of tokens is known: the clip (frames, height, width, channels) is of one patch a frame.
  """
  *tubelet, patch_size, _, channels, _ = shapes[STEM]
  first = shapes.get(_RING) or shapes["MixerBlock_0/token_mixing/Dense_0/kernel"]
  if tubelet:
    return tubelet[0] * first[0], patch_size, patch_size, channels
  return resizing.image_shape(first[0], patch_size, channels)


def resize_fields(
  fields: Mapping[str, Any], old_grid: Grid, new_grid: Grid, method: str
) -> dict[str, Any]:
  """Returns the fields after `resize`: the token MLP is K² times as wide under "paper"."""
  resizing.check_no_ring(fields, old_grid, new_grid)
  if new_grid != old_grid and (fields.get("token_mixing", "mlp") != "mlp" or fields.get("pyramid")):
    raise InputError(
      f"token_mixing {fields.get('token_mixing', 'mlp')!r} with pyramid {fields.get('pyramid', ())} (appendix A) stays at "
      f"{old_grid[0]}x{old_grid[1]} tokens: set the image size that it was trained at."
    )
  if method == "interpolate":
    return dict(fields)
  factor = (new_grid[0] // old_grid[0]) ** 2
  return {**fields, "tokens_mlp_dim": fields["tokens_mlp_dim"] * factor}


def resize(
  params: Mapping[str, Any], old_grid: Grid, new_grid: Grid, method: str
) -> dict[str, Any]:
  """Returns the parameters for another grid of tokens (rows, columns); types stay.

  "paper": appendix C, for a grid K times the old one: the new token MLP mixes each of the K×K tiles by itself,
  as the old one mixed the whole image. "interpolate", which is not the paper's: for any grid; the old token
  mixing T is framed by resampling, P·T·R (models/resizing.py), its hidden units and their biases stay.
  """
  change = resizing.tile_mlp if method == "paper" else resizing.interpolate_mlp

  def changed(block: Mapping[str, Any]) -> dict[str, Any]:
    mlp = resizing.resize_mlp(block["token_mixing"], change, old_grid, new_grid)
    return {**block, "token_mixing": mlp}

  return {k: changed(v) if k.startswith("MixerBlock_") else v for k, v in params.items()}
