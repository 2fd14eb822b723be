"""What the blocks of the families share: MLP, drop path and dropout whose draws belong to the image, convolutions, BatchNorm.

All draws come from a key per image, `fold_in(key, index)`, with `index` the image's position in the global
batch. So an image meets the same masks whether the batch is taken at once, sharded over devices or
accumulated in parts.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from mixer_jax.errors import InputError
from mixer_jax.models.kernels import cpu_dense, cpu_depthwise, cpu_max_pool, gpu_mlp, gpu_patches

Index = Int[Array, " b"]
Kept = Bool[Array, "b 2"] | None
Mask = Float[Array, " b"] | None
Gelu = gpu_mlp.Gelu
GELU = gpu_mlp.GELU


class Layer(nn.Module, kw_only=True):
  """Computes in `dtype`, with parameters of `param_dtype`."""

  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @property
  def dtypes(self) -> dict[str, Any]:
    """Both types, for the modules inside."""
    return dict(dtype=jnp.dtype(self.dtype), param_dtype=jnp.dtype(self.param_dtype))


class Block(Layer, kw_only=True):
  """A residual block of one or two branches, called with (x, index, kept, mask, train) by position.

  `index` are the images' positions in the global batch, which their draws belong to. Where `kept[i, j]` is False, image i
  skips branch j. `mask` is 0 for padding, which does not enter the statistics of a BatchNorm.

  Attributes:
    gelu: "erf", the exact one; "tanh", the approximation.
    drop_path_rate: probability that a branch is skipped.
    rescale: see `drop_path`.
  """

  gelu: Gelu = "erf"
  drop_path_rate: float = 0.0
  rescale: bool = True

  @nn.nowrap
  def drop_path(
    self, branch: Float[Array, "b ..."], kept: Kept, number: int
  ) -> Float[Array, "b ..."]:
    """Returns `drop_path` of the block's branch of this number, 0 or 1."""
    one = None if kept is None else kept[:, number]
    return drop_path(branch, one, self.drop_path_rate, rescale=self.rescale)


def per_image_keys(key: Array, index: Int[Array, " b"]) -> Array:
  """Returns a key for each image."""
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def draw_kept(
  key: Array, index: Int[Array, " b"], rates: Float[Array, " l"]
) -> Bool[Array, "b l 2"]:
  """Draws drop path for both branches of l blocks: True where an image keeps a branch.

  Image i drops each branch of block j with probability `rates[j]`, independently (stochastic depth, Huang et
  al., arXiv:1603.09382). All draws of a step are made at once, which compiles to one loop.
  """
  keys = per_image_keys(key, index)
  uniform = jax.vmap(lambda k: jax.random.uniform(k, (rates.shape[0], 2)))(keys)
  return uniform >= rates[:, None]


def drop_path(
  branch: Float[Array, "b ..."],
  kept: Bool[Array, " b"] | None,
  rate: float = 0.0,
  *,
  rescale: bool = False,
) -> Float[Array, "b ..."]:
  """Zeroes the branch of every image where `kept` is False. If `kept` is None, every image keeps it.

  Args:
    branch: of a residual block, of any rank.
    kept: from `draw_kept`.
    rate: the probability that the branch was dropped with.
    rescale: divide what is kept by 1 − rate (the DeiT recipe); False: leave it as it is, in training and
      evaluation (big_vision, models/mlp_mixer.py).
  """
  if kept is None:
    return branch
  if rescale:
    branch = (branch / max(1.0 - rate, 1e-9)).astype(branch.dtype)  # nothing is kept at a rate of 1
  kept = kept.reshape(-1, *[1] * (branch.ndim - 1))
  return jnp.where(kept, branch, jnp.zeros_like(branch))


def dropout(
  x: Float[Array, "b ..."], key: Array, index: Int[Array, " b"], rate: float
) -> Float[Array, "b ..."]:
  """Inverted dropout: zeroes values with probability `rate`, divides the others by 1 − rate."""
  draw = jax.vmap(lambda k: jax.random.bernoulli(k, 1.0 - rate, x.shape[1:]))
  kept = draw(per_image_keys(key, index))
  return jnp.where(kept, x / (1.0 - rate), jnp.zeros_like(x))


