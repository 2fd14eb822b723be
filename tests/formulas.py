"""Layers as formulas in NumPy, for one image: what models are compared with."""

import jax
import numpy as np


def float64(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def layer_norm(x, p):
  x = x - x.mean(-1, keepdims=True)
  return x / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def gelu(x):
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
