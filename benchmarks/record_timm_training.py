"""Records timm's LAMB, factors by layer and decay of an average that warms up, for tests/golden.

python benchmarks/record_timm_training.py tests/golden  # needs torch and timm, which the tests do not
"""

import pathlib
import sys

import numpy as np
import torch
from rival_timm import import_timm

STEPS, RATE, DECAY = 3, 0.02, 0.2
SHAPES = {"kernel": (6, 5), "bias": (5,), "zeros/kernel": (3, 4), "idle/kernel": (4, 2)}


def lamb() -> dict[str, np.ndarray]:
  """Records parameters and gradients; the first gradients are clipped, "idle" stays at zero in the first step."""
  from timm.optim import Lamb

  rng = np.random.default_rng(0)
  params = {n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
  for name in ("zeros/kernel", "idle/kernel"):
    params[name][:] = 0
  found = {f"lamb/init/{n}": p.copy() for n, p in params.items()}
  tensors = {n: torch.nn.Parameter(torch.from_numpy(p)) for n, p in params.items()}
  groups = [
    {"params": [t for n, t in tensors.items() if n.endswith("kernel")], "weight_decay": DECAY},
    {"params": [tensors["bias"]], "weight_decay": 0.0},
  ]
  optimizer = Lamb(groups, lr=RATE, eps=1e-6)
  for step in range(STEPS):
    for name, tensor in tensors.items():
      grad = rng.normal(size=tensor.shape).astype(np.float32) * (1.0, 0.1, 0.3)[step]
      grad *= not (name == "idle/kernel" and step == 0)
      tensor.grad = torch.from_numpy(grad)
      found[f"lamb/grads/{step}/{name}"] = grad
    optimizer.step()
    for name, tensor in tensors.items():
      found[f"lamb/params/{step}/{name}"] = tensor.detach().numpy().copy()
  return found


def layer_decay() -> dict[str, np.ndarray]:
  """Records the factor of each parameter of a Mixer and a ResMLP of three blocks."""
  from timm.models import mlp_mixer
  from timm.optim import param_groups_layer_decay

  found = {}
  small = dict(num_classes=5, img_size=16, patch_size=8, num_blocks=3, embed_dim=8)
  res = dict(block_layer=mlp_mixer.ResBlock, norm_layer=mlp_mixer.Affine, mlp_ratio=4)
  for family, fields in (("mixer", {}), ("res_mlp", res)):
    model = mlp_mixer.MlpMixer(**small, **fields)
    names = {id(p): n for n, p in model.named_parameters()}
    for group in param_groups_layer_decay(model, layer_decay=0.75):
      for parameter in group["params"]:
        found[f"layer_decay/{family}/{names[id(parameter)]}"] = np.float64(group["lr_scale"])
  return found


def ema() -> dict[str, np.ndarray]:
  """Records the decay after each number of updates, at most 0.99."""
  from timm.utils import ModelEmaV3

  updates = np.array([1, 2, 3, 10, 100, 999, 1000, 1001, 10_000])
  average = ModelEmaV3(torch.nn.Linear(1, 1), decay=0.99, use_warmup=True)
  return {"ema/updates": updates, "ema/decays": np.array([average.get_decay(n) for n in updates])}


def main(directory: str) -> None:
  timm = import_timm()
  recorded = {**lamb(), **layer_decay(), **ema(), "timm": np.array(timm.__version__)}
  np.savez_compressed(pathlib.Path(directory) / "timm_training.npz", **recorded)


if __name__ == "__main__":
  main(sys.argv[1])