def train_dropout(
  module: nn.Module, x: Float[Array, "b ..."], index: Int[Array, " b"], rate: float, train: bool
) -> Float[Array, "b ..."]:
  """Returns `dropout` with the module's next key while training; otherwise the values as they are."""
  return dropout(x, module.make_rng("dropout"), index, rate) if train and rate else x


def dot_general(train: bool) -> Any:
  """Returns the product for nn.Dense: while training, the one whose gradients are fast on this platform."""
  # Only where it pays: with a custom gradient, forward-mode differentiation is an error.
  return cpu_dense.dense_dot if train else None


class Affine(Layer):
  """alpha·x + beta for each channel; no statistics (ResMLP, arXiv:2105.03404, section 2)."""

  @nn.compact
  def __call__(self, x: Float[Array, "b *n c"]) -> Float[Array, "b *n c"]:
    alpha = self.param("alpha", nn.initializers.ones, x.shape[-1:], self.param_dtype)
    beta = self.param("beta", nn.initializers.zeros, x.shape[-1:], self.param_dtype)
    return alpha.astype(self.dtype) * x.astype(self.dtype) + beta.astype(self.dtype)


class LayerScale(Layer):
  """gamma·x for each channel; gamma starts at `initial` (CaiT, arXiv:2103.17239)."""

  initial: float

  @nn.compact
  def __call__(self, x: Float[Array, "b *n c"]) -> Float[Array, "b *n c"]:
    start = nn.initializers.constant(self.initial)
    gamma = self.param("gamma", start, x.shape[-1:], self.param_dtype)
    return gamma.astype(self.dtype) * x


def uniform_bias(fan_in: int) -> Callable[..., Array]:
  """Returns torch's initializer of a convolution's bias: uniform in ±1/√fan_in."""
  bound = fan_in**-0.5
  return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def conv(
  x: Float[Array, "b h w i"], features: int, size: int, *, stride: int = 1, **fields: Any
) -> Float[Array, "b y x o"]:
  """Convolves, padded with zeros by size // 2 on every side, as torch does it; "SAME" is not that with a stride.

  Called in a compact method, whose module gets the next `Conv_<i>`.

  Args:
    x: maps.
    features: channels that come out.
    size: side of the kernel, odd.
    stride: of both axes.
    fields: of nn.Conv.
  """
  pad = (size // 2, size // 2)
  return nn.Conv(features, (size, size), (stride, stride), padding=(pad, pad), **fields)(x)


def depthwise(x: Float[Array, "b h w c"], size: int, **fields: Any) -> Float[Array, "b h w c"]:
  """Convolves each channel with a kernel of its own, with stride 1, in the form that is fast on this platform.

  It has no forward-mode derivatives.

  Args:
    x: maps, padded as `conv` pads them.
    size: side of the kernel, odd.
    fields: of nn.Conv, but for strides and groups.
  """
  fields |= dict(feature_group_count=x.shape[-1], conv_general_dilated=_depthwise)
  return conv(x, x.shape[-1], size, **fields)


def _depthwise(x: Array, kernel: Array, *unused: Any, **also_unused: Any) -> Array:
  """Is nn.Conv's `conv_general_dilated`; what it leaves out are the stride, the padding and the groups of `depthwise`."""
  del unused, also_unused
  return cpu_depthwise.depthwise(x, kernel)


max_pool = cpu_max_pool.max_pool
patch_convolution = gpu_patches.patch_convolution


def batch_norm(
  x: Float[Array, "b h w c"], mask: Float[Array, " b"] | None, train: bool, **dtypes: Any
) -> Float[Array, "b h w c"]:
  """Normalises with the statistics of the global batch while training, else with the running ones.

  Called in a compact method, whose module gets the next `BatchNorm_<i>`. The references took the statistics of one
  device's share of the batch; torch's running variance is the unbiased one, n/(n−1) times the one kept here.

  Args:
    x: maps.
    mask: 0 for images that are padding, which do not enter the statistics. None if there is no padding.
    train: take the batch's statistics, and average them into the running ones.
    dtypes: dtype, param_dtype.
  """
  norm = nn.BatchNorm(
    use_running_average=not train,
    momentum=0.9,
    epsilon=1e-5,
    use_fast_variance=False,
    **dtypes,
  )
  if mask is None:
    return norm(x)
  present = mask[:, None, None, None] > 0
  return norm(x, mask=present | ~jnp.any(present))  # of a batch of padding alone, finite numbers


class UnbiasedDense(Layer):
  """nn.Dense that returns its product and its bias, whose sum `gpu_mlp.gelu` takes."""

  features: int
  kernel_init: Callable[..., Array]
  bias_init: Callable[..., Array]
  dot_general: Any

  @nn.compact
  def __call__(self, x: Float[Array, "*n d"]) -> tuple[Float[Array, "*n o"], Float[Array, "*m o"]]:
    kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
    bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    dot = self.dot_general or jax.lax.dot_general
    product = dot(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), None)
    return product, bias.reshape((1,) * (x.ndim - 1) + (-1,))


