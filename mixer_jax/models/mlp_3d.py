"""MLP-3D (Qiu et al., 2022, arXiv:2206.06292): CycleMLP's mixing of each frame, and time mixed within groups of tokens.

The authors have published no code. The operators are those of the paper's figures: Cycle FCs along the width and the
height, with step 7, and grouped time mixing, weighted by CycleMLP's softmax. Widths, depths and the ratios of the MLPs
are not known; they are those of CycleMLP's B1, B2, B3 and B5, from which training is to start. The published numbers
of parameters are not reached:

| | Kinetics-400, published | here | Something-Something, published | here |
|---|---|---|---|---|
| XS | 50.1M | 16.9M | 55.1M | 25.2M |
| S | 68.5M | 32.1M | 74.1M | 32.0M |
| M | 80.5M | 46.2M | 88.3M | 46.1M |
| L | 135.6M | 91.8M | 149.4M | 91.6M |

No widths, ratios, kernels or forms of the time mixing are known that give all that is published of XS: its two
arrangements differ by 5.0M parameters there, by 8.3M here, where groups have maps from S·c to S·c, and by 1.3M if those
were from S·c to c. The published cost, 14.1 and 14.9 billion multiply-adds, would be that of ratios 8, 8, 4, 4 and a
stem of three frames at 256 px. The arrangements of XS are published, those of S, M and L are not: here all their blocks
are short2.

Axis letters: b clips, t frames or steps of time, h w pixels or positions, c channels, k classes. Any height and width
will do. Frames are a multiple of 4·S, for the largest S.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Float

from mixer_jax.configuration import PositiveInt
from mixer_jax.errors import InputError
from mixer_jax.models import base, cycle_mlp, layers
from mixer_jax.models.layers import Index, Mask

TITLE = "MLP-3D"
TUBELET = 4
"""Frames that the stem joins."""
KINDS = ("short", "long", "window", "token")
_TIME = re.compile(rf"({'|'.join(KINDS)})([124])")


def _variant(arrangement: tuple[str, ...], like: str) -> dict[str, Any]:
  sizes = cycle_mlp.VARIANTS[like]
  return dict(arrangement=arrangement, widths=sizes["widths"], mlp_ratios=sizes["mlp_ratios"])


def _short2(like: str) -> dict[str, Any]:
  depths = cycle_mlp.VARIANTS[like]["num_blocks"]
  return _variant(tuple("+".join(["short2"] * depth) for depth in depths), like)


KINETICS_400 = ("short1+token2", "short1+short2", "short1+long2+window2+long2", "short2+token2")
SOMETHING = ("short1+token2", "short2+long4", "window2+token2+long4+window2", "window4+short4")
"""Arrangements of XS that the authors' search found for Something-Something V2, and above for Kinetics-400.

