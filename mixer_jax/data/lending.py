"""Arrays from a loader worker to its parent, through shared memory that is used again and again.

New memory costs more than the copy: of the 9.6 MB of 64 images, 7 ms for its pages and 0.3 ms for copying. So a worker keeps
its segments, and makes its batches in them. The first byte of a segment says whether it is lent; the worker sets it, and the
parent, which has copied the array, clears it.
"""

import contextlib
import dataclasses
import math
import secrets
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import resource_tracker, shared_memory
from typing import Any

import numpy as np

from mixer_jax.data import segments
from mixer_jax.data.pipeline import EvalBatches, TrainBatches

_HEADER_BYTES = 64  # a cache line, so that arrays are aligned
_MIN_BYTES = 1 << 12  # smaller arrays go through the pipe


@dataclasses.dataclass(frozen=True)
class Lent:
  """Where an array lies."""

  segment: str
  shape: tuple[int, ...]
  dtype: np.dtype[Any]

  def view(self, segment: shared_memory.SharedMemory) -> np.ndarray:
    return np.ndarray(self.shape, self.dtype, segment.buf, _HEADER_BYTES)


def _flag(segment: shared_memory.SharedMemory) -> memoryview:
  assert segment.buf is not None  # it is not closed
  return segment.buf[:1]


class Lender:
  """A worker's side: `lender[i]` is `batches[i]` with its large arrays lent. Each process that it is pickled to has its own.

  Args:
    batches: what is loaded.
    name: what the names of its segments begin with.
  """

  def __init__(self, batches: TrainBatches | EvalBatches, name: str):
    self._batches, self._name = batches, name
    self._segments: list[shared_memory.SharedMemory] = []
    self._lock = threading.Lock()

  def __reduce__(self) -> tuple[Any, ...]:
    return Lender, (self._batches, self._name)

  def __len__(self) -> int:
    return len(self._batches)

  def __getitem__(self, i: int) -> dict[str, np.ndarray | Lent]:
    lent: dict[int, Lent] = {}  # by the array's id

    def empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
      num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
      if num_bytes < _MIN_BYTES:
        return np.empty(shape, dtype)
      segment = self._take(num_bytes + _HEADER_BYTES)
      new = Lent(segment.name, tuple(shape), np.dtype(dtype))
      array = new.view(segment)
      lent[id(array)] = new
      return array

    return {k: lent.get(id(v), v) for k, v in self._batches.load(i, empty).items()}

  def _take(self, size: int) -> shared_memory.SharedMemory:
    """Returns a segment of this process that is free, or a new one; it counts as lent."""
    with self._lock:
      free = (s for s in self._segments if s.size >= size and not _flag(s)[0])
      # The smallest, so that labels leave those of images alone.
      if (segment := min(free, key=lambda s: s.size, default=None)) is None:
        name = f"{self._name}-{secrets.token_hex(4)}"
        segment = shared_memory.SharedMemory(name, create=True, size=size)
        self._segments.append(segment)
      _flag(segment)[0] = 1
      return segment


class Borrower:
  """The parent's side."""

  def __init__(self) -> None:
    self.name = f"{segments.owned()}-{secrets.token_hex(4)}"
    self._segments: dict[str, shared_memory.SharedMemory] = {}

  def copied(self, batch: Mapping[str, np.ndarray | Lent]) -> dict[str, np.ndarray]:
    """Returns a batch that is the caller's, and gives back what was lent: JAX may alias host memory for as long as it likes."""
    return {k: self._copied(v) if isinstance(v, Lent) else v for k, v in batch.items()}

  def _copied(self, lent: Lent) -> np.ndarray:
    segment = self._segments.get(lent.segment)
    if segment is None:
      segment = self._segments[lent.segment] = shared_memory.SharedMemory(lent.segment)
    array = lent.view(segment).copy()
    _flag(segment)[0] = 0
    return array

  def close(self) -> None:
    """Removes the segments of workers that have ended, those too that they never lent."""
    for segment in self._segments.values():
      segment.close()
      with contextlib.suppress(FileNotFoundError):
        segment.unlink()
    self._segments = {}
    for path in segments.PLACE.glob(f"{self.name}-*"):
      path.unlink(missing_ok=True)
      # First registered, which a worker that was killed may not have come to.
      resource_tracker.register(f"/{path.name}", "shared_memory")
      resource_tracker.unregister(f"/{path.name}", "shared_memory")
