"""MLP-Mixer (Tolstikhin et al., 2021, arXiv:2105.01601).

With `tubelet` it takes clips: a patch spans so many frames, too, and tokens are mixed over time and space at once. That
is this project's, and no paper's; it is the same model with other patches.

Axis letters: b images, t frames, h w pixels, s tokens (patches in raster order), c hidden channels, k classes.
Parameter names are those of the released files (vision_transformer, vit_jax/models_mixer.py).
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mixer_jax.configuration import Fraction, PositiveInt, Rate
from mixer_jax.errors import InputError
from mixer_jax.models import base, layers, resizing
from mixer_jax.models.kernels import Kernels, gpu_token_mixing
from mixer_jax.models.layers import Index, Kept, Mask
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


class MixerBlock(layers.Block):
  """Mixes across tokens, then across channels; each half is `x + branch(norm(x))`.

  Where `kept[i, j]` is False, image i skips branch j (drop path). `mix_tokens` makes the token mixing,
  one of token_mixing.TOKEN_MIXING.
  """

  mix_tokens: Callable[..., TokenMixing]
  channels_mlp_dim: int
  dropout_rate: float = 0.0

  @nn.compact
  def __call__(
    self, x: Float[Array, "b s c"], index: Index, kept: Kept, mask: Mask, train: bool
  ) -> Float[Array, "b t c"]:
    mlp: dict[str, Any] = dict(gelu=self.gelu, dropout_rate=self.dropout_rate, **self.dtypes)
    # Flax's LayerNorm takes its statistics in float32 whatever the compute type.
    y = nn.LayerNorm(**self.dtypes)(x)
    y = self.mix_tokens(name="token_mixing", **mlp)(y, index, train=train)
    # Another number of tokens has nothing to be added to; the paper does not say what was done.
    x = x + self.drop_path(y, kept, 0) if y.shape == x.shape else y
    y = nn.LayerNorm(**self.dtypes)(x)
    y = layers.MlpBlock(self.channels_mlp_dim, name="channel_mixing", **mlp)(y, index, train=train)
    return x + self.drop_path(y, kept, 1)


class Model(base.BlockModel, kw_only=True):
  """MLP-Mixer: patches -> stem -> `num_blocks` × MixerBlock -> LayerNorm -> mean over tokens -> head.

  Sows every block's output as tokens (`block_<i>`), the last one's as a map (`stage_1`), and `pre_logits`.

  Attributes:
    patch_size: side of a square patch in pixels.
    tubelet: frames that a patch of a clip spans. If None, the model takes images.
    num_blocks: number of Mixer blocks L.
    hidden_dim: channels of a token c.
    tokens_mlp_dim: hidden width of token mixing.
    channels_mlp_dim: hidden width of channel mixing.
    dropout_rate: dropout inside the MLPs while training.
    token_mixing: "mlp", appendix A's "untied", "grouped", "views", or "circulant" (models/token_mixing.py), which have
      other parameters below `MixerBlock_<i>/token_mixing`. "circulant" has no use for tokens_mlp_dim.
    channel_groups: G channels that are joined in "grouped" and "views"; G vectors of "circulant" (published: 8).
    pyramid: tokens that leave each block (appendix A); (): as many as enter it. Where their number changes,
      token mixing has no skip connection and is never dropped.
    kernels: how tokens are mixed on NVIDIA GPUs, from config.kernels.
  """

  patch_size: PositiveInt
  num_blocks: PositiveInt
  hidden_dim: PositiveInt
  tokens_mlp_dim: PositiveInt
  channels_mlp_dim: PositiveInt
  tubelet: PositiveInt | None = None
  gelu: layers.Gelu = "tanh"
  dropout_rate: Rate = 0.0
  stoch_depth: Fraction = 0.0
  stoch_depth_rescale: bool = False
  token_mixing: Name = "mlp"
  channel_groups: PositiveInt = 1
  pyramid: tuple[int, ...] = ()
  kernels: Kernels = "xla"

  def takes_kernel(self, input_shape: tuple[int, ...]) -> bool:
    """Returns whether the fused kernel can mix the tokens of such images or clips."""
    tokens = math.prod(input_shape[:-1]) // (self.patch_size**2 * (self.tubelet or 1))
    fits = gpu_token_mixing.fits(tokens, *self.pyramid)
    return self.token_mixing == "mlp" and fits and not self.dropout_rate

  @property
  def takes_clips(self) -> bool:
    return self.tubelet is not None

  def check(self, sides: tuple[int, ...]) -> None:
    self._grid(sides)
    check_token_mixing(
      self.token_mixing, self.channel_groups, self.pyramid, self.num_blocks, self.hidden_dim
    )

  def logits(self, image: Array, index: Index, mask: Mask, train: bool) -> Array:
    x = self.run_stages(MixerBlock, [self.num_blocks], image, index, mask, train)
    self.sow_map(x, *self._grid(image.shape[1:-1]))
    x = nn.LayerNorm(name="pre_head_layer_norm", **self.dtypes)(x)
    return self.classify(jnp.mean(x, axis=1, dtype=jnp.float32))

  def stage_input(self, x: Array, stage: int, mask: Mask, train: bool) -> Array:
    patch = (self.tubelet or 1,) * (x.ndim - 4) + (self.patch_size,) * 2
    convolution = None if self.tubelet else layers.patch_convolution
    stem = dict(padding="VALID", conv_general_dilated=convolution, name="stem")
    x = nn.Conv(self.hidden_dim, patch, strides=patch, **stem, **self.dtypes)(x)
    return x.reshape(x.shape[0], -1, x.shape[-1])

  def block_fields(self, x: Array, stage: int) -> list[dict[str, Any]]:
    mixing = functools.partial(
      TOKEN_MIXING[self.token_mixing],
      self.tokens_mlp_dim,
      channel_groups=self.channel_groups,
      kernels=self.kernels,
    )
    sizes = dict(channels_mlp_dim=self.channels_mlp_dim, dropout_rate=self.dropout_rate)
    num_tokens = self.pyramid or [None] * self.num_blocks
    return [
      dict(sizes, mix_tokens=functools.partial(mixing, num_tokens=n), name=f"MixerBlock_{i}")
      for i, n in enumerate(num_tokens)
    ]

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


_RING = "MixerBlock_0/token_mixing/kernel"
PREFIX = r"(MixerBlock_\d+|Mixer)/"
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
    num_blocks=base.num_blocks(shapes, "MixerBlock_"),
    hidden_dim=hidden_dim,
    **mixing,
    channels_mlp_dim=channels_mlp_dim,
    num_classes=base.num_classes(shapes),
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