That the stages have 2, 2, 4 and 2 of the ten blocks is inferred from CycleMLP-B1.
"""
VARIANTS = {
  "XS/kinetics400": _variant(KINETICS_400, "B1"),
  "XS/something": _variant(SOMETHING, "B1"),
  "S": _short2("B2"),
  "M": _short2("B3"),
  "L": _short2("B5"),
}
"""Size -> fields of the model."""


def grouped(x: Float[Array, "b t *n c"], kind: str, size: int) -> Float[Array, "b g *n s_c"]:
  """Returns the channels of the tokens that time mixing maps together, joined: groups of S of t/S.

  "short": S tokens that follow one another. "long": every (t/S)-th token. "window": as short, displaced by S/2, with
  zeros beyond both ends. "token": for each token, itself and the S − 1 before it, the last at the ring's end; g = t.
  """
  if kind == "token":
    return jnp.concatenate([jnp.roll(x, k, axis=1) for k in range(size)], axis=-1)
  if kind == "window":
    x = jnp.pad(x, [(size // 2, size // 2) if a == 1 else (0, 0) for a in range(x.ndim)])
  b, t, *rest, c = x.shape
  split = (size, t // size) if kind == "long" else (t // size, size)
  x = jnp.moveaxis(x.reshape(b, *split, *rest, c), 1 if kind == "long" else 2, -2)
  return x.reshape(b, t // size, *rest, size * c)


def ungrouped(y: Float[Array, "b g *n s_c"], kind: str, size: int) -> Float[Array, "b t *n c"]:
  """Undoes `grouped`, for groups that were mapped to as many channels; for "token", to the channels of one token."""
  if kind == "token":
    return y
  b, groups, *rest, channels = y.shape
  y = y.reshape(b, groups, *rest, size, channels // size)
  y = jnp.moveaxis(y, -2, 1 if kind == "long" else 2)
  y = y.reshape(b, groups * size, *rest, channels // size)
  margin = size // 2 if kind == "window" else 0
  return jax.lax.slice_in_dim(y, margin, groups * size - margin, axis=1)


class TimeMixing(cycle_mlp.CycleMixing):
  """CycleMixing of each frame, with a linear map of groups of tokens in time as the third branch.

  All groups and positions share the map, from S·c to S·c channels, of "token" from S·c to c. It bears the kind's name.

  Attributes:
    kind, size: see `grouped`.
  """

  kind: str = "short"
  size: int = 1

  def _third(self, x: Array, dense: Any) -> Array:
    channels = x.shape[-1] * (1 if self.kind == "token" else self.size)
    y = dense(channels, name=self.kind)(grouped(x, self.kind, self.size))
    return ungrouped(y, self.kind, self.size)


class Mlp3dBlock(cycle_mlp.CycleBlock):
  """CycleBlock with TimeMixing."""

  kind: str = "short"
  size: int = 1

  def _mixing(self, **fields: Any) -> Any:
    return TimeMixing(self.step, self.fusion, kind=self.kind, size=self.size, **fields)


class Model(base.BlockModel):
  """MLP-3D: stem -> four stages of Mlp3dBlock -> LayerNorm -> mean over time and positions -> head.

  The stem divides the frames and each side by 4, what lies between two stages each side by 2: convolutions of 4×7×7
  and 1×3×3, as in the same author's other models of video and in CycleMLP. Sows every stage's output (`stage_1` to
  `stage_4`), every block's (`block_<i>`) and `pre_logits`.

  Attributes:
    arrangement: each stage's blocks by their time mixing, as "short1+token2": short, long, window or token, and the
      tokens of a group, 1, 2 or 4.
    widths: channels of each stage, from 4.
    mlp_ratios: hidden width of each stage's MLPs, in its channels.
    step: number of displacements that the channels take in turn along the width and the height. CycleMLP's B1 to B5,
      and what is inflated from them, have 3.
  """

  arrangement: tuple[str, ...]
  widths: tuple[int, ...]
  mlp_ratios: tuple[int, ...]
  step: PositiveInt = 7

  @property
  def takes_clips(self) -> bool:
    return True

  def check(self, sides: tuple[int, ...]) -> None:
    for name, least in (("widths", 4), ("mlp_ratios", 1)):
      value = getattr(self, name)
      if len(value) != 4 or min(value) < least:
        raise InputError(
          f"{name} is {value}; expected a number from {least} for each of the four stages."
        )
    times = [time for stage in _times(self.arrangement) for time in stage]
    multiple = TUBELET * max(1 if kind == "token" else size for kind, size in times)
    if (frames := sides[0]) % multiple or not frames:
      raise InputError(
        f"frames is {frames}, which does not go with arrangement {self.arrangement}: take a multiple of {multiple}."
      )

  def logits(self, image: Array, index: Index, mask: Mask, train: bool) -> Array:
    depths = [len(times) for times in _times(self.arrangement)]
    x = self.run_stages(Mlp3dBlock, depths, image, index, mask, train)
    x = nn.LayerNorm(epsilon=1e-5, name="pre_head_layer_norm", **self.dtypes)(x)
    pre_logits = jnp.mean(x, axis=(1, 2, 3), dtype=jnp.float32)
    return self.classify(pre_logits, cycle_mlp.TRUNCATED_NORMAL)

  def stage_input(self, x: Array, stage: int, mask: Mask, train: bool) -> Array:
    size, strides = ((1, 3, 3), (1, 2, 2)) if stage else ((TUBELET, 7, 7), (TUBELET, 4, 4))
    pad = (1, 1) if stage else (2, 2)
    conv = nn.Conv(
      self.widths[stage],
      size,
      strides,
      padding=((0, 0), pad, pad),
      kernel_init=cycle_mlp.CONV_KERNEL,
      bias_init=layers.uniform_bias(int(np.prod(size)) * x.shape[-1]),
      name=f"downsample_{stage}" if stage else "stem",
      **self.dtypes,
    )
    return conv(x)

  def block_fields(self, x: Array, stage: int) -> list[dict[str, Any]]:
    mlp_dim = x.shape[-1] * self.mlp_ratios[stage]
    sizes = dict(mlp_dim=mlp_dim, step=self.step, fusion="reweight")
    return [
      dict(sizes, kind=kind, size=size, name=f"Mlp3dBlock_{stage}_{i}")
      for i, (kind, size) in enumerate(_times(self.arrangement)[stage])
    ]


def _times(arrangement: tuple[str, ...]) -> list[list[tuple[str, int]]]:
  """Returns (kind, S) of each stage's blocks."""
  stages = [[*map(_TIME.fullmatch, stage.split("+"))] for stage in arrangement]
  if len(stages) != 4 or any(time is None for times in stages for time in times):
    raise InputError(
      f'arrangement is {arrangement}; expected four stages of blocks like "short1+token2": {", ".join(KINDS)}; 1, 2, 4.'
    )
  return [[(time[1], int(time[2])) for time in times if time] for times in stages]


