"""Operations in sequence, from a text: "decode|inception_crop|flip"."""

import ast
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from mixer_jax import configuration
from mixer_jax.data import ops
from mixer_jax.errors import InputError


class Preprocess:
  """Operations in sequence, from a text such as "decode|resize_small(256)|central_crop"; picklable."""

  def __init__(self, text: str, input_shape: tuple[int, int, int], where: str = "ops"):
    """Raises InputError: unknown operation, wrong arguments, or "decode" not first.

    Args:
      text: the operations.
      input_shape: of the result, (height, width, channels).
      where: the text's key, for messages.
    """
    self._arguments = (text, input_shape, where)
    parts = calls(text, where)
    if parts[0][0] != "decode":
      raise InputError(f"{where} must start with 'decode': {text!r}")
    if [name for name, _ in parts].count("decode") > 1:
      raise InputError(f"{where} has 'decode' twice: {text!r}")
    followed = [name for name, _ in parts[1:]] + [""]
    self._ops = [
      _bind(_operation(name, kwargs, after), kwargs, input_shape, f"{where}: {name}")
      for (name, kwargs), after in zip(parts, followed, strict=True)
    ]
    self.input_shape = input_shape

  def __call__(self, example: ops.Example, rng: np.random.Generator) -> ops.Example:
    """Returns the processed example; an image that comes as pixels, uint8 (h, w, c), is not decoded.

    Raises BadRecordError: undecodable bytes; InputError: a result of another shape than input_shape.
    """
    text, _, where = self._arguments
    try:
      for op in self._ops[isinstance(example["image"], np.ndarray) :]:
        example = op(example, rng)
    except InputError as e:
      raise InputError(f"{where} {text!r}: {e}") from e
    if example["image"].shape != self.input_shape:
      height, width, _ = self.input_shape
      raise InputError(
        f"{where} {text!r} leaves {example['image'].shape[:2]} instead of {height, width} pixels; end with a "
        f"crop or resize({height}{f', {width}' * (width != height)})"
      )
    return example

  def __reduce__(self) -> tuple[Any, ...]:
    return Preprocess, self._arguments  # closures do not pickle, the text does


def calls(text: str, where: str) -> list[tuple[str, dict[str, Any]]]:
  """Returns the name and the arguments that are given of each operation; raises InputError if it is none."""
  return [_parse_call(part.strip(), where) for part in text.split("|")]


def _operation(name: str, kwargs: dict[str, Any], after: str) -> Callable[..., ops.Op]:
  """Returns an operation's function, which for `decode` depends on the operation that follows it."""
  parts = name == "decode" and kwargs.get("mode", "exact") in ops.CROPS.get(after, ())
  return ops.decode_parts if parts else ops.OPS[name]


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
  if name not in ops.OPS:
    raise InputError(f"{where}: unknown operation {name!r}.{configuration.nearest(name, ops.OPS)}")
  names = [p for p in inspect.signature(ops.OPS[name]).parameters if p not in _GIVEN]
  if len(args) > len(names):
    raise InputError(f"{where}: {name} takes at most {len(names)} arguments: {', '.join(names)}")
  placed = dict(zip(names, args, strict=False))
  if twice := sorted(placed.keys() & kwargs):
    raise InputError(f"{where}: {name} is given {twice[0]} twice.")
  return name, placed | kwargs


# What the run gives to operations that have these parameters.
_GIVEN = ("image_size", "image_channels")


def _bind(
  op: Callable[..., ops.Op], kwargs: dict[str, Any], input_shape: tuple[int, int, int], where: str
) -> ops.Op:
  given = dict(zip(_GIVEN, (input_shape[:2], input_shape[2]), strict=True))
  taken = inspect.signature(op).parameters
  try:
    return configuration.call(op, kwargs, where, **{k: v for k, v in given.items() if k in taken})
  except InputError as e:  # of the operation itself, which does not know its place
    raise InputError(str(e) if str(e).startswith(where) else f"{where}: {e}") from e
