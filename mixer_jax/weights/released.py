"""The authors' released models by name: where they lie and what they are known to reach.

Of the Mixers, four come with the paper (arXiv:2105.01601); sam/ with "When Vision Transformers Outperform ResNets …"
(arXiv:2106.01548), gsam/ with "Surrogate Gap Minimization …" (arXiv:2203.08065). The names are those of the
public bucket, without the suffix (vision_transformer, README.md; big_vision, models/mlp_mixer.py; for the
files in sam/ and gsam/, public code that downloads them). The Vision Transformers are those of their paper
(arXiv:2010.11929; vision_transformer, README.md), the ResNets BiT's (arXiv:1912.11370; big_transfer,
README.md). No checksum of theirs has been published.

The other MLPs' authors released torch's `.pth` files. Their names here are PLACE/FILE, as the authors' READMEs and code
call the file (facebookresearch/deit, README_resmlp.md and resmlp_models.py; SHI-Labs/Convolutional-MLPs, README.md).
Those of timm/ are timm's (timm 1.0.31, models/mlp_mixer.py, which also has their preprocessing).
"""

import dataclasses
from typing import Any

from mixer_jax import models
from mixer_jax.models import mixer, resnet, vit

STORAGE = "https://storage.googleapis.com/"
BUCKETS = ("mixer_models", "vit_models", "bit_models")


@dataclasses.dataclass(frozen=True)
class Released:
  """A released file.

  Attributes:
    url: where it lies.
    pretraining: data set it was trained on.
    fields: of the family's module, num_classes included.
    family: key of `models.FAMILIES`.
    image_size: side of the images that it was last trained on, in pixels, or "HEIGHTxWIDTH".
    frames: of the clips; None: it takes images, or its shapes tell.
    top1: of ImageNet's 50 000 validation images in per cent; None if not published for this very file,
      or no publication at hand.
    crop: operations (mixer_jax/data/ops.py) that `top1` was measured with; None: unknown.
    source: of `top1`.
    normalize: of the images, as in the configuration's key of this name.
    loss: that its head was trained with; None: its biases tell it.
    licence: that the authors' repository names, or timm's card of the file.
  """

  url: str
  pretraining: str
  fields: dict[str, Any]
  family: str = "mixer"
  image_size: int | str = 224
  frames: int | None = None
  top1: float | None = None
  crop: str | None = None
  source: str | None = None
  normalize: str | tuple[float, ...] = "unit"
  loss: str | None = None
  licence: str = "Apache-2.0"


_NUM_CLASSES = {"imagenet1k": 1000, "imagenet21k": 21843, "sam": 1000, "gsam": 1000}


def _released(directory: str, size: str, patch_size: int, **known: Any) -> Released:
  sizes = {**mixer.VARIANTS[f"{size}/16"], "patch_size": patch_size}
  fields = {**sizes, "num_classes": _NUM_CLASSES[directory]}
  pretraining = "imagenet21k" if directory == "imagenet21k" else "imagenet2012"
  url = f"{STORAGE}mixer_models/{directory}/Mixer-{size}_{patch_size}.npz"
  return Released(url, pretraining, fields, **known)


def _vit(directory: str, size: str, patch_size: int, suffix: str = "", **known: Any) -> Released:
  sizes = vit.VARIANTS[f"{size}/{patch_size}"]
  tuned = directory == "imagenet21k+imagenet2012"
  hidden, num_classes = (0, 1000) if tuned else (sizes["hidden_dim"], 21843)
  fields = {**sizes, "representation_size": hidden, "num_classes": num_classes}
  url = f"{STORAGE}vit_models/{directory}/ViT-{size}_{patch_size}{suffix}.npz"
  image_size = 384 if tuned and not suffix else 224
  return Released(url, "imagenet21k", fields, family="vit", image_size=image_size, **known)


def _bit(kind: str, depth: int, factor: int) -> Released:
  """BiT-S is trained on ImageNet, BiT-M on ImageNet-21k, BiT-M-…-ILSVRC2012 fine-tuned on ImageNet at 480."""
  head, _, tuned = kind.partition("-")
  num_classes = 1000 if tuned or head == "S" else 21843
  fields = {**resnet.VARIANTS[f"R{depth}x{factor}"], "num_classes": num_classes}
  url = f"{STORAGE}bit_models/BiT-{head}-R{depth}x{factor}{'-' + tuned if tuned else ''}.npz"
  pretraining = "imagenet2012" if head == "S" else "imagenet21k"
  return Released(url, pretraining, fields, family="resnet", image_size=480 if tuned else 224)


