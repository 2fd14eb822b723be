"""What happens to a batch on the device before the model sees it: normalise, erase, mix, targets.

Everything is a pure function of the key and the global batch. It runs inside the jitted step before the
batch is divided, so it depends neither on the number of devices nor on that of accumulated parts. Boxes and shares are
the same for all frames of a clip.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from mixer_jax import labels
from mixer_jax.training.normalization import Normalize

Augment = Callable[[Array, Array, Array], tuple[Array, Array]]
Corners = tuple[Any, Any, Any, Any]
"""First row, the row after the last, first column, the column after the last: integers, of shape ()."""

PARTNERS: dict[str, Callable[[Array], Array]] = {
  # big_vision rolls inside each device's shard, so that its pairs depend on the number of devices.
  "roll": lambda x: jnp.roll(x, 1, axis=0),
  "flip": lambda x: jnp.flip(x, axis=0),
}
"""Name of a pairing -> (rows of the global batch -> the row that each is mixed with)."""

# Mixup draws from the step's key itself, everything else from this child of the key. Children 0 and 1 are
# taken: they are the two halves into which jax.random.beta splits its key.
_CHILD = 2

_ATTEMPTS = 10
_AREA = (0.02, 1 / 3)
_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))


def make_augment(
  *,
  normalize: Normalize,
  num_classes: int,
  erasing_p: float,
  mixup_p: float,
  cutmix_p: float,
  switch_p: float,
  mix_p: float,
  pairing: str,
  cutmix_box: str,
  label_smoothing: float,
) -> Augment:
  """Returns augment(key, image, label) -> (values, targets), of the global batch.

  The order is DeiT's: normalise, erase, mix. timm's own script mixes first (data/mixup.py: FastCollateMixup).
  Targets are smoothed before they are mixed.

  Args:
    normalize: of `make_normalize`.
    num_classes, label_smoothing: of `labels.targets`.
    erasing_p: probability that a box of an image is erased.
    mixup_p, cutmix_p, switch_p, mix_p, pairing, cutmix_box: of `draw_shares`.
  """
  draw = functools.partial(
    draw_shares, mixup_p=mixup_p, cutmix_p=cutmix_p, switch_p=switch_p, mix_p=mix_p, pairing=pairing,
    cutmix_box=cutmix_box,
  )  # fmt: skip
  partner = PARTNERS[pairing]

  def augment(
    key: Array, image: UInt8[Array, "b *t h w c"], label: Int[Array, "b *m"]
  ) -> tuple[Float[Array, "b *t h w c"], Float[Array, "b k"]]:
    target = labels.targets(label, num_classes, label_smoothing)
    erase_key, mix_key = jax.random.split(jax.random.fold_in(key, _CHILD))
    values, late = image, normalize
    if erasing_p:
      values, late = erase(erase_key, normalize(image), erasing_p), lambda x: x
    if not (mixup_p or cutmix_p):
      return late(values), target
    own, pixels = draw(key, mix_key, *image.shape[-3:-1])
    # Paired before they are normalised, images take a quarter of the memory.
    values = pixels * late(values) + (1.0 - pixels) * late(partner(values))
    return values, own * target + (1.0 - own) * partner(target)

  return augment


def draw_shares(
  mixup_key: Array,
  key: Array,
  height: int,
  width: int,
  *,
  mixup_p: float,
  cutmix_p: float,
  switch_p: float,
  mix_p: float,
  pairing: str,
  cutmix_box: str,
) -> tuple[Float[Array, ""], Float[Array, "*hw1"]]:
  """Draws how much the images of a batch keep of themselves; the rest is their partners'.

  All images of a batch keep the same (timm, data/mixup.py: mode "batch").

  Args:
    mixup_key: for mixup's share.
    key: for everything else.
    height, width: of the images.
    mixup_p: of Beta(p, p); 0: no mixup.
    cutmix_p: of Beta(p, p); 0: no CutMix. One of both must be on.
    switch_p: probability of CutMix if both are on.
    mix_p: probability that the batch is mixed.
    pairing: of PARTNERS; with "roll", mixup's share is at least 1/2 (big_vision, utils.py).
    cutmix_box: of `cutmix_corners`.

  Returns:
    The share of the targets, and that of the pixels: the same number, or 0 in CutMix's box and 1 around it,
    (h, w, 1).
  """
  switch_key, mix_key, cutmix_key = jax.random.split(key, 3)
  own = pixels = jnp.ones(())
  if mixup_p:
    a = jax.random.beta(mixup_key, mixup_p, mixup_p)
    own = pixels = jnp.maximum(a, 1.0 - a) if pairing == "roll" else a
  if cutmix_p:
    cut = jax.random.bernoulli(switch_key, switch_p if mixup_p else 1.0)
    of_target, of_pixels = _draw_cutmix(cutmix_key, cutmix_p, height, width, cutmix_box)
    own, pixels = jnp.where(cut, of_target, own), jnp.where(cut, of_pixels, pixels)
  if mix_p < 1:
    mixed = jax.random.bernoulli(mix_key, mix_p)
    own, pixels = jnp.where(mixed, own, 1.0), jnp.where(mixed, pixels, 1.0)
  return own, pixels


def _draw_cutmix(
  key: Array, p: float, height: int, width: int, rounding: str
) -> tuple[Float[Array, ""], Float[Array, "h w 1"]]:
  """Returns the shares of target and pixels that a random box of CutMix leaves."""
  share_key, y_key, x_key = jax.random.split(key, 3)
  box = cutmix_corners(
    jax.random.beta(share_key, p, p),
    jax.random.randint(y_key, (), 0, height),
    jax.random.randint(x_key, (), 0, width),
    height, width, rounding,
  )  # fmt: skip
  return outside(box, height, width)


def cutmix_corners(
  a: Float[Array, ""], y: Int[Array, ""], x: Int[Array, ""], height: int, width: int, rounding: str
) -> Corners:
  """Returns the box around (y, x) that has 1 − a of the image's area, less what lies outside of the image.

  Its sides are rounded down. Then an odd side loses a pixel in timm 0.4.12, the version of the papers, and
  keeps it in timm 1.0.31 (timm, data/mixup.py: rand_bbox).
  """
  root = jnp.sqrt(1.0 - a)
  corners = []
  for centre, size in ((y, height), (x, width)):
    side = jnp.floor(size * root).astype(jnp.int32)
    before = side // 2
    after = before if rounding == "timm_0.4.12" else side - before
    corners += [jnp.clip(centre - before, 0, size), jnp.clip(centre + after, 0, size)]
  return tuple(corners)


def outside(
  box: Corners, height: int, width: int
) -> tuple[Float[Array, ""], Float[Array, "h w 1"]]:
  """Returns the part of the image's area outside the box, and 1 at its pixels and 0 at those of the box."""
  top, bottom, left, right = box
  area = (bottom - top) * (right - left)
  return 1.0 - area / (height * width), 1.0 - inside(box, height, width)


