"""What every family's Model is: it checks the image, makes its blocks, draws drop path, sows what they give, and has a head."""

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
from flax import errors as flax_errors
from flax import linen as nn
from jaxtyping import Array, Float

from mixer_jax.configuration import Rate
from mixer_jax.errors import InputError
from mixer_jax.models import layers


def check_image(image: Array, *, clips: bool = False) -> None:
  """Raises InputError for pixels that are not normalised yet, images in place of clips and clips in place of images."""
  if image.ndim == (4 if clips else 5):
    wanted = (
      "set, for instance to 16: this model takes clips (b, frames, height, width, channels)."
      if clips
      else "None: this model takes images (b, height, width, channels). mlp3d, and mixer with a tubelet, take clips."
    )
    raise InputError(f"frames must be {wanted} image has the shape {image.shape}.")
  if not jnp.issubdtype(image.dtype, jnp.floating):
    raise InputError(
      f"image is of type {image.dtype}; expected float values as config.normalize makes them of pixels. With its "
      "default: image / 127.5 - 1."
    )


class ImageModel(layers.Layer, kw_only=True):
  """A family's Model has its sizes, `check` and `logits`; how it is trained and computed stands here.

  Attributes:
    num_classes: width of the head k. If None or 0, there is no head and the module returns `pre_logits`.
    head_bias_init: start of the head's bias.
    dtype: compute type; statistics, softmaxes, the mean over positions and the head stay float32.
    param_dtype: type of the parameters.
    remat: "block" keeps only the blocks' inputs for the backward pass and recomputes the rest.
  """

  num_classes: int | None = 1000
  head_bias_init: float = 0.0
  dtype: Literal["float32", "bfloat16"] = "float32"
  param_dtype: Literal["float32", "bfloat16"] = "float32"
  remat: Literal["none", "block"] = "none"

  @property
  def takes_clips(self) -> bool:
    """Whether it takes clips, and no images."""
    return False

  @nn.nowrap
  def takes_kernel(self, input_shape: tuple[int, ...]) -> bool:
    """Returns whether there is a kernel for GPUs that can compute with such images or clips; see config.kernels."""
    del input_shape
    return False

  @nn.compact
  def __call__(
    self,
    image: Float[Array, "b *t h w p"],
    *,
    train: bool = False,
    index: layers.Index | None = None,
    mask: layers.Mask = None,
  ) -> Float[Array, "b k"]:
    """Returns logits, or `pre_logits` (b, c) without a head.

    Args:
      image: normalised values; of a model of clips with their frames, t.
      train: draw drop path and dropout, from the random stream "dropout", and take the batch's statistics.
      index: the images' positions in the global batch, which their draws belong to; default 0 … b−1.
      mask: 0 for images that are padding, which do not enter the statistics; default: none are.

    Raises:
      InputError: the values are not normalised, clips in place of images or images in place of clips, or what `check` says.
    """
    check_image(image, clips=self.takes_clips)
    self.check(image.shape[1:-1])
    index = jnp.arange(image.shape[0]) if index is None else index
    return self.logits(image, index, mask, train)

  def check(self, sides: tuple[int, ...]) -> None:
    """Raises InputError if the fields do not go together, or not with images of these sides, ([frames,] height, width)."""
    raise NotImplementedError

  def logits(
    self,
    image: Float[Array, "b *t h w p"],
    index: layers.Index,
    mask: layers.Mask,
    train: bool,
  ) -> Float[Array, "b k"]:
    """Returns what `__call__` returns; ends with `classify`."""
    raise NotImplementedError

  @nn.nowrap
  def init(self, rngs: Any, image: Array, *args: Any, **options: Any) -> Any:
    with _explained(image):
      return super().init(rngs, image, *args, **options)

  @nn.nowrap
  def apply(self, variables: Any, image: Array, *args: Any, **options: Any) -> Any:
    with _explained(image):
      return super().apply(variables, image, *args, **options)

  @nn.nowrap
  def classify(
    self,
    pre_logits: Float[Array, "b c"],
    kernel_init: Callable[..., Array] = nn.initializers.zeros,
  ) -> Float[Array, "b k"]:
    """Sows `pre_logits` and returns logits, or `pre_logits` themselves if the model has no classes.

    Args:
      pre_logits: float32.
      kernel_init: of the child "head", which is made here.
    """
    # As self.sow would do it, which refuses the name of a submodule (the Vision Transformer's tanh layer).
    if self.is_mutable_collection("intermediates"):
      self.put_variable("intermediates", "pre_logits", (pre_logits,))
    if not self.num_classes:
      return pre_logits
    head = nn.Dense(
      self.num_classes,
      kernel_init=kernel_init,
      bias_init=nn.initializers.constant(self.head_bias_init),
      dtype=jnp.float32,
      param_dtype=jnp.dtype(self.param_dtype),
      name="head",
    )
    return head(pre_logits)


