"""Records timm's ResMLP for tests/golden: a tiny model with random weights, and its outputs.

python benchmarks/record_res_mlp.py tests/golden  # needs torch and timm, which the tests do not
"""

import pathlib
import sys

import numpy as np
import torch
from rival_timm import import_timm
from safetensors.torch import save_file

FIELDS = dict(
  num_classes=5, img_size=(24, 32), patch_size=8, num_blocks=2, embed_dim=16, mlp_ratio=4,
)  # fmt: skip


def main(directory: str) -> None:
  timm = import_timm()
  from timm.models import mlp_mixer

  torch.manual_seed(0)
  model = mlp_mixer.MlpMixer(
    block_layer=mlp_mixer.ResBlock, norm_layer=mlp_mixer.Affine, **FIELDS
  ).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      noise = torch.randn_like(parameter)
      scale = parameter.ndim in (1, 3) and parameter.mean() > 0.5
      parameter.copy_(1 + 0.2 * noise if scale else noise / max(parameter[0].numel(), 9) ** 0.5)
    image = torch.rand(3, 3, 24, 32) * 2 - 1
    out = pathlib.Path(directory)
    save_file(model.state_dict(), out / "res_mlp_timm.safetensors", {"timm": timm.__version__})
    np.savez(
      out / "res_mlp_timm.npz",
      image=image.permute(0, 2, 3, 1).numpy(),
      logits=model(image).numpy(),
      pre_logits=model.forward_head(model.forward_features(image), pre_logits=True).numpy(),
    )


if __name__ == "__main__":
  main(sys.argv[1])
