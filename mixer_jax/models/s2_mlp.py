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
from jaxtyping import Array, Float

from mixer_jax.configuration import PositiveInt
from mixer_jax.errors import InputError
from mixer_jax.models import base, layers, resizing
from mixer_jax.models.layers import Index, Kept, Mask

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


class S2Block(layers.Block):
  """x + norm(Dense(shift(GELU(Dense(x))))), then x + norm(Dense(GELU(Dense(x))))."""

  mlp_dim: int
  norm: Norm = "layer"

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], index: Index, kept: Kept, mask: Mask, train: bool
  ) -> Float[Array, "b h w c"]:
    layer_norm = functools.partial(nn.LayerNorm, epsilon=1e-5)
    norm = functools.partial(layer_norm if self.norm == "layer" else layers.Affine, **self.dtypes)
    dense = functools.partial(
      nn.Dense,
      x.shape[-1],
      kernel_init=_TRUNCATED_NORMAL,
      dot_general=layers.dot_general(train),
      **self.dtypes,
    )
    y = layers.GELU[self.gelu](dense()(x))
    y = dense()(shift(y))
    x = x + self.drop_path(norm()(y), kept, 0)
    mlp = layers.MlpBlock(
      self.mlp_dim, gelu=self.gelu, kernel_init=_TRUNCATED_NORMAL, **self.dtypes
    )
    return x + self.drop_path(norm()(mlp(x, index, train=train)), kept, 1)


class Model(base.BlockModel):
  """S²-MLP: patches -> stem -> LayerNorm -> `num_blocks` × S2Block -> mean over positions -> head.

  Sows every block's output (`block_<i>`), the last one's (`stage_1`) and `pre_logits`.

  Attributes:
    patch_size: side of a square patch in pixels.
    num_blocks: number of blocks L.
    hidden_dim: channels of a patch c, a multiple of 4.
    mlp_dim: hidden width of channel mixing.
    norm: what ends each branch: "layer", a LayerNorm; "affine", the affine transform of ResMLP.
  """

  patch_size: PositiveInt
  num_blocks: PositiveInt
  hidden_dim: PositiveInt
  mlp_dim: PositiveInt
  norm: Norm = "layer"

  def check(self, sides: tuple[int, ...]) -> None:
    if self.hidden_dim % 4:
      raise InputError(
        f"hidden_dim is {self.hidden_dim}; expected a multiple of 4, for the four directions."
      )
    resizing.token_grid(sides, self.patch_size)

  def logits(self, image: Array, index: Index, mask: Mask, train: bool) -> Array:
    x = self.run_stages(S2Block, [self.num_blocks], image, index, mask, train)
    return self.classify(jnp.mean(x, axis=(1, 2), dtype=jnp.float32), _TRUNCATED_NORMAL)

  def stage_input(self, x: Array, stage: int, mask: Mask, train: bool) -> Array:
    patch = (self.patch_size, self.patch_size)
    fields = dict(padding="VALID", kernel_init=_TRUNCATED_NORMAL, name="stem")
    x = nn.Conv(self.hidden_dim, patch, strides=patch, **fields, **self.dtypes)(x)
    return nn.LayerNorm(epsilon=1e-5, name="stem_layer_norm", **self.dtypes)(x)

  def block_fields(self, x: Array, stage: int) -> list[dict[str, Any]]:
    sizes = dict(mlp_dim=self.mlp_dim, norm=self.norm)
    return [dict(sizes, name=f"S2Block_{i}") for i in range(self.num_blocks)]


PREFIX = r"S2Block_\d+/"
STEM = "stem/kernel"
LAYERS = (r"stem", r"S2Block_(\d+)/")
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


def fields_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """Returns the model's fields that parameter shapes tell."""
  patch_size, _, _, hidden_dim = shapes[STEM]
  return dict(
    patch_size=patch_size,
    num_blocks=base.num_blocks(shapes, "S2Block_"),
    hidden_dim=hidden_dim,
    mlp_dim=shapes["S2Block_0/MlpBlock_0/Dense_0/kernel"][1],
    num_classes=base.num_classes(shapes),
    norm="affine" if "S2Block_0/Affine_0/alpha" in shapes else "layer",
  )


def input_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int]:
  """Returns an image (height, width, channels) that the parameters are for; other multiples of the patch will do."""
  patch_size, _, channels, _ = shapes[STEM]
  return 14 * patch_size, 14 * patch_size, channels