class BlockModel(ImageModel, kw_only=True):
  """An ImageModel of residual blocks with drop path, in stages; an isotropic one has one stage.

  Attributes:
    gelu: "erf", the exact one; "tanh", the approximation.
    stoch_depth: s; block i of the network's L drops each branch of an image with probability s·i/(L−1).
    stoch_depth_rescale: divide the branches that are kept by 1 − that.
  """

  gelu: layers.Gelu = "erf"
  stoch_depth: Rate = 0.0
  stoch_depth_rescale: bool = True

  @nn.nowrap
  def rates(self, depths: Sequence[int]) -> list[float]:
    """Returns the drop path rate of each block of all stages."""
    return linear_rates(self.stoch_depth, sum(depths))

  @nn.nowrap
  def draw_kept(self, index: layers.Index, rates: Sequence[float], train: bool) -> Any:
    """Returns which branches of which blocks an image keeps, bool (b, l, 2); None if it keeps all."""
    if not train or not self.stoch_depth:
      return None
    return layers.draw_kept(self.make_rng("dropout"), index, jnp.array(rates))

  @nn.nowrap
  def made(self, block: type[Any], rate: float, *, name: str, **fields: Any) -> Any:
    """Returns a block of this class, with these fields and the model's own."""
    # Its arguments are self, x, index, kept, mask, train.
    block = nn.remat(block, static_argnums=(5,)) if self.remat == "block" else block
    common = dict(gelu=self.gelu, drop_path_rate=rate, rescale=self.stoch_depth_rescale)
    return block(**common, **self.dtypes, name=name, **fields)

  @nn.nowrap
  def run_stages(
    self,
    block: type[Any],
    depths: Sequence[int],
    x: Float[Array, "b ..."],
    index: layers.Index,
    mask: layers.Mask,
    train: bool,
    *,
    first: int = 1,
  ) -> Float[Array, "b ..."]:
    """Returns the last stage's output, and sows every block's (`block_<i>`) and every stage's map (`stage_<i>`).

    Args:
      block: class of the blocks.
      depths: blocks of each stage.
      x: what the first stage's `stage_input` takes.
      index, mask, train: see `logits`.
      first: number of the first stage's map.
    """
    rates, number = self.rates(depths), 0
    kept = self.draw_kept(index, rates, train)
    for stage in range(len(depths)):
      x = self.stage_input(x, stage, mask, train)
      for fields in self.block_fields(x, stage):
        one = self.made(block, rates[number], **fields)
        x = one(x, index, None if kept is None else kept[:, number], mask, train)
        self.sow("intermediates", f"block_{number}", x)
        number += 1
      if x.ndim > 3:  # tokens are no map
        self.sow("intermediates", f"stage_{stage + first}", x)
    return x

  @nn.nowrap
  def sow_map(self, x: Float[Array, "b s c"], *grid: int) -> None:
    """Sows an isotropic model's tokens in raster order as its map (b, *grid, c); nothing if they are another number."""
    if x.shape[1] == math.prod(grid):
      self.sow("intermediates", "stage_1", x.reshape(x.shape[0], *grid, -1))

  def stage_input(self, x: Array, stage: int, mask: layers.Mask, train: bool) -> Array:
    """Returns what a stage's blocks begin with.

    Args:
      x: of stage 0 what `run_stages` was given, most often the image, from which a stem makes maps or tokens; else the last
        stage's output, which becomes smaller.
      stage: its number.
      mask, train: see `__call__`.
    """
    raise NotImplementedError

  def block_fields(self, x: Array, stage: int) -> list[dict[str, Any]]:
    """Returns for each block of a stage its `name` and the fields that it has besides those of `layers.Block`.

    Args:
      x: what the first one takes.
      stage: its number.
    """
    raise NotImplementedError


@contextlib.contextmanager
def _explained(image: Array) -> Iterator[None]:
  """Raises InputError in place of what JAX and Flax say about images of another shape."""
  try:
    yield
  except flax_errors.InvalidRngError as e:
    raise InputError(
      'train=True draws drop path and dropout: give rngs={"dropout": jax.random.key(…)}.'
    ) from e
  except (TypeError, ValueError, flax_errors.ScopeParamShapeError) as e:
    shape = f"image has the shape {image.shape}"
    if image.ndim < 4:
      raise InputError(f"{shape}; expected a batch (b, h, w, c): image[None] is one of 1.") from e
    if image.shape[-3] in (1, 3) and image.shape[-1] > 4:
      raise InputError(
        f"{shape}, channels first; expected (b, h, w, c): jnp.moveaxis(image, -3, -1)."
      ) from e
    if isinstance(e, flax_errors.ScopeParamShapeError):
      raise InputError(
        f"{shape}, but the parameters are for another size or number of channels, or another model: "
        f"{str(e).partition(' (http')[0]} Resize the images, or the parameters with mixer_jax.weights.resize."
      ) from e
    raise


def linear_rates(stoch_depth: float, num_blocks: int) -> list[float]:
  """Returns drop path rates that grow linearly: s·i/(L−1) for block i of L."""
  return [stoch_depth * i / max(num_blocks - 1, 1) for i in range(num_blocks)]


def num_blocks(names: Iterable[str], prefix: str) -> int:
  """Returns how many blocks `prefix`0, `prefix`1, … the parameters' names begin with."""
  return len({m[0] for name in names if (m := re.match(rf"{re.escape(prefix)}\d+/", name))})


def num_classes(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
  """Returns the width of the head that `ImageModel.classify` makes, as parameter shapes tell it; None without a head."""
  return shapes.get("head/kernel", (None, None))[1]
