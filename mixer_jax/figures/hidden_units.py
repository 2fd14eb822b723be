"""Pictures of a Mixer's weights (the paper's figures 5 to 7): what token mixing and the stem look for.

A hidden unit of token mixing has one weight per token. For square images they are a picture of √S×√S tokens. Units are
ordered from low to high frequency. Each is paired with the unit nearest to its negative: a unit of opposite phase.
Axis letters: s tokens, d hidden units, p pixels of a patch's side, c channels.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mixer_jax import figures
from mixer_jax.errors import InputError

PAIRED_BLOCKS, _MOST_PAIRS = 3, 64  # of figure 5


def hidden_units(
  params: dict[str, Any], block: int, image_size: tuple[int, int] = (1, 1)
) -> Float[np.ndarray, "d rows columns"]:
  """Returns the incoming weights of a block's token-mixing units as pictures of the grid of tokens.

  Args:
    params: of a Mixer.
    block: from 0.
    image_size: (height, width) that the model is for. Only the ratio matters.

  Raises:
    InputError: these are not a Mixer's parameters, there is no such block, or the tokens form no such grid.
  """
  try:
    kernel = params[block_name(block)]["token_mixing"]["Dense_0"]["kernel"]
  except (KeyError, TypeError) as e:
    raise InputError(
      f"there is no {block_name(block)} with token mixing shared by all channels among "
      f"{', '.join(sorted(params)[:4])}, …: only a Mixer's hidden units can be drawn."
    ) from e
  kernel = np.asarray(kernel, np.float32)
  (height, width), tokens = image_size, kernel.shape[0]
  rows, columns = math.isqrt(tokens * height // width), math.isqrt(tokens * width // height)
  if kernel.ndim != 2 or rows * columns != tokens:
    raise InputError(f"token mixing of shape {kernel.shape} is not of a grid of {height}:{width}.")
  return kernel.T.reshape(-1, rows, columns)


def first_blocks(
  params: dict[str, Any], most: int, image_size: tuple[int, int] = (1, 1)
) -> list[Float[np.ndarray, "d rows columns"]]:
  """Returns the hidden units of a Mixer's first blocks; raises InputError for another model."""
  num_blocks = max(1, sum(name.startswith("MixerBlock_") for name in params))
  return [hidden_units(params, i, image_size) for i in range(min(most, num_blocks))]


def embedding_filters(params: dict[str, Any]) -> Float[np.ndarray, "c p p 3"]:
  """Returns the stem's filters as RGB pictures; raises InputError if there is no stem of patches."""
  try:
    kernel = np.asarray(params["stem"]["kernel"], np.float32)
    patch, other, colours, _ = kernel.shape
    if patch != other or colours not in (1, 3):
      raise ValueError(kernel.shape)
  except (KeyError, TypeError, ValueError) as e:
    raise InputError(
      f"there is no stem of RGB or grey patches among {', '.join(sorted(params)[:4])}, …: only a Mixer's "
      "embedding can be drawn."
    ) from e
  return np.broadcast_to(kernel, (patch, patch, 3, kernel.shape[3])).transpose(3, 0, 1, 2)


def frequencies(pictures: Float[np.ndarray, "n h w ..."]) -> Float[np.ndarray, " n"]:
  """Returns each picture's mean radius in the spectrum, weighted by power, in cycles a pixel.

  The mean of a picture counts as frequency 0. The power of its colours is summed.
  """
  height, width = pictures.shape[1:3]
  power = np.abs(np.fft.fft2(pictures, axes=(1, 2))) ** 2
  power = power.reshape(len(pictures), height, width, -1).sum(-1)
  radius = np.hypot(*np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij"))
  return (power * radius).sum((1, 2)) / np.maximum(power.sum((1, 2)), 1e-30)


def opposite_pairs(pictures: Float[np.ndarray, "n h w"]) -> Int[np.ndarray, "m 2"]:
  """Returns pairs of pictures, each with the one nearest to its negative, from low to high frequency.

  The picture of the lowest frequency takes, of the pictures that are left, the one whose cosine with it is the most
  negative. So every picture is in one pair, except the last one of an odd number.
  """
  cosine = _cosines(pictures)
  left = list(np.argsort(frequencies(pictures), kind="stable"))
  pairs = []
  while len(left) > 1:
    first = left.pop(0)
    second = left.pop(int(np.argmin(cosine[first, left])))
    pairs.append((first, second))
  return np.array(pairs, int).reshape(-1, 2)


def _cosines(pictures: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "n n"]:
  flat = pictures.reshape(len(pictures), -1)
  flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-30)
  return flat @ flat.T


def mean_cosine(units: Float[np.ndarray, "d rows columns"]) -> float:
  """Returns the mean cosine of the `opposite_pairs`; −1 if all are exactly opposite."""
  return float(np.mean(_cosines(units)[tuple(opposite_pairs(units).T)]))


def grey_mosaic(
  pictures: Float[np.ndarray, "n h w"], columns: int, *, gap_every: int = 0
) -> Float[np.ndarray, "y x 3"]:
  """Returns the pictures in reading order, each on its own scale: white is 0, red positive, blue negative.

  After every `gap_every` pictures of a line the gap is wider; with 0 all gaps are equal.
  """
  scale = np.maximum(np.abs(pictures).max((1, 2), keepdims=True), 1e-30)
  return _mosaic(_colours(pictures / scale), columns, gap_every)