def inflate(params: Mapping[str, Any], arrangement: tuple[str, ...]) -> dict[str, Any]:
  """Returns parameters of an MLP-3D that gives of a still clip what a CycleMLP gives of its image.

  The stem's kernel goes to the third of its four frames, with zeros for the others; the channel branch becomes the map
  of each token to itself, with zeros between the tokens of a group. Everything else is the same. The MLP-3D's `step` must
  be the CycleMLP's. Before training, only the reweighting, which takes the mean over time, joins frames that differ.

  Args:
    params: a CycleMLP's that has reweighting and overlapping patches, as B1 to B5.
    arrangement: the MLP-3D's, for as many blocks.

  Raises:
    InputError: they are not such a CycleMLP's, or the arrangement is for other blocks.
  """
  flat = traverse_util.flatten_dict(dict(params), sep="/")
  times = {
    f"{stage}_{i}": time
    for stage, times in enumerate(_times(arrangement))
    for i, time in enumerate(times)
  }
  blocks = {m[1] for name in flat if (m := re.match(r"CycleBlock_(\d+_\d+)/mixing/reweight", name))}
  if blocks != times.keys():
    raise InputError(
      f"arrangement {arrangement} is for blocks {sorted(times)}, but the parameters have {sorted(blocks)} with reweighting."
    )
  new: dict[str, Any] = {}
  for name, value in flat.items():
    new |= _inflated(name.replace("CycleBlock", "Mlp3dBlock"), np.asarray(value), times)
  return traverse_util.unflatten_dict(new, sep="/")


def _inflated(
  name: str, value: np.ndarray, times: Mapping[str, tuple[str, int]]
) -> dict[str, np.ndarray]:
  """Returns the parameters that one of CycleMLP's becomes."""
  if name == STEM:
    return {name: np.pad(value[None], [(2, TUBELET - 3), *[(0, 0)] * value.ndim])}
  if re.fullmatch(r"downsample_\d+/kernel", name):
    return {name: value[None]}
  if not (m := re.fullmatch(r"(Mlp3dBlock_(\d+_\d+)/mixing)/channel/kernel", name)):
    return {name: value}
  kind, size = times[m[2]]
  kernel = np.kron(np.eye(size, dtype=value.dtype), value)
  kernel = kernel[:, : len(value)] if kind == "token" else kernel
  bias = np.zeros(kernel.shape[1], value.dtype)
  return {f"{m[1]}/{kind}/kernel": kernel, f"{m[1]}/{kind}/bias": bias}


PREFIX = r"Mlp3dBlock_\d+_\d+/"
STEM = "stem/kernel"
UNTOLD: dict[str, Any] = {"step": 7}
LAYERS = (r"stem", r"(?:downsample|Mlp3dBlock)_(\d+)(?:_(\d+))?/")
TORCH_NAMES = {
  "authors": (
    ("patch_embed.proj", "stem"),
    *((f"network.{2 * stage - 1}.proj", f"downsample_{stage}") for stage in (1, 2, 3)),
    *(
      entry
      for stage in range(4)
      for entry in cycle_mlp.block_names(f"network.{2 * stage}.{{}}", f"Mlp3dBlock_{stage}_{{}}")
    ),
    *(
      (f"network.{2 * stage}.{{}}.attn.gtm.{kind}", f"Mlp3dBlock_{stage}_{{}}/mixing/{kind}")
      for stage in range(4)
      for kind in KINDS
    ),
    ("norm", "pre_head_layer_norm"),
    ("head", "head"),
  )
}
"""The names are CycleMLP's, and the kinds' of time mixing: no authors' code is public."""


def fields_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """Returns the model's fields that parameter shapes tell."""
  hidden = [shapes[f"Mlp3dBlock_{stage}_0/MlpBlock_0/Dense_0/kernel"] for stage in range(4)]
  found = {}
  for name, shape in shapes.items():
    if m := re.fullmatch(rf"Mlp3dBlock_(\d+)_(\d+)/mixing/({'|'.join(KINDS)})/kernel", name):
      found[int(m[1]), int(m[2])] = f"{m[3]}{shape[0] // hidden[int(m[1])][0]}"
  return dict(
    arrangement=tuple(
      "+".join(found[place] for place in sorted(found) if place[0] == stage) for stage in range(4)
    ),
    widths=tuple(width for width, _ in hidden),
    mlp_ratios=tuple(mlp_dim // width for width, mlp_dim in hidden),
    num_classes=base.num_classes(shapes),
  )


def input_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int, int]:
  """Returns a clip (frames, height, width, channels) that the parameters are for; others will do, see the top."""
  return 16, 224, 224, shapes[STEM][3]
