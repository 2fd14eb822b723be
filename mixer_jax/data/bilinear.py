"""The bilinear resize as machine code: import this only where a photo is resized.

Importing Numba and compiling cost a process a second and 130 MB, once; NumPy takes three times as long
for each photo, and OpenCV rounds otherwise. Strict IEEE arithmetic is Numba's default: nothing is
contracted or reordered.
"""

from typing import NamedTuple

import numba
import numpy as np
from jaxtyping import Float, UInt8, UInt32


class Taps(NamedTuple):
  """For each new value along one axis its two source values and the weight of the second.

  Unsigned, since compiled code asks of every signed index whether it counts from the end.
  """

  first: UInt32[np.ndarray, "n"]
  second: UInt32[np.ndarray, "n"]
  weight: Float[np.ndarray, "n"]


@numba.njit(nogil=True, error_model="numpy")
def resize_rows(
  rows: UInt8[np.ndarray, "h wc"], y: Taps, x: Taps, resized: UInt8[np.ndarray, "new_h new_wc"]
) -> None:
  """Writes the resized rows: across, then down, each value rounded to float32, the last truncated.

  A new row lies between two source rows, resized across; it shares them with its neighbours.
  """
  across = np.empty((2, len(x.first)), np.float32)
  upper, lower = 0, 1  # which of the two buffers is which
  in_upper = in_lower = -1  # source rows that they hold
  for i in range(len(y.first)):
    if in_upper != y.first[i] and in_lower == y.first[i]:
      upper, lower = lower, upper
      in_upper, in_lower = in_lower, in_upper
    if in_upper != y.first[i]:
      in_upper = np.int64(y.first[i])
      _resize_across(rows[in_upper], x, across[upper])
    if in_lower != y.second[i]:
      in_lower = np.int64(y.second[i])
      _resize_across(rows[in_lower], x, across[lower])
    top, bottom, weight, new = across[upper], across[lower], y.weight[i], resized[i]
    for j in range(len(new)):
      new[j] = np.int32(top[j] + (bottom[j] - top[j]) * weight)


@numba.njit(nogil=True, error_model="numpy")
def _resize_across(
  row: UInt8[np.ndarray, "wc"], x: Taps, across: Float[np.ndarray, "new_wc"]
) -> None:
  first, second, weight = x.first, x.second, x.weight
  for j in range(len(first)):
    left = np.float32(row[first[j]])
    across[j] = left + (np.float32(row[second[j]]) - left) * weight[j]
