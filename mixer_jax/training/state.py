"""The train state: all that a resumed run needs, the position in the data included (it is the step)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Int, UInt32


class TrainState(struct.PyTreeNode):
  """Frozen state of a run.

  Attributes:
    step: finished steps; also the position in the data.
    params: nested dictionary of parameters.
    model_state: the model's other collections (batch statistics), empty for Mixer.
    opt_state: the optimizer's state.
    rng: raw key of the run; the step's randomness is `fold_in(rng, step)`.
  """

  step: Int[Array, ""]
  params: Any
  model_state: Any
  opt_state: Any
  rng: UInt32[Array, " 2"]


def init_state(
  model: nn.Module, tx: optax.GradientTransformation, image_size: int, seed: int
) -> TrainState:
  """Returns the state before the first step, as a pure function of `seed`; jit it to shard it."""
  init_rng, rng = jax.random.split(jax.random.PRNGKey(seed))
  variables = dict(model.init(init_rng, jnp.zeros((1, image_size, image_size, 3))))
  params = variables.pop("params")
  variables.pop("intermediates", None)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    model_state=variables,
    opt_state=tx.init(params),
    rng=rng,
  )


def abstract_state(
  model: nn.Module, tx: optax.GradientTransformation, image_size: int
) -> TrainState:
  """Returns the state's shapes and types (jax.ShapeDtypeStruct); touches no device."""
  return jax.eval_shape(lambda: init_state(model, tx, image_size, 0))
