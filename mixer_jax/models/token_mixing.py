"""Token mixing by name: the paper's MLP, what did not help (arXiv:2105.01601, appendix A), and another paper's.

In the paper's table X (tokens × channels), token mixing maps each of the c columns, of s values, by one shared MLP:
- mlp: that;
- untied: c separate MLPs, one for each column;
- grouped: G neighbouring columns are joined to one of G·s values, so one shared MLP maps the c/G long columns;
- views: as grouped, but of X as seen through G learned linear functions to c/G channels each. They are one
  kernel (c, c) whose output's column m·G + g is the m-th channel of view g;
- circulant: no MLP, but one linear map that rotates with the token (CCS, arXiv:2106.14882): column c is multiplied by
  the circulant matrix of vector c mod G, one of G.

Pyramids need nothing of their own: the MLPs put out fewer tokens than they take.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from mixer_jax.errors import InputError
from mixer_jax.models import layers
from mixer_jax.models.kernels import Kernels, gpu_token_mixing

Name = Literal["mlp", "untied", "grouped", "views", "circulant"]


class TokenMixing(layers.Layer):
  """What all have in common.

  Attributes:
    mlp_dim: hidden width of the MLPs.
    num_tokens: tokens t that come out. Default: as many as go in.
    channel_groups: G.
    kernels: "pallas" takes one kernel for the whole of "mlp" on NVIDIA GPUs.
  """

  mlp_dim: int
  num_tokens: int | None = None
  channel_groups: int = 1
  gelu: layers.Gelu = "tanh"
  dropout_rate: float = 0.0
  kernels: Kernels = "xla"

  def mlp_fields(self) -> dict[str, Any]:
    """Returns the fields that `layers.MlpBlock` and `UntiedMlp` share with this module."""
    names = ("mlp_dim", "gelu", "dropout_rate", "dtype", "param_dtype")
    return {name: getattr(self, name) for name in names}


class Mlp(TokenMixing):
  """The paper's: one MLP on every column. Its layers lie directly below this module's name."""

  def setup(self) -> None:
    self.mlp = layers.MlpBlock(out_dim=self.num_tokens, **self.mlp_fields())
    nn.share_scope(self, self.mlp)

  def __call__(
    self, x: Float[Array, "b s c"], index: Int[Array, " b"], *, train: bool = False
  ) -> Float[Array, "b t c"]:
    params = self.variables.get("params", {})
    kernel = params["Dense_0"]["kernel"] if "Dense_0" in params else None
    # Flax makes the parameters, or says what is wrong with them.
    if kernel is None or kernel.shape[0] != x.shape[1] or (train and self.dropout_rate):
      return self._on_columns(self.mlp, x, index, train)
    mlp, _ = self.mlp.unbind()

    def plain(params: Any, x: Array) -> Array:
      return self._on_columns(functools.partial(mlp.apply, {"params": params}), x, index, train)

    how: dict[str, Any] = dict(gelu=self.gelu, kernels=self.kernels, train=train, dtype=self.dtype)
    return gpu_token_mixing.on_this_platform(plain, params, x, **how)

  def _on_columns(self, mlp: Any, x: Array, index: Array, train: bool) -> Array:
    return jnp.swapaxes(mlp(jnp.swapaxes(x, 1, 2), index, train=train), 1, 2)


class UntiedMlp(layers.Layer):
  """layers.MlpBlock on the last axis, with weights of its own for each place on the axis before it."""

  mlp_dim: int
  out_dim: int
  gelu: layers.Gelu = "tanh"
  dropout_rate: float = 0.0

  @nn.compact
  def __call__(
    self, x: Float[Array, "b n d"], index: Int[Array, " b"], *, train: bool = False
  ) -> Float[Array, "b n o"]:
    dense = nn.vmap(
      nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=1, out_axes=1
    )
    y = layers.GELU[self.gelu](dense(self.mlp_dim, name="Dense_0", **self.dtypes)(x))
    y = layers.train_dropout(self, y, index, self.dropout_rate, train)
    y = dense(self.out_dim, name="Dense_1", **self.dtypes)(y)
    return layers.train_dropout(self, y, index, self.dropout_rate, train)


class JoinedColumns(TokenMixing):
  """An MLP on columns of G·s values; its layers lie below `mlp`."""

  @nn.compact
  def __call__(
    self, x: Float[Array, "b s c"], index: Int[Array, " b"], *, train: bool = False
  ) -> Float[Array, "b t c"]:
    columns = join_columns(self.view(x), self.channel_groups)
    num_tokens = self.num_tokens or x.shape[1]
    mlp = self.make_mlp(out_dim=self.channel_groups * num_tokens, name="mlp", **self.mlp_fields())
    return split_columns(mlp(columns, index, train=train), self.channel_groups)

  def view(self, x: Float[Array, "b s c"]) -> Float[Array, "b s c"]:
    """Returns what the columns are taken from."""
    return x

  def make_mlp(self, **fields: Any) -> Any:
    return layers.MlpBlock(**fields)


class Untied(JoinedColumns):
  """Appendix A: an MLP of its own for each column."""

  def make_mlp(self, **fields: Any) -> Any:
    return UntiedMlp(**fields)


class Grouped(JoinedColumns):
  """Appendix A: one MLP on G joined columns."""


class Views(JoinedColumns):
  """Appendix A: one MLP on the joined columns of G learned views."""

  def view(self, x: Float[Array, "b s c"]) -> Float[Array, "b s c"]:
    return nn.Dense(x.shape[-1], use_bias=False, name="views", **self.dtypes)(x)


class Circulant(TokenMixing):
  """CCS: its one parameter lies directly below this module's name. There is no hidden layer and no dropout."""

  def setup(self) -> None:
    self.ring = layers.Circulant(self.channel_groups, **self.dtypes)
    nn.share_scope(self, self.ring)

  def __call__(
    self, x: Float[Array, "b s c"], index: Int[Array, " b"], *, train: bool = False
  ) -> Float[Array, "b s c"]:
    del index, train
    return self.ring(x)