def _pth(
  place: str, url: str, family: str, *, rows: dict[str, tuple[str, float | None]], crop_pct: float,
  source: str, **known: Any,
) -> dict[str, Released]:  # fmt: skip
  """Returns {name: released file} of a family's `.pth` files, of ImageNet's 1000 classes at 224 pixels.

  Args:
    place: first part of the names.
    url: all of the addresses before the file's name.
    family: key of `models.FAMILIES`.
    rows: the file's name without suffix -> variant of the family, and `top1`.
    crop_pct: side of the crop by the images' shorter side.
    source: of `top1`.
    **known: see `Released`.
  """
  crop = f"decode(mode='pillow')|resize_short(crop_pct={crop_pct})|central_crop(rounding='even')"
  known = {"pretraining": "imagenet2012", "normalize": "imagenet", **known}
  return {
    f"{place}/{name}": Released(
      f"{url}{name}.pth",
      fields={**models.FAMILIES[family].VARIANTS[variant], "num_classes": 1000},
      family=family,
      top1=top1,
      crop=crop,
      source=source if top1 else None,
      **known,
    )
    for name, (variant, top1) in rows.items()
  }


_DEIT = ("deit", "https://dl.fbaipublicfiles.com/deit/", "res_mlp")
_SPACH = ("spach", "https://github.com/microsoft/SPACH/releases/download/v1.0/")
_TABLE3: dict[str, Any] = dict(
  crop="decode|resize_small(256)|central_crop", source="arXiv:2105.01601, table 3"
)


def _miil(file: str, num_classes: int, **known: Any) -> Released:
  """Of "ImageNet-21K Pretraining for the Masses" (arXiv:2104.10972), in timm's layout and with its GELU.

  The licence is that of timm's card of them, huggingface.co/timm/mixer_b16_224.miil_in21k_ft_in1k.
  """
  url = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-tresnet/"
  return Released(
    f"{url}mixer_b16_224_{file}.pth",
    "imagenet21k",
    {**mixer.VARIANTS["B/16"], "num_classes": num_classes, "gelu": "erf"},
    normalize="zero_one",
    crop="decode(mode='pillow')|resize_short(crop_pct=0.875, interpolation='bilinear')|central_crop(rounding='even')",
    **known,
  )


