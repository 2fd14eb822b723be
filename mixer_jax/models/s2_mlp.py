"""S²-MLP (Yu et al., 2022, arXiv:2106.07477): four groups of channels move by one position each, without parameters.

No code of the authors is public; this is the paper's. Of its sizes, "wide" has LayerNorms and "deep" affine transforms
in the blocks. The paper does not say which one follows the embedding of "deep": here a LayerNorm.

Axis letters: b images, h w pixels or patches, c channels, k classes. Any image size that the patch divides will do.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from mixer_jax.configuration import PositiveInt, Rate
from mixer_jax.errors import InputError
from mixer_jax.models import layers, resizing

TITLE = "S²-MLP"
Norm = Literal["layer", "affine"]
_TRUNCATED_NORMAL = nn.initializers.truncated_normal(0.02)

VARIANTS = {
  "wide": dict(patch_size=16, num_blocks=12, hidden_dim=768, mlp_dim=3072, norm="layer"),
  "deep": dict(patch_size=16, num_blocks=36, hidden_dim=384, mlp_dim=1536, norm="affine"),
}
"""Published size -> fields of the model."""


def shift(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
  """Moves a quarter of the channels each down, up, right and left by one; at the edge a value stays where it is.

  down[i] = x[i−1] and down[0] = x[0] (equation 3; which axis comes first is free: here the height).
  """
  down, up, right, left = jnp.split(x, 4, axis=-1)
  moved = (
    jnp.concatenate((down[:, :1], down[:, :-1]), axis=1),
    jnp.concatenate((up[:, 1:], up[:, -1:]), axis=1),
    jnp.concatenate((right[:, :, :1], right[:, :, :-1]), axis=2),
    jnp.concatenate((left[:, :, 1:], left[:, :, -1:]), axis=2),
  )
  return jnp.concatenate(moved, axis=-1)


class S2Block(nn.Module):
  """x + norm(Dense(shift(GELU(Dense(x))))), then x + norm(Dense(GELU(Dense(x)))).

  Where `kept[i, j]` is False, image i skips branch j (drop path).
  """

  mlp_dim: int
  norm: Norm = "layer"
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
    kept_shift, kept_mlp = (None, None) if kept is None else (kept[:, 0], kept[:, 1])
    dtypes: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    drop_path = functools.partial(layers.drop_path, rate=self.drop_path_rate, rescale=self.rescale)
    layer_norm = functools.partial(nn.LayerNorm, epsilon=1e-5)
    norm = functools.partial(layer_norm if self.norm == "layer" else layers.Affine, **dtypes)
    dense = functools.partial(
      nn.Dense,
      x.shape[-1],
      kernel_init=_TRUNCATED_NORMAL,
      dot_general=layers.dot_general(train),
      **dtypes,
    )
    y = layers.GELU[self.gelu](dense()(x))
    y = dense()(shift(y))
    x = x + drop_path(norm()(y), kept_shift)
    mlp = layers.MlpBlock(self.mlp_dim, gelu=self.gelu, kernel_init=_TRUNCATED_NORMAL, **dtypes)
    return x + drop_path(norm()(mlp(x, index, train=train)), kept_mlp)


class Model(layers.ImageModel):
  """S²-MLP: patches -> stem -> LayerNorm -> `num_blocks` × S2Block -> mean over positions -> head.

  Sows every block's output (`block_<i>`), the last one's (`stage_1`) and `pre_logits`.

  Attributes:
    patch_size: side of a square patch in pixels.
    num_blocks: number of blocks L.
    hidden_dim: channels of a patch c, a multiple of 4.
    mlp_dim: hidden width of channel mixing.
    num_classes: width of the head k. If None or 0, there is no head and the module returns `pre_logits`.
    norm: what ends each branch: "layer", a LayerNorm; "affine", the affine transform of ResMLP.
    gelu: "erf", the exact one; "tanh", the approximation.
    stoch_depth: s; block i drops each branch of an image with probability s·i/(L−1).
    stoch_depth_rescale: divide the branches that are kept by 1 − that.
    head_bias_init: start of the head's bias.
    dtype: compute type; the mean over positions and the head stay float32.
    param_dtype: type of the parameters.
    remat: "block" keeps only the blocks' inputs for the backward pass and recomputes the rest.
  """

  patch_size: PositiveInt
  num_blocks: PositiveInt
  hidden_dim: PositiveInt
  mlp_dim: PositiveInt
  num_classes: int | None = 1000
  norm: Norm = "layer"
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
      image: normalised values, of any size that the patch divides.
      train: draw drop path, from the random stream "dropout".
      index: the images' positions in the global batch, which their draws belong to; default 0 … b−1.
      mask: without effect, as no statistics are taken over the batch.

    Raises:
      InputError: the patch does not divide the image, or 4 does not divide hidden_dim.
    """
    del mask
    layers.check_image(image)
    if self.hidden_dim % 4:
      raise InputError(
        f"hidden_dim is {self.hidden_dim}; expected a multiple of 4, for the four directions."
      )
    _, height, width, _ = image.shape
    resizing.token_grid((height, width), self.patch_size)
    index = jnp.arange(image.shape[0]) if index is None else index
    dtypes: dict[str, Any] = dict(
      dtype=jnp.dtype(self.dtype), param_dtype=jnp.dtype(self.param_dtype)
    )
    x = nn.Conv(
      self.hidden_dim,
      (self.patch_size, self.patch_size),
      strides=(self.patch_size, self.patch_size),
      padding="VALID",
      kernel_init=_TRUNCATED_NORMAL,
      name="stem",
      **dtypes,
    )(image)
    x = nn.LayerNorm(epsilon=1e-5, name="stem_layer_norm", **dtypes)(x)
    rates = layers.linear_rates(self.stoch_depth, self.num_blocks)
    kept = None
    if train and self.stoch_depth:
      kept = layers.draw_kept(self.make_rng("dropout"), index, rates)
    block = nn.remat(S2Block, static_argnums=(4,)) if self.remat == "block" else S2Block
    for i in range(self.num_blocks):
      x = block(
        self.mlp_dim,
        self.norm,
        gelu=self.gelu,
        drop_path_rate=layers.linear_rate(self.stoch_depth, i, self.num_blocks),
        rescale=self.stoch_depth_rescale,
        name=f"S2Block_{i}",
        **dtypes,
      )(x, index, None if kept is None else kept[:, i], train)
      self.sow("intermediates", f"block_{i}", x)
    self.sow("intermediates", "stage_1", x)
    pre_logits = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    return layers.classify(self, pre_logits, _TRUNCATED_NORMAL)


