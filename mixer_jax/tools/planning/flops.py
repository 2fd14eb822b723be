"""Floating-point operations of matrix products, counted in a traced program.

A product of (m, k) with (k, n) is 2·m·k·n operations, a convolution 2 · (values of its output) · (values
of the kernel that make one of them); padding is counted as if it were multiplied. Everything else
(normalisation, GELU, the optimizer) is left out, as usual for model-FLOPs utilisation (Chowdhery et al.,
"PaLM", 2022, appendix B).
"""

import math
from typing import Any

import jax
from flax import linen as nn
from jax.extend import core

# A step's operations over the forward pass's: gradients take a product for each of both factors. The gradient of the
# images is not computed, so this is too much by a third of the first layer (0.3 % for Mixer-B/16). Recomputation does
# not count, because it is not the model's.
TRAINING = 3


def forward_flops(model: nn.Module, abstract_variables: Any, abstract_image: Any) -> int:
  """Returns the operations of `model.apply` on variables and a batch of images of these shapes and types."""
  return matmul_flops(jax.make_jaxpr(model.apply)(abstract_variables, abstract_image).jaxpr)


def matmul_flops(jaxpr: core.Jaxpr, *, loops: bool = True) -> int:
  """Returns the operations of all matrix products and convolutions, over all devices.

  Args:
    jaxpr: a traced program.
    loops: count the body of a loop of known length (scan) as often as it runs; False: once, as XLA's
      cost analysis does.
  """
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      total += _dot_flops(eqn)
    elif eqn.primitive.name == "conv_general_dilated":
      total += _conv_flops(eqn)
    else:
      inner = [matmul_flops(j, loops=loops) for v in eqn.params.values() for j in _jaxprs(v)]
      # Of several branches one runs, such as that of the platform.
      one = max(inner) if eqn.primitive.name == "cond" else sum(inner)
      total += one * _times(eqn, loops)
  return total


def _jaxprs(value: Any) -> list[core.Jaxpr]:
  """Returns the programs in a parameter of an operation."""
  if isinstance(value, core.ClosedJaxpr):
    return [value.jaxpr]
  if isinstance(value, core.Jaxpr):
    return [value]
  if isinstance(value, tuple | list):
    return [j for v in value for j in _jaxprs(v)]
  return []


def _times(eqn: core.JaxprEqn, loops: bool) -> int:
  if eqn.primitive.name == "scan" and loops:
    return eqn.params["length"]
  if eqn.primitive.name == "shard_map":  # its program is that of one shard
    return math.prod(eqn.params["mesh"].shape[axis] for axis in eqn.params["newly_manual_axes"])
  return 1


def _dot_flops(eqn: core.JaxprEqn) -> int:
  (contracted, _), _ = eqn.params["dimension_numbers"]
  left: Any = eqn.invars[0].aval
  out: Any = eqn.outvars[0].aval
  return 2 * out.size * math.prod(left.shape[i] for i in contracted)


def _conv_flops(eqn: core.JaxprEqn) -> int:
  kernel: Any = eqn.invars[1].aval
  out: Any = eqn.outvars[0].aval
  features = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
  return 2 * out.size * kernel.size // features
