"""Records timm's models for tests/golden: tiny ones with random weights, their outputs, and the gradients of a loss.

python benchmarks/record_timm.py res_mlp_timm tests/golden  # needs torch and timm, which the tests do not
python benchmarks/record_timm.py vit_timm tests/golden/family
python benchmarks/record_timm.py resnet_timm tests/golden/family
"""

import functools
import pathlib
import sys
from typing import Any

import numpy as np
import torch
from rival_timm import import_timm
from safetensors.torch import save_file


def res_mlp_timm() -> Any:
  from timm.models import mlp_mixer

  return mlp_mixer.MlpMixer(
    num_classes=5,
    img_size=(24, 32),
    patch_size=8,
    num_blocks=2,
    embed_dim=16,
    mlp_ratio=4,
    block_layer=mlp_mixer.ResBlock,
    norm_layer=mlp_mixer.Affine,
  )


def vit_timm() -> Any:
  from timm.models.vision_transformer import VisionTransformer

  return VisionTransformer(
    img_size=(24, 32), patch_size=8, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2, num_classes=5
  )


def resnet_timm() -> Any:
  from timm.layers import GroupNormAct, StdConv2d
  from timm.models.resnetv2 import ResNetV2

  return ResNetV2(
    layers=[2, 1],
    channels=(32, 64),
    stem_chs=8,
    num_classes=5,
    stem_type="fixed",
    norm_layer=functools.partial(GroupNormAct, num_groups=4),
    conv_layer=functools.partial(StdConv2d, eps=1e-8),
  )


def main(name: str, directory: str) -> None:
  timm = import_timm()
  torch.manual_seed(0)
  model = {"res_mlp_timm": res_mlp_timm, "vit_timm": vit_timm, "resnet_timm": resnet_timm}[name]()
  model.eval()
  with torch.no_grad():
    for parameter in model.parameters():
      noise = torch.randn_like(parameter)
      scale = parameter.ndim in (1, 3) and parameter.mean() > 0.5
      parameter.copy_(1 + 0.2 * noise if scale else noise / max(parameter[0].numel(), 9) ** 0.5)
  image, labels = torch.rand(3, 3, 24, 32) * 2 - 1, torch.tensor([0, 3, 4])
  pre_logits = model.forward_head(model.forward_features(image), pre_logits=True)
  logits = model(image)
  loss = torch.nn.functional.cross_entropy(logits, labels)
  loss.backward()
  out = pathlib.Path(directory)
  save_file(model.state_dict(), out / f"{name}.safetensors", {"timm": timm.__version__})
  np.savez(
    out / f"{name}.npz",
    image=image.permute(0, 2, 3, 1).numpy(),
    labels=labels.numpy(),
    loss=np.array([loss.item()], np.float32),
    logits=logits.detach().numpy(),
    pre_logits=pre_logits.detach().numpy(),
    **{f"grad/{k}": p.grad.numpy() for k, p in model.named_parameters()},
  )


if __name__ == "__main__":
  main(*sys.argv[1:])
