"""Attention's parameters as torch's libraries hold them: one matrix for query, key and value, with the heads joined.

Below `<attention>`, ours are query, key and value, kernels (c, n, d) and biases (n, d), and out, kernel (n, d, c); n
heads of d channels. Joined they are qkv, kernel (c, 3·n·d) and bias (3·n·d,), and out, kernel (n·d, c).
"""

from collections.abc import Callable, Mapping

import numpy as np

_PARTS = ("query", "key", "value")


def join(flat: Mapping[str, np.ndarray], attention: str) -> dict[str, np.ndarray]:
  """Returns the parameters, joined.

  Args:
    flat: parameters by name.
    attention: what the names of attention's modules end in.
  """
  joined = dict(flat)
  for name, value in flat.items():
    module, slash, leaf = name.partition(f"{attention}/query/")
    if slash:
      parts = [joined.pop(f"{module}{attention}/{part}/{leaf}") for part in _PARTS]
      merged = [part.reshape(*part.shape[:-2], -1) for part in parts]
      joined[f"{module}{attention}/qkv/{leaf}"] = np.concatenate(merged, axis=-1)
    elif name.endswith(f"{attention}/out/kernel"):
      joined[name] = value.reshape(-1, value.shape[-1])
  return joined


def split(
  flat: Mapping[str, np.ndarray], attention: str, num_heads: Callable[[int], int]
) -> dict[str, np.ndarray]:
  """Undoes `join`.

  Args:
    flat: parameters by name, joined.
    attention: what the names of attention's modules end in.
    num_heads: returns n for n·d.
  """
  parted = dict(flat)
  for name, value in flat.items():
    module, slash, leaf = name.partition(f"{attention}/qkv/")
    if slash:
      heads = num_heads(value.shape[-1] // 3)
      parts = np.moveaxis(parted.pop(name).reshape(*value.shape[:-1], 3, heads, -1), -3, 0)
      for part, array in zip(_PARTS, parts, strict=True):
        parted[f"{module}{attention}/{part}/{leaf}"] = np.ascontiguousarray(array)
    elif name.endswith(f"{attention}/out/kernel"):
      parted[name] = value.reshape(num_heads(len(value)), -1, value.shape[-1])
  return parted
