"""Vision Transformer (Dosovitskiy et al., 2021, arXiv:2010.11929), a baseline of the paper.

Axis letters: b images, h w pixels, s tokens (the class token, then the patches in raster order),
c hidden channels, k classes, n heads, d channels of a head. Parameter names are those of the released files
(vision_transformer, vit_jax/models_vit.py before Flax Linen), which number the submodules of a block together.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from mixer_jax.configuration import Fraction, NonNegativeInt, PositiveInt, Rate
from mixer_jax.errors import InputError
from mixer_jax.models import layers


def _variant(num_blocks: int, patch_size: int, hidden_dim: int, num_heads: int) -> dict[str, int]:
  return dict(
    patch_size=patch_size,
    num_blocks=num_blocks,
    hidden_dim=hidden_dim,
    mlp_dim=hidden_dim * 4,
    num_heads=num_heads,
  )


VARIANTS = {
  "B/32": _variant(12, 32, 768, 12),
  "B/16": _variant(12, 16, 768, 12),
  "L/32": _variant(24, 32, 1024, 16),
  "L/16": _variant(24, 16, 1024, 16),
  "H/14": _variant(32, 14, 1280, 16),
}
"""arXiv:2010.11929, table 1: published size -> fields of `VisionTransformer`."""

_XAVIER = nn.initializers.xavier_uniform()


class Attention(nn.Module):
  """Self-attention: out(softmax(query·keyᵀ/√d)·value) in n heads; the softmax is float32."""

  num_heads: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b s c"]) -> Float[Array, "b s c"]:
    dense: dict[str, Any] = dict(
      kernel_init=_XAVIER, dtype=self.dtype, param_dtype=self.param_dtype
    )
    heads = self.num_heads, x.shape[-1] // self.num_heads
    query, key, value = (
      nn.DenseGeneral(heads, name=name, **dense)(x) for name in ("query", "key", "value")
    )
    y = jax.nn.dot_product_attention(query, key, value)
    return nn.DenseGeneral(x.shape[-1], axis=(-2, -1), name="out", **dense)(y)


class EncoderBlock(nn.Module):
  """Attention, then an MLP; each half is `x + branch(norm(x))`.

  An image whose entry of `keep` is False for a half goes without that branch (stochastic depth).
  """

  mlp_dim: int
  num_heads: int
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b s c"],
    rows: Int[Array, " b"],
    keep: Bool[Array, "b 2"] | None = None,
    train: bool = False,
  ) -> Float[Array, "b s c"]:
    keep_attention, keep_mlp = (None, None) if keep is None else (keep[:, 0], keep[:, 1])
    dtypes: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    y = nn.LayerNorm(name="LayerNorm_0", **dtypes)(x)
    y = Attention(self.num_heads, name="MultiHeadDotProductAttention_1", **dtypes)(y)
    y = layers.train_dropout(self, y, rows, self.dropout_rate, train)
    x = x + layers.drop_branch(y, keep_attention)
    y = nn.LayerNorm(name="LayerNorm_2", **dtypes)(x)
    y = layers.MlpBlock(
      self.mlp_dim,
      dropout_rate=self.dropout_rate,
      kernel_init=_XAVIER,
      bias_init=nn.initializers.normal(1e-6),
      name="MlpBlock_3",
      **dtypes,
    )(y, rows, train=train)
    return x + layers.drop_branch(y, keep_mlp)


class PositionEmbedding(nn.Module):
  """Adds a learned vector to each token, the class token included."""

  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b s c"]) -> Float[Array, "b s c"]:
    init = nn.initializers.normal(0.02)
    return x + self.param("pos_embedding", init, (1, *x.shape[1:]), self.param_dtype).astype(
      self.dtype
    )


class Encoder(nn.Module):
  """Position embedding -> `num_blocks` × EncoderBlock -> LayerNorm; returns every block's output too."""

  num_blocks: int
  mlp_dim: int
  num_heads: int
  dropout_rate: float
  remat: str
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b s c"],
    rows: Int[Array, " b"],
    keep: Bool[Array, "b l 2"] | None,
    train: bool,
  ) -> tuple[Float[Array, "b s c"], list[Float[Array, "b s c"]]]:
    dtypes: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    x = PositionEmbedding(name="posembed_input", **dtypes)(x)
    x = layers.train_dropout(self, x, rows, self.dropout_rate, train)
    block = nn.remat(EncoderBlock, static_argnums=(4,)) if self.remat == "block" else EncoderBlock
    outputs = []
    for i in range(self.num_blocks):
      x = block(
        self.mlp_dim,
        self.num_heads,
        dropout_rate=self.dropout_rate,
        name=f"encoderblock_{i}",
        **dtypes,
      )(x, rows, None if keep is None else keep[:, i], train)
      outputs.append(x)
    return nn.LayerNorm(name="encoder_norm", **dtypes)(x), outputs


