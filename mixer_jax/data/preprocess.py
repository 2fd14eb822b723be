"""Operations in sequence, from a text: "decode|inception_crop|flip", or "segments|decode|inception_crop|flip" of clips."""

import ast
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from mixer_jax import configuration
from mixer_jax.data import clips, ops
from mixer_jax.errors import BadRecordError, InputError

OPS = {**clips.SAMPLINGS, **ops.OPS, **clips.VIEWS}


class Preprocess:
  """Operations in sequence, from a text such as "decode|resize_small(256)|central_crop"; picklable.

  Attributes:
    input_shape: of the result.
    views: how many views of an example the text has; `__call__` makes one of them.
    middle: the view in the middle, in time and in space.
    decode: encoded image -> the pixels of which `__call__` makes the same; None if it needs more than these.
    draws_frames: whether the frames of a clip are drawn at random.
  """

  def __init__(self, text: str, input_shape: tuple[int, ...], where: str = "ops"):
    """Raises InputError: unknown operation, wrong arguments, or an operation in the wrong place.

    Args:
      text: the operations.
      input_shape: of the result, (height, width, channels); of a clip, (frames, height, width, channels).
      where: the text's key, for messages.
    """
    self._arguments = (text, input_shape, where)
    parts = calls(text, where)
    _check_order([name for name, _ in parts], text, where, clip=len(input_shape) == 4)
    followed = [name for name, _ in parts[1:]] + [""]
    bound = [
      _bind(_operation(name, kwargs, after), kwargs, input_shape, f"{where}: {name}")
      for (name, kwargs), after in zip(parts, followed, strict=True)
    ]
    self.input_shape = input_shape
    self._sample, self._ops = (bound[0], bound[1:]) if len(input_shape) == 4 else (None, bound)
    times = parts[0][1].get("views")
    self.draws_frames = self._sample is not None and times is None
    self._crops = clips.CROPS if "three_crops" in dict(parts) else 1
    self.decode = None
    if len(input_shape) == 3 and parts[0][1].get("mode") != "fast":
      whole = _bind(ops.decode, parts[0][1], input_shape, f"{where}: decode")
      self.decode = lambda encoded: whole({"image": encoded}, np.random.default_rng(0))["image"]
    self.views = (times or 1) * self._crops
    self.middle = (times or 1) // 2 * self._crops + self._crops // 2

  def __call__(self, example: ops.Example, rng: np.random.Generator, view: int = 0) -> ops.Example:
    """Returns the example with its pixels, {"image": uint8 of `input_shape`, …}.

    Args:
      example: {"image": the encoded image, the encoded frames of a video, or an image's pixels, uint8 (h, w, c), which
        are not decoded, …}.
      rng: what is random is drawn from it, of a clip once for all of its frames.
      view: which of the views; those of a place in time follow one another.

    Raises:
      BadRecordError: undecodable bytes.
      InputError: a result of another shape than input_shape, a video without a sampling, or an image with one.
    """
    text, _, where = self._arguments
    example = example | {"view": divmod(view, self._crops)}
    try:
      _check_kind(example["image"], clip=self._sample is not None)
      return self._image(example, rng) if self._sample is None else self._clip(example, rng)
    except InputError as e:
      raise InputError(f"{where} {text!r}: {e}") from e

  def _clip(self, example: ops.Example, rng: np.random.Generator) -> ops.Example:
    """Returns the clip; each frame is processed by a generator in the same state, so that all draws are the same."""
    assert self._sample is not None
    example = self._sample(example, rng)
    state, frames = rng.bit_generator.state, example["image"]
    clip, done = np.empty(self.input_shape, np.uint8), example
    for i, encoded in enumerate(frames):
      rng.bit_generator.state, before = state, done.get("drawn")
      try:
        done = self._image(example | {"image": encoded}, rng)
      except BadRecordError as e:
        raise BadRecordError(f"frame {example['drawn'][0][1][i]}: {e}") from e
      if i and done.get("drawn") != before:
        raise BadRecordError("its frames have several sizes")
      clip[i] = done["image"]
    return done | {"image": clip}

  def _image(self, example: ops.Example, rng: np.random.Generator) -> ops.Example:
    for op in self._ops[isinstance(example["image"], np.ndarray) :]:
      example = op(example, rng)
    height, width, _ = shape = self.input_shape[-3:]
    if example["image"].shape != shape:
      raise InputError(
        f"leaves {example['image'].shape[:2]} instead of {height, width} pixels; end with a "
        f"crop or resize({height}{f', {width}' * (width != height)})"
      )
    return example

  def check_views(self, *, several: bool, drawn: bool) -> None:
    """Raises InputError if the text has several views, or draws frames at random, where that is not wanted."""
    text, _, where = self._arguments
    if self.views > 1 and not several:
      raise InputError(
        f"{where} {text!r} makes {self.views} views of an example, which only a classification evaluator averages; leave "
        "out three_crops, and more views than one."
      )
    if self.draws_frames and not drawn:
      raise InputError(
        f"{where} {text!r} draws frames at random, which is for training; to evaluate, give views=1 for the frames in "
        "the middle, or more views."
      )

  def __reduce__(self) -> tuple[Any, ...]:
    return Preprocess, self._arguments  # closures do not pickle, the text does