PREFIX = r"S2Block_\d+/"
STEM = "stem/kernel"
UNTOLD: dict[str, Any] = {}
HEAD = {"head": "num_classes"}
LAYERS = (r"stem", r"S2Block_(\d+)/")
RELEASED_RENAMES = ()
TORCH_NAMES = {
  "authors": (
    ("embed", "stem"),
    ("embed_norm", "stem_layer_norm"),
    ("blocks.{}.fc1", "S2Block_{}/Dense_0"),
    ("blocks.{}.fc2", "S2Block_{}/Dense_1"),
    ("blocks.{}.fc3", "S2Block_{}/MlpBlock_0/Dense_0"),
    ("blocks.{}.fc4", "S2Block_{}/MlpBlock_0/Dense_1"),
    *(
      (f"blocks.{{}}.norm{i + 1}.{leaf}", f"S2Block_{{}}/Affine_{i}/{leaf}")
      for i in range(2)
      for leaf in ("alpha", "beta")
    ),
    *((f"blocks.{{}}.norm{i + 1}", f"S2Block_{{}}/LayerNorm_{i}") for i in range(2)),
    ("head", "head"),
  )
}
"""The names are the paper's numbers of its layers: no authors' code is public."""
RESIZE_METHODS = ()


def fields_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """Returns the model's fields that parameter shapes tell."""
  patch_size, _, _, hidden_dim = shapes[STEM]
  return dict(
    patch_size=patch_size,
    num_blocks=layers.num_blocks(shapes, "S2Block_"),
    hidden_dim=hidden_dim,
    mlp_dim=shapes["S2Block_0/MlpBlock_0/Dense_0/kernel"][1],
    num_classes=shapes["head/kernel"][1] if "head/kernel" in shapes else None,
    norm="affine" if "S2Block_0/Affine_0/alpha" in shapes else "layer",
  )


def input_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int]:
  """Returns an image (height, width, channels) that the parameters are for; other multiples of the patch will do."""
  patch_size, _, channels, _ = shapes[STEM]
  return 14 * patch_size, 14 * patch_size, channels
