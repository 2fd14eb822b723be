"""Small models of all families on Fashion-MNIST, a CPU's budget: alike in multiply-accumulates, images and settings.

python train.py --config=configs/fashion_mnist.py:ms_mlp --workdir=DIR
python -m benchmarks.fashion_mnist --workdir=DIR    # all of them, and the table of docs/results/fashion_mnist.md

  mixer, …  one of MODELS
  epochs    of the run
  recipe    none: images are mirrored at random, otherwise unchanged; deit: crops, RandAugment, erasing, mixup, CutMix,
            smoothing, three copies of an image in a batch, drop path and an average of the parameters. Optimizer and
            schedule are the same.

Images come from Debian's package (apt install dataset-fashion-mnist) and are prepared on the first run.
"""

from typing import Any

from mixer_jax.configs import common, deit
from mixer_jax.errors import InputError

_ISOTROPIC: dict[str, Any] = dict(patch_size=4, hidden_dim=40)
_MIXER = dict(num_blocks=4, tokens_mlp_dim=32, channels_mlp_dim=160) | _ISOTROPIC
_PYRAMID: dict[str, Any] = dict(num_blocks=(2, 2, 2, 1), mlp_ratios=(2, 2, 2, 2))
_WIDTHS = (32, 64, 96, 128)

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
  "mixer": ("mixer", _MIXER),
  "ccs": ("mixer", _MIXER | {"token_mixing": "circulant", "channel_groups": 8}),
  "res_mlp": ("res_mlp", dict(num_blocks=4, mlp_dim=160, layer_scale_init=0.1) | _ISOTROPIC),
  "s2_mlp": ("s2_mlp", dict(patch_size=4, num_blocks=3, hidden_dim=44, mlp_dim=176)),
  "spach-conv": ("spach", dict(stages=("conv4",), mlp_ratio=5) | _ISOTROPIC),
  "spach-attn": ("spach", dict(stages=("attn3",), mlp_ratio=3, num_heads=4) | _ISOTROPIC),
  "spach-mlp": ("spach", dict(stages=("mlp4",), mlp_ratio=4, token_mlp_dims=(32,)) | _ISOTROPIC),
  "conv_mlp": (
    "conv_mlp",
    dict(
      stem_channels=24, num_conv_blocks=1, num_blocks=(2, 2, 2), widths=(40, 80, 160), mlp_ratios=(2, 2, 2)
    ),
  ),
  "cycle_mlp": ("cycle_mlp", dict(widths=_WIDTHS) | _PYRAMID),
  "hire_mlp": ("hire_mlp", dict(widths=_WIDTHS, region_sizes=(4, 3, 3, 2)) | _PYRAMID),
  "ms_mlp": (
    "ms_mlp",
    dict(
      patch_size=4, width=40, num_blocks=(2, 2, 2, 1), mlp_ratio=2, layer_scale_init=0.1,
      mix_sizes=((1, 1, 3, 3, 5), (1, 1, 3, 3, 5), (1, 1, 3, 3, 5), (1, 1, 1, 3, 3)),
    ),
  ),
  "smlp_net": ("smlp_net", dict(patch_size=4, hidden_dim=32, num_blocks=(2, 2, 2, 1), mlp_ratio=2)),
  "vit": ("vit", dict(num_blocks=3, mlp_dim=120, num_heads=4) | _ISOTROPIC),
  "resnet": ("resnet", dict(num_units=(2, 1, 1), width=24, num_groups=4)),
}  # fmt: skip
"""Name -> family and fields, for about 4 million multiply-accumulates an image of 32×32."""


def get_config(arg: str = "mixer"):
  given = common.parse_arg(arg, variant="mixer", recipe="none", epochs="1")
  for name, known in (("variant", MODELS), ("recipe", ("none", "deit"))):
    if given[name] not in known:
      raise InputError(
        f"fashion_mnist.py: {name} {given[name]!r} is unknown; known: {', '.join(known)}."
      )
  family, fields = MODELS[given["variant"]]
  config = deit.recipe(family)
  config.model.update(fields)
  config.total_epochs = common.number("epochs", given["epochs"])
  _fit(config)
  if given["recipe"] == "none":
    _without_recipe(config)
  return config


def _fit(config: Any) -> None:
  """Fits DeiT's settings to small images, few epochs and one machine."""
  config.image_size = 32
  config.image_channels = 1
  config.normalize = "unit"
  config.num_classes = 10
  config.batch_size = 192
  config.learning_rate = 3e-3
  config.ema_decay = 0.999
  config.schedule.warmup_epochs = 0.1 * config.total_epochs
  config.schedule.every = "step"
  config.schedule.lag = 0

  config.data.dataset = "fashion_mnist_debian"
  config.data.num_examples = 60_000
  config.data.ops = f"decode|pad|{config.data.ops.partition('|')[2]}"
  config.data.num_workers = 0
  config.evaluators.val.split = "test"
  config.evaluators.val.num_examples = 10_000
  config.evaluators.val.ops = "decode|pad"
  config.evaluators.val.batch_size = 500
  config.evaluators.val.every_steps = 312  # an epoch
  config.evaluators.val.num_workers = 0
  config.evaluators.pictures.every_steps = 0


def _without_recipe(config: Any) -> None:
  plain = common.get_config()
  config.augment = plain.augment
  config.ema_decay = 0.0
  if "stoch_depth" in config.model:
    config.model.stoch_depth = 0.0
  config.data.ops = "decode|pad|flip"
  config.data.repeats = 1
