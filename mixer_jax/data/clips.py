"""Which frames of a video a clip has, and which view of it: the operations that clips alone have.

A sampling stands before `decode` in the text of operations. It takes {"image": the video's encoded frames, "view"},
and leaves as many frames as the model takes. Without `views` it draws them at random, for training. With `views=V` it
takes those of view example["view"][0] of V, evenly spaced, for evaluation; `views=1` is the middle.
"""

from collections.abc import Callable
from typing import Annotated

import numpy as np

from mixer_jax import configuration
from mixer_jax.data import ops
from mixer_jax.errors import BadRecordError

Views = Annotated[int, configuration.Range(1, 1000)] | None
Stride = Annotated[int, configuration.Range(1, 2**16)]
CROPS = 3  # views of three_crops


def segments(frames: int, views: Views = None) -> ops.Op:
  """One frame of each of `frames` equal parts of the video (TSN, arXiv:1608.00859).

  A video of n frames has part i from frame ⌊i·n/frames⌋ on. A video that is too short gives frames twice or more,
  evenly.

  Args:
    frames: of the clip.
    views: see above. View v takes the frame at (v + ½) / views of each part.
  """

  def indices(count: int, places: np.ndarray) -> np.ndarray:
    ends = np.arange(frames + 1) * count // frames
    lengths = np.maximum(np.diff(ends), 1)
    return ends[:-1] + (places * lengths).astype(np.int64)

  return _sampling("segments", indices, frames, views)


def window(frames: int, stride: Stride, views: Views = None) -> ops.Op:
  """`frames` frames, each `stride` after the one before (SlowFast, arXiv:1812.03982).

  A video that is too short is repeated from its start: its last frame is followed by its first one.

  Args:
    frames: of the clip.
    stride: in frames of the stored video.
    views: see above. View v begins at (v + ½) / views of the places where the window fits.
  """
  offsets = np.arange(frames) * stride

  def indices(count: int, places: np.ndarray) -> np.ndarray:
    starts = max(count - int(offsets[-1]), 1)
    return (int(places[0] * starts) + offsets) % count

  return _sampling("window", indices, 1, views)


def _sampling(
  name: str, indices: Callable[[int, np.ndarray], np.ndarray], draws: int, views: int | None
) -> ops.Op:
  """Returns the operation.

  Args:
    name: its name.
    indices: (frames of the video, `draws` places in 0…1) -> the frames to take.
    draws: how many places it draws.
    views: see above.
  """

  def op(example: ops.Example, rng: np.random.Generator) -> ops.Example:
    encoded = example["image"]
    if not len(encoded):
      raise BadRecordError("a video without frames")
    places = rng.random(draws) if views is None else (example["view"][0] + 0.5) / views
    taken = indices(len(encoded), np.broadcast_to(places, draws))
    drawn = tuple(int(i) for i in taken)
    return ops.drew(example, name, drawn) | {"image": [encoded[i] for i in drawn]}

  return op


def three_crops(image_size: ops.Sides) -> ops.Op:
  """View example["view"][1] of three parts of `image_size`: at the start, in the middle, at the end of the longer side.

  The other side is cut in the middle.
  """

  def op(example: ops.Example, rng: np.random.Generator) -> ops.Example:
    del rng
    height, width = ops.covering(example["image"], image_size)
    (h, w), view = image_size, example["view"][1]
    free = np.array([height - h, width - w])
    start = free // 2
    longer = int(width > height)
    start[longer] = free[longer] * view // (CROPS - 1)
    y, x = (int(n) for n in start)
    return example | {"image": example["image"][y : y + h, x : x + w]}

  return op


SAMPLINGS: dict[str, Callable[..., ops.Op]] = {f.__name__: f for f in (segments, window)}
VIEWS: dict[str, Callable[..., ops.Op]] = {"three_crops": three_crops}
