"""Vision Transformer (Dosovitskiy et al., 2021, arXiv:2010.11929), a baseline of the paper.

Axis letters: b images, h w pixels, s tokens (the class token, then the patches in raster order),
c hidden channels, k classes, n heads, d channels of a head. Parameter names are those of the released files
(vision_transformer, vit_jax/models_vit.py before Flax Linen), which number the submodules of a block together.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from mixer_jax.configuration import Fraction, NonNegativeInt, PositiveInt, Rate
from mixer_jax.errors import InputError
from mixer_jax.models import base, layers, resizing, torch_heads
from mixer_jax.models.layers import Index, Kept, Mask
from mixer_jax.models.resizing import Grid

TITLE = "Vision Transformer"


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
"""arXiv:2010.11929, table 1: published size -> fields of the model."""

_XAVIER = nn.initializers.xavier_uniform()


class Attention(layers.Layer):
  """Self-attention: out(softmax(query·keyᵀ/√d)·value) in n heads; the softmax is float32."""

  num_heads: int

  @nn.compact
  def __call__(self, x: Float[Array, "b s c"]) -> Float[Array, "b s c"]:
    dense: dict[str, Any] = dict(kernel_init=_XAVIER, **self.dtypes)
    heads = self.num_heads, x.shape[-1] // self.num_heads
    query, key, value = (
      nn.DenseGeneral(heads, name=name, **dense)(x) for name in ("query", "key", "value")
    )
    y = jax.nn.dot_product_attention(query, key, value)
    return nn.DenseGeneral(x.shape[-1], axis=(-2, -1), name="out", **dense)(y)


class EncoderBlock(layers.Block):
  """Attention, then an MLP; each half is `x + branch(norm(x))`."""

  mlp_dim: int
  num_heads: int
  dropout_rate: float = 0.0

  @nn.compact
  def __call__(
    self, x: Float[Array, "b s c"], index: Index, kept: Kept, mask: Mask, train: bool
  ) -> Float[Array, "b s c"]:
    y = nn.LayerNorm(name="LayerNorm_0", **self.dtypes)(x)
    y = Attention(self.num_heads, name="MultiHeadDotProductAttention_1", **self.dtypes)(y)
    y = layers.train_dropout(self, y, index, self.dropout_rate, train)
    x = x + self.drop_path(y, kept, 0)
    y = nn.LayerNorm(name="LayerNorm_2", **self.dtypes)(x)
    y = layers.MlpBlock(
      self.mlp_dim,
      gelu=self.gelu,
      dropout_rate=self.dropout_rate,
      kernel_init=_XAVIER,
      bias_init=nn.initializers.normal(1e-6),
      name="MlpBlock_3",
      **self.dtypes,
    )(y, index, train=train)
    return x + self.drop_path(y, kept, 1)


class PositionEmbedding(layers.Layer):
  """Adds a learned vector to each token, the class token included."""

  @nn.compact
  def __call__(self, x: Float[Array, "b s c"]) -> Float[Array, "b s c"]:
    init = nn.initializers.normal(0.02)
    return x + self.param("pos_embedding", init, (1, *x.shape[1:]), self.param_dtype).astype(
      self.dtype
    )


class Encoder(layers.Layer):
  """Position embedding -> blocks -> LayerNorm; returns every block's output too.

  Attributes:
    blocks: functions that make them, in this module.
    dropout_rate: behind the position embedding.
  """

  blocks: Sequence[Callable[[], Any]]
  dropout_rate: float

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b s c"],
    index: Index,
    kept: Bool[Array, "b l 2"] | None,
    train: bool,
  ) -> tuple[Float[Array, "b s c"], list[Float[Array, "b s c"]]]:
    x = PositionEmbedding(name="posembed_input", **self.dtypes)(x)
    x = layers.train_dropout(self, x, index, self.dropout_rate, train)
    outputs = []
    for i, make in enumerate(self.blocks):
      x = make()(x, index, None if kept is None else kept[:, i], None, train)
      outputs.append(x)
    return nn.LayerNorm(name="encoder_norm", **self.dtypes)(x), outputs


class Model(base.BlockModel, kw_only=True):
  """Patches -> embedding, class token -> Encoder -> class token -> optional hidden layer -> head.

  Sows every block's output as tokens (`block_<i>`), the last one's patches as a map (`stage_1`), and `pre_logits`.

  Attributes:
    patch_size: side of a square patch in pixels.
    num_blocks: number of encoder blocks L.
    hidden_dim: channels of a token c.
    mlp_dim: hidden width of the MLPs.
    num_heads: attention heads n; they divide c.
    representation_size: width of the tanh layer before the head. If 0, there is none. The files pre-trained on
      ImageNet-21k have one of width c, those fine-tuned and all later ones (arXiv:2106.10270) none.
    dropout_rate: dropout after the position embedding, after attention and inside the MLPs, while training.
  """

  patch_size: PositiveInt
  num_blocks: PositiveInt
  hidden_dim: PositiveInt
  mlp_dim: PositiveInt
  num_heads: PositiveInt
  representation_size: NonNegativeInt = 0
  gelu: layers.Gelu = "tanh"
  dropout_rate: Rate = 0.0
  stoch_depth: Fraction = 0.0
  stoch_depth_rescale: bool = False

  def check(self, sides: tuple[int, ...]) -> None:
    resizing.token_grid(sides, self.patch_size)
    if self.hidden_dim % self.num_heads:
      raise InputError(f"num_heads {self.num_heads} does not divide hidden_dim {self.hidden_dim}.")

  def logits(self, image: Array, index: Index, mask: Mask, train: bool) -> Array:
    patch = (self.patch_size, self.patch_size)
    stem = dict(padding="VALID", conv_general_dilated=layers.patch_convolution, name="embedding")
    x = nn.Conv(self.hidden_dim, patch, strides=patch, **stem, **self.dtypes)(image)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    start = nn.initializers.zeros
    cls = self.param("cls", start, (1, 1, self.hidden_dim), jnp.dtype(self.param_dtype))
    x = jnp.concatenate([jnp.tile(cls.astype(x.dtype), (x.shape[0], 1, 1)), x], axis=1)
    rates = self.rates([self.num_blocks])
    blocks = [self._block(i, rate) for i, rate in enumerate(rates)]
    encoder = Encoder(blocks, self.dropout_rate, name="Transformer", **self.dtypes)
    x, outputs = encoder(x, index, self.draw_kept(index, rates, train), train)
    for i, output in enumerate(outputs):
      self.sow("intermediates", f"block_{i}", output)
    self.sow_map(outputs[-1][:, 1:], *resizing.token_grid(image.shape[1:3], self.patch_size))
    return self._classify(x[:, 0].astype(jnp.float32))

  def _block(self, i: int, rate: float) -> Callable[[], Any]:
    fields = dict(mlp_dim=self.mlp_dim, num_heads=self.num_heads, dropout_rate=self.dropout_rate)
    return functools.partial(self.made, EncoderBlock, rate, name=f"encoderblock_{i}", **fields)

  def _classify(self, x: Array) -> Array:
    if self.representation_size:
      param_dtype = jnp.dtype(self.param_dtype)
      x = nn.Dense(self.representation_size, param_dtype=param_dtype, name="pre_logits")(x)
      x = nn.tanh(x)
    return self.classify(x)


PREFIX = r"Transformer/"
HEAD = {"head": "num_classes", "pre_logits": "representation_size"}
STEM = "embedding/kernel"
LAYERS = (r"embedding/|cls$|Transformer/posembed_input/", r"Transformer/encoderblock_(\d+)/")
RELEASED_RENAMES = (
  (r"^(Transformer/encoderblock_\d+)/LayerNorm_1/", r"\1/LayerNorm_2/"),
  (r"^(Transformer/encoderblock_\d+)/MultiHeadDotProductAttention_0/",
   r"\1/MultiHeadDotProductAttention_1/"),
  (r"^(Transformer/encoderblock_\d+)/MlpBlock_0/", r"\1/MlpBlock_3/"),
)  # fmt: skip
"""From files written by Flax Linen, which numbers a block's submodules by their kind."""
_POSITIONS = "Transformer/posembed_input/pos_embedding"


