"""The published model, written plainly: the listing in the paper (arXiv:2105.01601, appendix E), in Linen.

Float32, transposes around token mixing, no options; and the plain training step around it: sigmoid
cross-entropy, clipping by the global norm and AdamW from Optax, jitted, with its arguments donated.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn


class MlpBlock(nn.Module):
  mlp_dim: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = nn.Dense(self.mlp_dim)(x)
    y = nn.gelu(y)
    return nn.Dense(x.shape[-1])(y)


class MixerBlock(nn.Module):
  tokens_mlp_dim: int
  channels_mlp_dim: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = nn.LayerNorm()(x)
    y = jnp.swapaxes(y, 1, 2)
    y = MlpBlock(self.tokens_mlp_dim, name="token_mixing")(y)
    y = jnp.swapaxes(y, 1, 2)
    x = x + y
    y = nn.LayerNorm()(x)
    return x + MlpBlock(self.channels_mlp_dim, name="channel_mixing")(y)


class MlpMixer(nn.Module):
  num_classes: int
  num_blocks: int
  patch_size: int
  hidden_dim: int
  tokens_mlp_dim: int
  channels_mlp_dim: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    s = self.patch_size
    x = nn.Conv(self.hidden_dim, (s, s), strides=(s, s), name="stem")(x)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    for _ in range(self.num_blocks):
      x = MixerBlock(self.tokens_mlp_dim, self.channels_mlp_dim)(x)
    x = nn.LayerNorm(name="pre_head_layer_norm")(x)
    x = jnp.mean(x, axis=1)
    return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(x)


def normalize(image: jax.Array) -> jax.Array:
  """Maps uint8 to −1..1."""
  return image.astype(jnp.float32) / 127.5 - 1.0


def make_optimizer(learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
  return optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(learning_rate, weight_decay=weight_decay)
  )


def make_train_step(model: MlpMixer, tx: optax.GradientTransformation) -> Any:
  """Returns jitted (params, opt_state, image, label) -> (params, opt_state, loss)."""

  def train_step(params: Any, opt_state: Any, image: jax.Array, label: jax.Array) -> Any:
    def loss(params: Any) -> jax.Array:
      logits: Any = model.apply({"params": params}, normalize(image))
      targets = jax.nn.one_hot(label, model.num_classes)
      return jnp.mean(jnp.sum(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1))

    value, grads = jax.value_and_grad(loss)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value

  return jax.jit(train_step, donate_argnums=(0, 1))


def make_predict_step(model: MlpMixer) -> Any:
  """Returns jitted (params, image) -> logits."""
  return jax.jit(lambda params, image: model.apply({"params": params}, normalize(image)))