RELEASED = {
  "imagenet1k/Mixer-B_16": _released("imagenet1k", "B", 16, top1=76.44, **_TABLE3),
  "imagenet1k/Mixer-L_16": _released("imagenet1k", "L", 16, top1=71.76, **_TABLE3),
  # With a head for ImageNet-21k; fine-tuned on ImageNet they reach 80.64 and 82.89 (table 3).
  "imagenet21k/Mixer-B_16": _released("imagenet21k", "B", 16),
  "imagenet21k/Mixer-L_16": _released("imagenet21k", "L", 16),
  # A user measured 68.9, with an unknown crop (vision_transformer, issue 134, unanswered).
  "sam/Mixer-B_16": _released("sam", "B", 16, top1=77.4, source="arXiv:2106.01548"),
  "sam/Mixer-B_32": _released("sam", "B", 32),
  "gsam/Mixer-S_8": _released("gsam", "S", 8),
  "gsam/Mixer-S_16": _released("gsam", "S", 16),
  "gsam/Mixer-S_32": _released("gsam", "S", 32),
  "gsam/Mixer-B_16": _released("gsam", "B", 16),
  "gsam/Mixer-B_32": _released("gsam", "B", 32),
  "timm/mixer_b16_224.miil_in21k": _miil("miil_in21k-2a558a71", 11221),
  "timm/mixer_b16_224.miil_in21k_ft_in1k": _miil(
    "miil-9229a591", 1000, top1=82.31, source="timm, results-imagenet.csv"),
  **{
    f"{directory}/ViT-{size}_{patch_size}": _vit(directory, size, patch_size)
    for directory, sizes in (
      ("imagenet21k", (("B", 16), ("B", 32), ("L", 16), ("L", 32), ("H", 14))),
      ("imagenet21k+imagenet2012", (("B", 16), ("B", 32), ("L", 16), ("L", 32))),
    )
    for size, patch_size in sizes
  },
  **{
    f"imagenet21k+imagenet2012/ViT-{size}_16-224": _vit(
      "imagenet21k+imagenet2012", size, 16, "-224", top1=top1, source="vision_transformer, README.md of November 2020")
    for size, top1 in (("B", 81.2), ("L", 82.7))
  },
  **{
    f"BiT-{kind[0]}-R{depth}x{factor}{kind[1:]}": _bit(kind, depth, factor)
    for kind in ("S", "M", "M-ILSVRC2012")
    for depth, factor in ((50, 1), (50, 3), (101, 1), (101, 3), (152, 2), (152, 4))
  },
  # Without distillation; of the larger ones no figure has been published for the file.
  **_pth(
    *_DEIT, crop_pct=0.9, source="facebookresearch/deit, issue 106",
    rows={"resmlp_12_no_dist": ("12", 76.6), "resmlp_24_no_dist": ("24", None), "resmlp_36_no_dist": ("36", None),
          "resmlpB_24_no_dist": ("B24", None)}),
  **_pth(
    *_DEIT, crop_pct=0.9, source="facebookresearch/deit, README_resmlp.md",
    rows={"resmlp_12_dist": ("12", 77.8), "resmlp_24_dist": ("24", 80.8), "resmlp_36_dist": ("36", 81.1),
          "resmlpB_24_dist": ("B24", 83.6)}),
  **_pth(
    *_DEIT, crop_pct=0.9, source="facebookresearch/deit, README_resmlp.md",
    rows={"resmlpB_24_22k": ("B24", 84.4)}, pretraining="imagenet21k"),  # then fine-tuned on ImageNet
  **_pth(
    "convmlp", "https://shi-labs.com/projects/convmlp/checkpoints/", "conv_mlp",
    crop_pct=0.9, source="SHI-Labs/Convolutional-MLPs, README.md",
    rows={"convmlp_s_imagenet": ("S", 76.8), "convmlp_m_imagenet": ("M", 79.0), "convmlp_l_imagenet": ("L", 80.2)}),
  # T, S and B of CycleMLP have files too, whose names of parameters are not known.
  **_pth(
    "cyclemlp", "https://github.com/ShoufaChen/CycleMLP/releases/download/v0.1/", "cycle_mlp",
    crop_pct=0.875, source="ShoufaChen/CycleMLP, README.md", licence="MIT",
    rows={"CycleMLP_B1": ("B1", 78.9), "CycleMLP_B2": ("B2", 81.6), "CycleMLP_B3": ("B3", 82.4),
          "CycleMLP_B4": ("B4", 83.0), "CycleMLP_B5": ("B5", 83.2)}),
  **_pth(
    *_SPACH, "smlp_net", crop_pct=0.875, source="microsoft/SPACH, README.md", licence="MIT",
    rows={"smlp_s": ("S", 83.1), "smlp_b": ("B", 83.4)}),
  **_pth(
    *_SPACH, "spach", crop_pct=0.875, source="microsoft/SPACH, README.md", licence="MIT",
    rows={"spach_ms_conv_s": ("MS-S/conv", 81.6), "spach_ms_trans_s": ("MS-S/attn", 82.9),
          "spach_ms_mlp_s": ("MS-S/mlp", 82.1), "spach_ms_hybrid_s": ("MS-S/hybrid", 83.7),
          "spach_ms_hybrid_s+": ("MS-S+/hybrid", 83.9)}),
  **_pth(
    "hiremlp", "https://github.com/ggjy/Hire-Wave-MLP.pytorch/releases/download/log/", "hire_mlp",
    crop_pct=0.875, source="ggjy/Hire-Wave-MLP.pytorch, README.md", licence="MIT (a badge, no file)",
    rows={"hire_mlp_tiny": ("T", 79.7), "hire_mlp_small": ("S", 82.1), "hire_mlp_base": ("B", 83.2)}),
  **{
    name: file
    for size, variant, top1 in (("tiny", "T", 82.1), ("small", "S", 83.4), ("base", "B", 83.8))
    for name, file in _pth(
      "msmlp", f"https://tsciencescu.blob.core.windows.net/projectshzheng/MSMLP/released_model/msmlp_{size}_patch4/",
      "ms_mlp", crop_pct=0.875, source="JegZheng/MS-MLP, README.md", licence="not stated",
      rows={f"msmlp_{size}_patch4_ckpt_epoch299": (variant, top1)},
    ).items()
  },
}  # fmt: skip
