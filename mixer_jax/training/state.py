"""The train state: all that a resumed run needs, the position in the data included (it is the step)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Int, UInt32

from mixer_jax.weights import Variables


class TrainState(struct.PyTreeNode):
  """Frozen state of a run.

  Attributes:
    step: finished steps; also the position in the data.
    params: nested dictionary of parameters.
    batch_stats: BatchNorm's running statistics, empty for models without it.
    opt_state: the optimizer's state.
    ema: average of the variables over the steps, float32 whatever their type; empty if none is kept.
    rng: raw key of the run; the step's randomness is `fold_in(rng, step)`.
  """

  step: Int[Array, ""]
  params: Any
  batch_stats: Any
  opt_state: Any
  ema: Any
  rng: UInt32[Array, " 2"]

  def variables(self) -> Variables:
    """Returns what the optimizer and the batches have made: {"params", "batch_stats"?}."""
    statistics = {"batch_stats": self.batch_stats} if self.batch_stats else {}
    return {"params": self.params, **statistics}

  def eval_variables(self) -> Variables:
    """Returns what is evaluated, chosen as best and exported: the average in the variables' types, if kept."""
    if not self.ema:
      return self.variables()
    return jax.tree.map(lambda a, x: a.astype(x.dtype), self.ema, self.variables())

  def with_average(self, decay: float, *, warmup: bool = False) -> "TrainState":
    """Returns the state with ema ← decay·ema + (1 − decay)·variables; unchanged if no average is kept.

    With `warmup` the decay after step n is at most 1 − n^(−2/3), 0 after the first (timm, utils/model_ema.py:
    ModelEmaV3).
    """
    if not self.ema:
      return self
    d: Any = jnp.minimum(decay, 1.0 - self.step ** (-2 / 3)) if warmup else decay
    average = jax.tree.map(
      lambda a, x: d * a + (1.0 - d) * x.astype(jnp.float32), self.ema, self.variables()
    )
    return self.replace(ema=average)


def first_state(
  variables: Variables, tx: optax.GradientTransformation, *, seed: int, ema_decay: float
) -> TrainState:
  """Returns the state before the first step, at these variables; jit it to shard it."""
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables["params"],
    batch_stats=variables.get("batch_stats", {}),
    opt_state=tx.init(variables["params"]),
    ema={},
    rng=_keys(seed)[1],
  )
  # A copy: a donated state must not have one array twice.
  average = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), state.variables())
  return state.replace(ema=average) if ema_decay else state


def init_variables(model: nn.Module, input_shape: tuple[int, ...], seed: int) -> Variables:
  """Returns the model's random variables for inputs of `input_shape`, a pure function of `seed`."""
  variables = model.init(_keys(seed)[0], jnp.zeros((1, *input_shape)))
  return {k: v for k, v in variables.items() if k in ("params", "batch_stats")}


def _keys(seed: int) -> Array:
  """Returns the keys of the initial parameters and of the run."""
  return jax.random.split(jax.random.PRNGKey(seed))
