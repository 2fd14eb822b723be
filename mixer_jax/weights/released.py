"""The authors' released MLP-Mixers by name: where they lie and what they are known to reach.

Four come with the paper (arXiv:2105.01601); sam/ with "When Vision Transformers Outperform ResNets …"
(arXiv:2106.01548), gsam/ with "Surrogate Gap Minimization …" (arXiv:2203.08065). The names are those of the
public bucket, without the suffix (vision_transformer, README.md; big_vision, models/mlp_mixer.py; for the
files in sam/ and gsam/, public code that downloads them). No checksum of theirs has been published.
"""

import dataclasses
from typing import Any

BUCKET = "https://storage.googleapis.com/mixer_models/"


@dataclasses.dataclass(frozen=True)
class Released:
  """A released file.

  Attributes:
    url: where it lies.
    pretraining: data set it was trained on.
    fields: of `models.mixer.MlpMixer`, num_classes included.
    top1: of ImageNet's 50 000 validation images in per cent; None: not published for this very file,
      or no publication at hand.
    crop: operations (mixer_jax/data/ops.py) that `top1` was measured with; None: unknown.
    source: of `top1`.
  """

  url: str
  pretraining: str
  fields: dict[str, Any]
  top1: float | None = None
  crop: str | None = None
  source: str | None = None


_SIZES = {"S": (8, 512), "B": (12, 768), "L": (24, 1024)}
_NUM_CLASSES = {"imagenet1k": 1000, "imagenet21k": 21843, "sam": 1000, "gsam": 1000}


def _released(directory: str, size: str, patch_size: int, **known: Any) -> Released:
  num_blocks, hidden_dim = _SIZES[size]
  fields = dict(
    num_classes=_NUM_CLASSES[directory],
    patch_size=patch_size,
    num_blocks=num_blocks,
    hidden_dim=hidden_dim,
    tokens_mlp_dim=hidden_dim // 2,
    channels_mlp_dim=hidden_dim * 4,
  )
  pretraining = "imagenet21k" if directory == "imagenet21k" else "imagenet2012"
  url = f"{BUCKET}{directory}/Mixer-{size}_{patch_size}.npz"
  return Released(url, pretraining, fields, **known)


_TABLE3: dict[str, Any] = dict(
  crop="decode|resize_small(256)|central_crop(224)", source="arXiv:2105.01601, table 3"
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
}