def erase(key: Array, image: Float[Array, "b *t h w c"], p: float) -> Float[Array, "b *t h w c"]:
  """Fills a box of some images with unit normals: random erasing, timm's mode "pixel" (data/random_erasing.py).

  All frames of a clip lose the same box, each to normals of its own.

  An image's draws depend on the key and its position in the batch. Normals are drawn for every pixel, which
  is cheap beside the model: with mixing, 0.07 % more operations and 1.4 % more bytes in a step of B/16 (v3).
  """

  def erased(position: Array, image: Array) -> Array:
    box_key, noise_key = jax.random.split(jax.random.fold_in(key, position))
    *_, height, width, _ = image.shape
    box = inside(draw_erased(box_key, p, height, width), height, width)
    return jnp.where(box, jax.random.normal(noise_key, image.shape), image)

  return jax.vmap(erased)(jnp.arange(len(image)), image)


def draw_erased(key: Array, p: float, height: int, width: int) -> Corners:
  """Draws the box that an image loses; with probability 1 − p, and if no attempt fits, it is empty."""
  erase_key, area_key, aspect_key, top_key, left_key = jax.random.split(key, 5)
  area = jax.random.uniform(area_key, (_ATTEMPTS,), minval=_AREA[0], maxval=_AREA[1])
  log_aspect = jax.random.uniform(
    aspect_key, (_ATTEMPTS,), minval=_LOG_ASPECT[0], maxval=_LOG_ASPECT[1]
  )
  h, w = first_that_fits(area, log_aspect, height, width)
  h = jnp.where(jax.random.bernoulli(erase_key, p), h, 0)
  top = jax.random.randint(top_key, (), 0, height - h + 1)
  left = jax.random.randint(left_key, (), 0, width - w + 1)
  return top, top + h, left, left + w


def first_that_fits(
  area: Float[Array, " n"], log_aspect: Float[Array, " n"], height: int, width: int
) -> tuple[Int[Array, ""], Int[Array, ""]]:
  """Returns height and width of the first of n boxes that is smaller than the image both ways; 0, 0 if none is.

  Args:
    area: of the boxes, as parts of the image's.
    log_aspect: logarithms of height over width.
    height, width: of the image.
  """
  pixels, aspect = area * (height * width), jnp.exp(log_aspect)
  h, w = jnp.round(jnp.sqrt(jnp.stack([pixels * aspect, pixels / aspect]))).astype(jnp.int32)
  fits = (h < height) & (w < width)
  first, any_fits = jnp.argmax(fits), jnp.any(fits)
  return jnp.where(any_fits, h[first], 0), jnp.where(any_fits, w[first], 0)


def inside(box: Corners, height: int, width: int) -> Bool[Array, "h w 1"]:
  """Returns True at the pixels of the box."""
  top, bottom, left, right = box
  y, x = jnp.arange(height)[:, None, None], jnp.arange(width)[:, None]
  return (top <= y) & (y < bottom) & (left <= x) & (x < right)