TOKEN_MIXING: dict[str, Callable[..., TokenMixing]] = {
  "mlp": Mlp,
  "untied": Untied,
  "grouped": Grouped,
  "views": Views,
  "circulant": Circulant,
}


def join_columns(x: Float[Array, "b s c"], groups: int) -> Float[Array, "b n d"]:
  """Returns the c/G columns of G·s values, one after another of the G joined ones."""
  columns = jnp.swapaxes(x, 1, 2)
  return columns.reshape(x.shape[0], x.shape[2] // groups, groups * x.shape[1])


def split_columns(columns: Float[Array, "b n d"], groups: int) -> Float[Array, "b t c"]:
  """Undoes `join_columns`."""
  batch, num_columns, size = columns.shape
  return jnp.swapaxes(columns.reshape(batch, num_columns * groups, size // groups), 1, 2)


def check_token_mixing(
  name: str, channel_groups: int, pyramid: tuple[int, ...], num_blocks: int, channels: int
) -> None:
  """Raises InputError for a model's options that do not go together."""
  joined, ring = name in ("grouped", "views"), name == "circulant"
  if ring and (channel_groups < 1 or channels % channel_groups):
    raise InputError(
      f"channel_groups {channel_groups} with token_mixing 'circulant' must divide hidden_dim {channels}."
    )
  if not ring and (
    channel_groups < 1 or channels % channel_groups or (channel_groups == 1) == joined
  ):
    raise InputError(
      f"channel_groups {channel_groups} with token_mixing {name!r}: it must be 1, and for 'grouped' "
      f"and 'views' more than 1 and a divisor of hidden_dim {channels}."
    )
  if ring and pyramid:
    raise InputError(
      f"pyramid {pyramid} with token_mixing 'circulant', which keeps the number of tokens: set pyramid to ()."
    )
  if pyramid and (len(pyramid) != num_blocks or min(pyramid) < 1):
    raise InputError(
      f"pyramid {pyramid} must say how many tokens leave each of the {num_blocks} blocks."
    )