class MlpBlock(Layer):
  """Dense -> GELU -> Dense, on the last axis.

  Dropout, when training, follows the GELU and the second Dense, as in the Vision Transformer's MLP.
  """

  mlp_dim: int
  out_dim: int | None = None  # default: as wide as the input
  gelu: Gelu = "tanh"
  dropout_rate: float = 0.0
  kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
  bias_init: Callable[..., Array] = nn.initializers.zeros

  @nn.compact
  def __call__(
    self, x: Float[Array, "b *n d"], index: Int[Array, " b"], *, train: bool = False
  ) -> Float[Array, "b *n o"]:
    dense: dict[str, Any] = dict(
      kernel_init=self.kernel_init,
      bias_init=self.bias_init,
      dot_general=dot_general(train),
      **self.dtypes,
    )
    y, bias = UnbiasedDense(self.mlp_dim, name="Dense_0", **dense)(x)
    y = gpu_mlp.gelu(self.gelu, y, bias, train)
    y = train_dropout(self, y, index, self.dropout_rate, train)
    y = nn.Dense(self.out_dim or x.shape[-1], name="Dense_1", **dense)(y)
    return train_dropout(self, y, index, self.dropout_rate, train)


def circulant(x: Float[Array, "b s c"], kernel: Float[Array, "s g"]) -> Float[Array, "b s c"]:
  """Returns y[n, c] = Σ_j kernel[j, c mod g]·x[(n + j) mod s, c]: a product of the tokens' ring for each channel."""
  batch, num_tokens, channels = x.shape
  groups = kernel.shape[1]
  # Without a gather: in rows of 2s − 1 of the repeated vector, each begins one place earlier than the one before.
  rows = jnp.tile(kernel.T, (1, 2 * num_tokens - 1)).reshape(groups, num_tokens, -1)
  columns = x.reshape(batch, num_tokens, channels // groups, groups)
  return jnp.einsum("gns,bskg->bnkg", rows[:, :, :num_tokens], columns).reshape(x.shape)


class Circulant(Layer):
  """Circulant channel-specific token mixing (CCS, arXiv:2106.14882): `circulant`, without bias or activation.

  Attributes:
    groups: vectors g; channel c takes vector c mod g.
  """

  groups: int

  @nn.compact
  def __call__(self, x: Float[Array, "b s c"]) -> Float[Array, "b s c"]:
    if x.shape[2] % self.groups:
      raise InputError(
        f"channel_groups {self.groups} with token_mixing 'circulant' must divide hidden_dim {x.shape[2]}."
      )
    start = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # in ±1/√s
    kernel = self.param("kernel", start, (x.shape[1], self.groups), self.param_dtype)
    return circulant(x.astype(self.dtype), jnp.asarray(kernel, self.dtype))