class VisionTransformer(nn.Module):
  """Patches -> embedding, class token -> Encoder -> class token -> optional hidden layer -> head.

  Every block's output (`block_<i>`) and `pre_logits` are sown: ask for them with
  `module.apply(variables, image, mutable=["intermediates"])`.

  Attributes:
    num_classes: width of the head k; None or 0: no head, the module returns `pre_logits`.
    patch_size: side of a square patch in pixels.
    num_blocks: number of encoder blocks L.
    hidden_dim: channels of a token c.
    mlp_dim: hidden width of the MLPs.
    num_heads: attention heads n; they divide c.
    representation_size: width of the tanh layer before the head; 0: none. The files pre-trained on
      ImageNet-21k have one of width c, those fine-tuned and all later ones (arXiv:2106.10270) none.
    dropout_rate: dropout after the position embedding, after attention and inside the MLPs, while training.
    stoch_depth: s; block i of L drops each branch of an image with probability s·i/(L−1).
    head_bias_init: start of the head's bias (its kernel starts at zero).
    dtype: compute type; statistics of LayerNorm, the softmax, the tanh layer and the head stay float32.
    param_dtype: type of the parameters.
    remat: "block" keeps only the blocks' inputs for the backward pass and recomputes the rest.
  """

  num_classes: int | None
  patch_size: PositiveInt
  num_blocks: PositiveInt
  hidden_dim: PositiveInt
  mlp_dim: PositiveInt
  num_heads: PositiveInt
  representation_size: NonNegativeInt = 0
  dropout_rate: Rate = 0.0
  stoch_depth: Fraction = 0.0
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
      image: values in [−1, 1]; the number of tokens is fixed by the position embedding.
      train: draw stochastic depth and dropout, from the random stream "dropout".
      rows: the images' positions in the whole batch, which their draws belong to; default 0 … b−1.

    Raises:
      InputError: the patch does not divide the image, or the heads the hidden channels.
    """
    layers.check_divisible(image.shape[1], image.shape[2], self.patch_size)
    if self.hidden_dim % self.num_heads:
      raise InputError(f"num_heads {self.num_heads} does not divide hidden_dim {self.hidden_dim}.")
    rows = jnp.arange(image.shape[0]) if rows is None else rows
    dtype, param_dtype = jnp.dtype(self.dtype), jnp.dtype(self.param_dtype)
    dtypes: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype)
    patch = (self.patch_size, self.patch_size)
    x = nn.Conv(self.hidden_dim, patch, strides=patch, padding="VALID", name="embedding", **dtypes)(
      image
    )
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    cls = self.param("cls", nn.initializers.zeros, (1, 1, self.hidden_dim), param_dtype)
    x = jnp.concatenate([jnp.tile(cls.astype(dtype), (x.shape[0], 1, 1)), x], axis=1)
    x, outputs = Encoder(
      self.num_blocks,
      self.mlp_dim,
      self.num_heads,
      dropout_rate=self.dropout_rate,
      remat=self.remat,
      name="Transformer",
      **dtypes,
    )(x, rows, self._draw_branches(rows) if train and self.stoch_depth else None, train)
    for i, output in enumerate(outputs):
      self.sow("intermediates", f"block_{i}", output)
    return self._classify(x[:, 0].astype(jnp.float32))

  def _classify(self, x: Array) -> Array:
    dtypes: dict[str, Any] = dict(dtype=jnp.float32, param_dtype=jnp.dtype(self.param_dtype))
    if self.representation_size:
      x = nn.tanh(nn.Dense(self.representation_size, name="pre_logits", **dtypes)(x))
    # As self.sow would do it, which refuses a submodule's name.
    if self.is_mutable_collection("intermediates"):
      self.put_variable("intermediates", "pre_logits", (x,))
    if not self.num_classes:
      return x
    return nn.Dense(
      self.num_classes,
      kernel_init=nn.initializers.zeros,
      bias_init=nn.initializers.constant(self.head_bias_init),
      name="head",
      **dtypes,
    )(x)

  def _draw_branches(self, rows: Array) -> Array:
    rates = layers.drop_rates(self.stoch_depth, self.num_blocks)
    return layers.draw_branches(self.make_rng("dropout"), rows, rates)