def calls(text: str, where: str) -> list[tuple[str, dict[str, Any]]]:
  """Returns the name and the arguments that are given of each operation; raises InputError if it is none."""
  return [_parse_call(part.strip(), where) for part in text.split("|")]


def _check_order(names: list[str], text: str, where: str, *, clip: bool) -> None:
  """Raises InputError unless `decode` is first, of clips after a sampling, and each of these is there once."""
  known = " or ".join(clips.SAMPLINGS)
  if clip and names[0] not in clips.SAMPLINGS:
    raise InputError(
      f"{where} of clips must start with a sampling of frames, {known}, such as 'segments(views=1)|': {text!r}"
    )
  rest = names[1:] if clip else names
  if sampling := next((name for name in rest if name in clips.SAMPLINGS), ""):
    raise InputError(
      f"{where} has {sampling!r} twice or not first: {text!r}"
      if clip
      else f"{where} has {sampling!r}, which is for clips, and the model takes images (frames is not set): {text!r}"
    )
  if rest[:1] != ["decode"]:
    raise InputError(f"{where} must {'go on' if clip else 'start'} with 'decode': {text!r}")
  if rest.count("decode") > 1:
    raise InputError(f"{where} has 'decode' twice: {text!r}")


def _check_kind(encoded: Any, *, clip: bool) -> None:
  """Raises InputError if an example is a video and not an image, or the other way round."""
  if clip == isinstance(encoded, bytes | np.ndarray):
    raise InputError(
      "the data are images, and the model takes clips; give videos, or a model of images (frames=None)"
      if clip
      else "the data are videos, and the model takes images; set frames, and a model of clips"
    )


def _operation(name: str, kwargs: dict[str, Any], after: str) -> Callable[..., ops.Op]:
  """Returns an operation's function, which for `decode` depends on the operation that follows it."""
  parts = name == "decode" and kwargs.get("mode", "exact") in ops.CROPS.get(after, ())
  return ops.decode_parts if parts else OPS[name]


def _parse_call(text: str, where: str) -> tuple[str, dict[str, Any]]:
  """Returns (name, keyword arguments) of "name" or "name(1, b=2)"; evaluates literals only."""
  try:
    node = ast.parse(text, mode="eval").body
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name):
      raise ValueError(text)
    name = call.func.id
    args = [ast.literal_eval(a) for a in call.args]
    kwargs = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
  except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as e:
    raise InputError(
      f"{where}: {text[:200]!r} is not an operation such as resize_small(256)."
    ) from e
  if name not in OPS:
    raise InputError(f"{where}: unknown operation {name!r}.{configuration.nearest(name, OPS)}")
  names = [p for p in inspect.signature(OPS[name]).parameters if p not in _GIVEN]
  if len(args) > len(names):
    raise InputError(f"{where}: {name} takes at most {len(names)} arguments: {', '.join(names)}")
  placed = dict(zip(names, args, strict=False))
  if twice := sorted(placed.keys() & kwargs):
    raise InputError(f"{where}: {name} is given {twice[0]} twice.")
  return name, placed | kwargs


# What the run gives to operations that have these parameters.
_GIVEN = ("image_size", "image_channels", "frames")


def _bind(
  op: Callable[..., ops.Op], kwargs: dict[str, Any], input_shape: tuple[int, ...], where: str
) -> ops.Op:
  given = dict(zip(_GIVEN, (input_shape[-3:-1], input_shape[-1], input_shape[0]), strict=True))
  taken = inspect.signature(op).parameters
  try:
    return configuration.call(op, kwargs, where, **{k: v for k, v in given.items() if k in taken})
  except InputError as e:  # of the operation itself, which does not know its place
    raise InputError(str(e) if str(e).startswith(where) else f"{where}: {e}") from e
