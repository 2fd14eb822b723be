"""MLP-Mixer (Tolstikhin et al., 2021, arXiv:2105.01601).

Axis letters: b images, h w pixels, s tokens (patches in raster order), c hidden channels, k classes.
Parameter names are those of the released files (vision_transformer, vit_jax/models_mixer.py).
"""

from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from mixer_jax.configuration import Fraction, PositiveInt, Rate
from mixer_jax.models import ablations, layers


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
"""Table 1: published size -> fields of `MlpMixer`."""


class MixerBlock(nn.Module):
  """Mixes across tokens, then across channels; each half is `x + branch(norm(x))`.

  An image whose entry of `keep` is False for a half goes without that branch (stochastic depth). The fields
  from `ablation` on are MlpMixer's, and `num_tokens` its pyramid's entry for this block; None: s.
  """

  tokens_mlp_dim: int
  channels_mlp_dim: int
  dropout_rate: float = 0.0
  ablation: ablations.Ablation = "none"
  channel_groups: int = 1
  num_tokens: int | None = None
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b s c"],
    rows: Int[Array, " b"],
    keep: Bool[Array, "b 2"] | None = None,
    train: bool = False,
  ) -> Float[Array, "b t c"]:
    keep_token, keep_channel = (None, None) if keep is None else (keep[:, 0], keep[:, 1])
    dtypes: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    mlp: dict[str, Any] = dict(dropout_rate=self.dropout_rate, **dtypes)
    # Flax's LayerNorm takes its statistics in float32 whatever the compute type.
    y = nn.LayerNorm(**dtypes)(x)
    if self.ablation == "none":
      columns = layers.MlpBlock(
        self.tokens_mlp_dim, out_dim=self.num_tokens, name="token_mixing", **mlp
      )(jnp.swapaxes(y, 1, 2), rows, train=train)
      y = jnp.swapaxes(columns, 1, 2)
    else:
      y = ablations.TokenMixing(
        self.ablation,
        self.channel_groups,
        self.num_tokens or x.shape[1],
        self.tokens_mlp_dim,
        name="token_mixing",
        **mlp,
      )(y, rows, train=train)
    # Another number of tokens has nothing to be added to; the paper does not say what was done.
    x = x + layers.drop_branch(y, keep_token) if y.shape == x.shape else y
    y = nn.LayerNorm(**dtypes)(x)
    y = layers.MlpBlock(self.channels_mlp_dim, name="channel_mixing", **mlp)(y, rows, train=train)
    return x + layers.drop_branch(y, keep_channel)


class MlpMixer(nn.Module):
  """MLP-Mixer: patches -> stem -> `num_blocks` × MixerBlock -> LayerNorm -> mean over tokens -> head.

  Every block's output (`block_<i>`) and `pre_logits` are sown: ask for them with
  `module.apply(variables, image, mutable=["intermediates"])`.

  Attributes:
    num_classes: width of the head k; None or 0: no head, the module returns `pre_logits`.
    patch_size: side of a square patch in pixels.
    num_blocks: number of Mixer blocks L.
    hidden_dim: channels of a token c.
    tokens_mlp_dim: hidden width of token mixing.
    channels_mlp_dim: hidden width of channel mixing.
    dropout_rate: dropout inside the MLPs while training.
    stoch_depth: s; block i of L drops each branch of an image with probability s·i/(L−1).
    ablation: of token mixing (appendix A): "untied", "grouped", "views" (models/ablations.py). These have
      other parameters below `MixerBlock_<i>/token_mixing`.
    channel_groups: G channels that are joined in "grouped" and "views".
    pyramid: tokens that leave each block (appendix A); (): as many as enter it. Where their number changes,
      token mixing has no skip connection and is never dropped.
    head_bias_init: start of the head's bias (its kernel starts at zero).
    dtype: compute type; statistics of LayerNorm, the mean over tokens and the head stay float32.
    param_dtype: type of the parameters.
    remat: "block" keeps only the blocks' inputs for the backward pass and recomputes the rest.
  """

  num_classes: int | None
  patch_size: PositiveInt
  num_blocks: PositiveInt
  hidden_dim: PositiveInt
  tokens_mlp_dim: PositiveInt
  channels_mlp_dim: PositiveInt
  dropout_rate: Rate = 0.0
  stoch_depth: Fraction = 0.0
  ablation: ablations.Ablation = "none"
  channel_groups: int = 1
  pyramid: tuple[int, ...] = ()
  head_bias_init: float = 0.0
  dtype: Literal["float32", "bfloat16"] = "float32"
  param_dtype: Literal["float32", "bfloat16"] = "float32"
  remat: Literal["none", "block"] = "none"

  @nn.compact
  def __call__(
    self,
    image: Float[Array, "b h w 3"],
    *,
    train: bool = False,
    rows: Int[Array, " b"] | None = None,
  ) -> Float[Array, "b k"]:
    """Returns logits, or `pre_logits` (b, c) without a head.

    Args:
      image: values in [−1, 1]; the number of tokens, hw/patch_size², is fixed by the parameters.
      train: draw stochastic depth and dropout, from the random stream "dropout".
      rows: the images' positions in the whole batch, which their draws belong to; default 0 … b−1.

    Raises:
      InputError: the patch does not divide the image (the authors' code pads it silently), or the options of
        appendix A do not go together.
    """
    layers.check_divisible(image.shape[1], image.shape[2], self.patch_size)
    ablations.check(
      ablation=self.ablation,
      channel_groups=self.channel_groups,
      pyramid=self.pyramid,
      num_blocks=self.num_blocks,
      channels=self.hidden_dim,
    )
    rows = jnp.arange(image.shape[0]) if rows is None else rows
    dtypes: dict[str, Any] = dict(
      dtype=jnp.dtype(self.dtype), param_dtype=jnp.dtype(self.param_dtype)
    )
    patch = (self.patch_size, self.patch_size)
    x = nn.Conv(self.hidden_dim, patch, strides=patch, padding="VALID", name="stem", **dtypes)(
      image
    )
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    keep = self._draw_branches(rows) if train and self.stoch_depth else None
    block = nn.remat(MixerBlock, static_argnums=(4,)) if self.remat == "block" else MixerBlock
    for i in range(self.num_blocks):
      x = block(
        self.tokens_mlp_dim,
        self.channels_mlp_dim,
        dropout_rate=self.dropout_rate,
        ablation=self.ablation,
        channel_groups=self.channel_groups,
        num_tokens=self.pyramid[i] if self.pyramid else None,
        name=f"MixerBlock_{i}",
        **dtypes,
      )(x, rows, None if keep is None else keep[:, i], train)
      self.sow("intermediates", f"block_{i}", x)
    x = nn.LayerNorm(name="pre_head_layer_norm", **dtypes)(x)
    x = jnp.mean(x, axis=1, dtype=jnp.float32)
    self.sow("intermediates", "pre_logits", x)
    if not self.num_classes:
      return x
    return nn.Dense(
      self.num_classes,
      kernel_init=nn.initializers.zeros,
      bias_init=nn.initializers.constant(self.head_bias_init),
      dtype=jnp.float32,
      param_dtype=dtypes["param_dtype"],
      name="head",
    )(x)

  def _draw_branches(self, rows: Array) -> Array:
    rates = layers.drop_rates(self.stoch_depth, self.num_blocks)
    return layers.draw_branches(self.make_rng("dropout"), rows, rates)