def _colours(values: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*s 3"]:
  """Returns colours of −1…1: blue, white, red."""
  values = values[..., None]
  warm, cool = np.array([0.70, 0.09, 0.17]), np.array([0.13, 0.40, 0.67])
  return 1 - np.maximum(values, 0) * (1 - warm) - np.maximum(-values, 0) * (1 - cool)


def _mosaic(
  pictures: Float[np.ndarray, "n h w 3"], columns: int, gap_every: int = 0
) -> Float[np.ndarray, "y x 3"]:
  count, height, width, _ = pictures.shape
  lines = -(-count // columns)
  gaps = [(c // gap_every if gap_every else 0) * 2 for c in range(columns)]
  canvas = np.ones((lines * (height + 1) + 1, columns * (width + 1) + 1 + gaps[-1], 3))
  for i, picture in enumerate(pictures):
    line, column = divmod(i, columns)
    y, x = line * (height + 1) + 1, column * (width + 1) + 1 + gaps[column]
    canvas[y : y + height, x : x + width] = picture
  return canvas


def paired_mosaic(units: Float[np.ndarray, "d rows columns"]) -> Float[np.ndarray, "y x 3"]:
  """Returns the picture of a block's units in pairs, low frequencies first."""
  pairs = opposite_pairs(units)[:_MOST_PAIRS]
  columns = 2 * max(1, round(math.sqrt(len(pairs) / 2)))
  return grey_mosaic(units[pairs.ravel()], columns, gap_every=2)


def paired_mosaics(
  params: dict[str, Any], image_size: tuple[int, int] = (1, 1)
) -> list[Float[np.ndarray, "y x 3"]]:
  """Returns `paired_mosaic` of the blocks that figure 5 shows."""
  return [paired_mosaic(units) for units in first_blocks(params, PAIRED_BLOCKS, image_size)]


def ordered_mosaic(units: Float[np.ndarray, "d rows columns"]) -> Float[np.ndarray, "y x 3"]:
  """Returns the picture of all units of a block, low frequencies first."""
  order = np.argsort(frequencies(units), kind="stable")
  return grey_mosaic(units[order], math.ceil(math.sqrt(len(units))))


def filter_mosaic(params: dict[str, Any]) -> Float[np.ndarray, "y x 3"]:
  """Returns the picture of all filters of the embedding, low frequencies first.

  They are RGB, each with grey for 0 and its own scale.
  """
  filters = embedding_filters(params)
  filters = filters[np.argsort(frequencies(filters), kind="stable")]
  scale = np.maximum(np.abs(filters).max((1, 2, 3), keepdims=True), 1e-30)
  return _mosaic(0.5 + 0.5 * filters / scale, math.ceil(math.sqrt(len(filters))))


def draw_pairs(params: dict[str, Any], image_size: tuple[int, int] = (1, 1)) -> Any:
  """Returns a figure of the paired hidden units of the blocks that figure 5 shows, under their parameters' names."""
  mosaics = [(block_name(i), mosaic) for i, mosaic in enumerate(paired_mosaics(params, image_size))]
  return draw_mosaics(mosaics, "Hidden units of token mixing in pairs, low frequencies first")


def draw_filters(params: Mapping[str, dict[str, Any]]) -> Any:
  """Returns a figure of the filters of the embedding of several Mixers; their names are its titles."""
  mosaics = [(name, filter_mosaic(tree)) for name, tree in params.items()]
  title = "Filters of the embedding, low frequencies first\ngrey is 0, each on its own scale"
  return draw_mosaics(mosaics, title, signed=False)


def block_name(block: int) -> str:
  """Returns the name of a block's parameters; blocks count from 0."""
  return f"MixerBlock_{block}"


def draw_mosaics(mosaics: list[tuple[str, np.ndarray]], title: str, *, signed: bool = True) -> Any:
  """Returns a figure of titled mosaics beside each other, with the scale of `signed` ones (`grey_mosaic`)."""
  shares = [m.shape[1] / m.shape[0] for _, m in mosaics]
  figure = figures.empty(max(6.0, 5 * sum(shares)), 5.8)
  figure.suptitle(title)
  every = figure.subplots(1, len(mosaics), squeeze=False, width_ratios=shares)[0]
  for one, (name, mosaic) in zip(every, mosaics, strict=True):
    one.imshow(mosaic)
    one.set_title(figures.label(name), fontsize=10)
    one.set_axis_off()
  if signed:
    _draw_scale(figure, every)
  return figure


def _draw_scale(figure: Any, axes: Any) -> None:
  from matplotlib.cm import ScalarMappable
  from matplotlib.colors import ListedColormap, Normalize

  colours = ListedColormap(_colours(np.linspace(-1, 1, 255)))
  bar = figure.colorbar(
    ScalarMappable(Normalize(-1, 1), colours), ax=axes, location="bottom", shrink=0.4, aspect=40
  )
  bar.set_ticks([-1, 0, 1])
  bar.set_label("weight, divided by the largest magnitude in its unit")
