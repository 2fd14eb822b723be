"""Token mixing that did not help (arXiv:2105.01601, appendix A), in place of Mixer's own.

In the paper's table X (tokens × channels), token mixing maps each of the c columns, of s values, by one shared MLP:
- untied: c separate MLPs, a column each;
- grouped: G neighbouring columns are joined to one of G·s values, so one shared MLP maps the c/G long columns;
- views: as grouped, but of X as seen through G learned linear functions to c/G channels each. They are one
  kernel (c, c) whose output's column m·G + g is the m-th channel of view g.

Pyramids need nothing of their own: the MLPs have fewer tokens coming out than going in.
"""

from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from mixer_jax.errors import InputError
from mixer_jax.models import layers

Ablation = Literal["none", "untied", "grouped", "views"]


class UntiedMlp(nn.Module):
  """layers.MlpBlock on the last axis, with weights of its own for each place on the axis before it."""

  mlp_dim: int
  out_dim: int
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b n d"], rows: Int[Array, " b"], *, train: bool = False
  ) -> Float[Array, "b n o"]:
    dense = nn.vmap(
      nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=1, out_axes=1
    )
    dtypes: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    y = nn.gelu(dense(self.mlp_dim, name="Dense_0", **dtypes)(x))
    y = layers.train_dropout(self, y, rows, self.dropout_rate, train)
    y = dense(self.out_dim, name="Dense_1", **dtypes)(y)
    return layers.train_dropout(self, y, rows, self.dropout_rate, train)


class TokenMixing(nn.Module):
  """Maps s tokens to `num_tokens`, as `ablation` says.

  Attributes:
    ablation: see above.
    channel_groups: G.
    num_tokens: tokens that come out.
    mlp_dim: hidden width of the MLPs.
  """

  ablation: Ablation
  channel_groups: int
  num_tokens: int
  mlp_dim: int
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b s c"], rows: Int[Array, " b"], *, train: bool = False
  ) -> Float[Array, "b t c"]:
    dtypes: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    if self.ablation == "views":
      x = nn.Dense(x.shape[-1], use_bias=False, name="views", **dtypes)(x)
    columns = join_columns(x, self.channel_groups)
    mlp = UntiedMlp if self.ablation == "untied" else layers.MlpBlock
    columns = mlp(
      self.mlp_dim,
      out_dim=self.channel_groups * self.num_tokens,
      dropout_rate=self.dropout_rate,
      name="mlp",
      **dtypes,
    )(columns, rows, train=train)
    return split_columns(columns, self.channel_groups)


def join_columns(x: Float[Array, "b s c"], groups: int) -> Float[Array, "b n d"]:
  """Returns the c/G columns of G·s values, one after another of the G joined ones."""
  columns = jnp.swapaxes(x, 1, 2)
  return columns.reshape(x.shape[0], x.shape[2] // groups, groups * x.shape[1])


def split_columns(columns: Float[Array, "b n d"], groups: int) -> Float[Array, "b t c"]:
  """Undoes `join_columns`."""
  batch, num_columns, size = columns.shape
  return jnp.swapaxes(columns.reshape(batch, num_columns * groups, size // groups), 1, 2)


def check(
  *,
  ablation: Ablation,
  channel_groups: int,
  pyramid: tuple[int, ...],
  num_blocks: int,
  channels: int,
) -> None:
  """Raises InputError for options that do not go together, or not with the model."""
  joined = ablation in ("grouped", "views")
  if channel_groups < 1 or channels % channel_groups or (channel_groups == 1) == joined:
    raise InputError(
      f"channel_groups {channel_groups} with ablation {ablation!r}: it must be 1, and for 'grouped' and "
      f"'views' more than 1 and a divisor of hidden_dim {channels}."
    )
  if pyramid and (len(pyramid) != num_blocks or min(pyramid) < 1):
    raise InputError(
      f"pyramid {tuple(pyramid)} must say how many tokens leave each of the {num_blocks} blocks."
    )