def released_form(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the parameters of a file in which positions are those of the patches alone, as of a model's, by name.

  big_vision adds positions before the class token comes (models/vit.py).

  Raises:
    InputError: the model has no class token.
  """
  if "pos_embedding" not in flat and "cls" in flat:
    return dict(flat)
  if "cls" not in flat:
    raise InputError(
      "the Vision Transformer pools all tokens (big_vision's pool_type gap or map); the one here classifies the class "
      "token, pool_type tok."
    )
  others = {name: value for name, value in flat.items() if name != "pos_embedding"}
  positions = np.asarray(flat["pos_embedding"])
  return others | {_POSITIONS: np.concatenate([np.zeros_like(positions[:, :1]), positions], axis=1)}


_BLOCK = "Transformer/encoderblock_{}"
_ATTENTION = "MultiHeadDotProductAttention_1"
TORCH_NAMES = {
  "timm": (
    ("cls_token", "cls", None),
    ("pos_embed", _POSITIONS, None),
    ("patch_embed.proj", "embedding"),
    ("blocks.{}.norm1", f"{_BLOCK}/LayerNorm_0"),
    ("blocks.{}.attn.qkv", f"{_BLOCK}/{_ATTENTION}/qkv"),
    ("blocks.{}.attn.proj", f"{_BLOCK}/{_ATTENTION}/out"),
    ("blocks.{}.norm2", f"{_BLOCK}/LayerNorm_2"),
    ("blocks.{}.mlp.fc1", f"{_BLOCK}/MlpBlock_3/Dense_0"),
    ("blocks.{}.mlp.fc2", f"{_BLOCK}/MlpBlock_3/Dense_1"),
    ("norm", "Transformer/encoder_norm"),
    ("head", "head"),
  )
}
"""timm has no tanh layer before the head."""
# Torch's matrices do not tell the heads. timm, models/vision_transformer.py: vit_tiny and vit_small have these.
_NUM_HEADS = {192: 3, 384: 6} | {v["hidden_dim"]: v["num_heads"] for v in VARIANTS.values()}
RESIZE_METHODS = ("interpolate",)


def _split_heads(flat: Mapping[str, np.ndarray], num_heads: int | None) -> dict[str, np.ndarray]:
  """Undoes `torch_heads.join`; raises InputError if neither `num_heads` nor the width tells the heads."""

  def heads(hidden_dim: int) -> int:
    n = num_heads or _NUM_HEADS.get(hidden_dim)
    if not n:
      raise InputError(
        f"a torch state dictionary does not tell num_heads, and no published size has {hidden_dim} channels. Give it, "
        "as in mixer_jax.load(file, num_heads=3); weights.save_npz then keeps it."
      )
    if hidden_dim % n:
      raise InputError(f"num_heads {n} does not divide the {hidden_dim} channels.")
    return n

  return torch_heads.split(flat, _ATTENTION, heads)


TORCH_FORM = (functools.partial(torch_heads.join, attention=_ATTENTION), _split_heads)


def fields_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """Returns the model's fields that parameter shapes tell."""
  patch_size, _, _, hidden_dim = shapes[STEM]
  block = "Transformer/encoderblock_0"
  _, num_heads, _ = shapes[f"{block}/MultiHeadDotProductAttention_1/query/kernel"]
  _, mlp_dim = shapes[f"{block}/MlpBlock_3/Dense_0/kernel"]
  return dict(
    patch_size=patch_size,
    num_blocks=base.num_blocks(shapes, "Transformer/encoderblock_"),
    hidden_dim=hidden_dim,
    mlp_dim=mlp_dim,
    num_heads=num_heads,
    representation_size=shapes.get("pre_logits/kernel", (0, 0))[1],
    num_classes=base.num_classes(shapes),
  )


def input_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int]:
  """Returns the image (height, width, channels) that the parameters are for: a square, if it can be one."""
  patch_size, _, channels, _ = shapes[STEM]
  return resizing.image_shape(shapes.get(_POSITIONS, (1, 2))[1] - 1, patch_size, channels)


def resize(
  params: Mapping[str, Any], old_grid: Grid, new_grid: Grid, method: str
) -> dict[str, Any]:
  """Returns the parameters for another grid of patches (rows, columns); types stay.

  The position embedding is interpolated as in the authors' code (vit_jax/checkpoint.py: load_pretrained):
  linearly, the corners of the new grid on those of the old one; the class token's stays.
  """
  del method  # there is only one
  encoder = params["Transformer"]
  old = np.asarray(encoder["posembed_input"]["pos_embedding"])
  patches = old[0, 1:].reshape(*old_grid, -1).astype(np.float32)
  for axis, size in enumerate(new_grid):
    patches = resizing.between_corners(patches, size, axis)
  new = patches.reshape(1, -1, old.shape[-1]).astype(old.dtype)
  positions = {"pos_embedding": np.concatenate([old[:, :1], new], axis=1)}
  return {**params, "Transformer": {**encoder, "posembed_input": positions}}
