"""The vision MLPs on ImageNet under DeiT's recipe, as each family's authors changed it.

python train.py --config=configs/deit.py:conv_mlp-S --workdir=gs://BUCKET/conv-mlp-s

The argument is FAMILY-VARIANT. Published top-1 at 224 px, without distillation; none was trained here:

  mixer-B/16           77.2            CCS (arXiv:2106.14882), the table that compares it with Mixer
  ccs-mixer-B/16, ccs-res_mlp-36  79.8 80.6  the same: circulant token mixing
  res_mlp-12           76.6            facebookresearch/deit, issue 106
  conv_mlp-S, M, L     76.8 79.0 80.2  SHI-Labs/Convolutional-MLPs, README
  cycle_mlp-B1 … B5    78.9 81.6 82.4 83.0 83.2  ShoufaChen/CycleMLP, README
  cycle_mlp-T, S, B    81.3 82.9 83.4  the same
  s2_mlp-wide, deep    80.0 80.7       S²-MLP (arXiv:2106.07477)
  smlp_net-T*, T, S, B 81.3 81.9 83.1 83.4  arXiv:2109.05422 (T*); microsoft/SPACH, README
  spach-MS-XXS/conv, attn, mlp        73.1 65.4 74.5       microsoft/SPACH, README; of the
  spach-MS-S/conv, attn, mlp, hybrid  81.6 82.9 82.1 83.7  other variants of spach none
  spach-MS-S+/hybrid                  83.9                 was published there
  hire_mlp-T, S, B, L  79.7 82.1 83.2 83.8  ggjy/Hire-Wave-MLP.pytorch, README
  ms_mlp-T, S, B       82.1 83.4 83.8  JegZheng/MS-MLP, README

A setting that a source leaves open is DeiT's (facebookresearch/deit, main.py); what was open is said below. DeiT's code
keeps an average of the parameters, but its numbers are those of the parameters themselves: here only ConvMLP keeps one.
Data, and what differs from DeiT's code: docs/pretrain.md. Other lengths, before cooldown: configs/deit.py:res_mlp-12,epochs=100.
"""

from collections.abc import Callable
from typing import Any

from mixer_jax.configs import common
from mixer_jax.errors import InputError


def get_config(arg: str = "mixer-B/16"):
  given = common.parse_arg(arg, variant="mixer-B/16", epochs="")
  circulant = given["variant"].startswith("ccs-")
  family, _, variant = given["variant"].removeprefix("ccs-").partition("-")
  recipes = {"mixer": _ccs, "res_mlp": _ccs} if circulant else _FAMILIES
  if family not in recipes or not variant:
    known = ", ".join(f"{name}-VARIANT" for name in _FAMILIES)
    raise InputError(
      f"{given['variant']!r} is unknown; known: {known}, ccs-mixer-B/16, ccs-res_mlp-36."
    )
  config = recipe(family)
  config.model.variant = variant
  recipes[family](config)
  if given["epochs"]:
    config.total_epochs = common.number("epochs", given["epochs"]) + config.schedule.cooldown_epochs
  return config


def recipe(family: str) -> Any:
  """Returns DeiT's own settings, at its batch of 1024."""
  config = common.get_config(family)
  config.batch_size = 1024
  config.learning_rate = 1e-3  # 5e-4 for each 512 images
  config.total_epochs = 300.0
  config.loss = "softmax_xent"
  config.normalize = "imagenet"
  if "stoch_depth" in config.model:
    config.model.stoch_depth = 0.1
    config.model.stoch_depth_rescale = True

  config.data.ops = (
    "decode(mode='pillow')|random_resized_crop|flip|timm_randaugment('rand-m9-mstd0.5-inc1')"
  )
  config.data.repeats = 3
  config.data.split_copies = True
  config.data.drop_remainder = True
  config.data.num_workers = 16
  config.augment.erasing_p = 0.25
  config.augment.label_smoothing = 0.1
  config.augment.mixup_p = 0.8
  config.augment.cutmix_p = 1.0
  config.augment.pairing = "flip"

  config.optimizer.weight_decay = 0.05
  config.optimizer.weight_decay_on = "multidimensional"
  config.optimizer.clip_norm = None
  config.schedule.warmup_steps = None
  config.schedule.warmup_epochs = 5.0
  config.schedule.warmup_start = 1e-6
  config.schedule.decay = "cosine"
  config.schedule.decay_from = "start"
  config.schedule.cosine_end = 1e-5
  config.schedule.every = "epoch"
  config.schedule.lag = 1

  _evaluate(config, crop_pct=0.875)
  config.evaluators.val.num_workers = 8
  return config


def _evaluate(config: Any, crop_pct: float) -> None:
  config.evaluators.val.ops = (
    f"decode(mode='pillow')|resize_short(crop_pct={crop_pct})|central_crop(rounding='even')"
  )


def _mixer(config: Any) -> None:
  """arXiv:2106.14882, section 4: AdamW from 1e-3 to 1e-5, decay 0.05, 300 epochs, DeiT's augmentation.

  Open: the batch, the rate of drop path, warm-up, the initial parameters, and which GELU.
  """
  config.model.gelu = "erf"


def _ccs(config: Any) -> None:
  """Circulant token mixing: `_mixer`'s recipe for both models, with eight vectors."""
  _mixer(config)
  config.model.token_mixing = "circulant"
  config.model.channel_groups = 8


def _res_mlp(config: Any) -> None:
  """Issue 106, for the variant 12 without distillation, in float32; issue 112: apex's FusedLAMB.

  Open: the ends of the schedule, and the drop path of the other variants. Clipping is FusedLAMB's own.
  """
  config.batch_size = 2048
  config.learning_rate = 5e-3
  config.total_epochs = 400.0
  config.model.stoch_depth = 0.05
  config.optimizer.name = "lamb"
  config.optimizer.weight_decay = 0.2
  config.optimizer.clip_norm = 1.0
  _evaluate(config, crop_pct=0.9)


def _conv_mlp(config: Any) -> None:
  """The authors' configuration for timm's training script, which repeats no augmentation; the average is evaluated.

  Theirs: ./dist_classification.sh 8 -c configs/classification/convmlp_s_imagenet.yml

  That script mixes images before it normalises and erases them; here they are erased first, as in DeiT's.
  """
  config.ema_decay = 0.99996
  config.learning_rate = 5e-4
  config.total_epochs = 310.0
  config.data.repeats = 1
  config.schedule.warmup_start = 1e-4
  config.schedule.lag = 0
  config.schedule.cooldown_epochs = 10.0
  _evaluate(config, crop_pct=0.9)


def _cycle_mlp(config: Any) -> None:
  """DeiT's, without the epochs of cooldown, which the authors' loop never reaches. Open: whether T, S and B differ.

  Theirs: python -m torch.distributed.launch --nproc_per_node=8 --use_env main.py --model CycleMLP_B5 --batch-size 128

  Their fractions of the crop, 0.9 and 0.875, stand beside the models; their evaluation takes 0.875 for all.
  """


def _s2_mlp(config: Any) -> None:
  """The paper's optimizer, batch, rates and length are DeiT's. Open: augmentation, drop path, warm-up, the average."""


def _smlp_net(config: Any) -> None:
  """The authors' code, whose variants fix the drop path. Open: the number of devices, with 128 images each.

  Theirs: python -m torch.distributed.launch --nproc_per_node DEVICES --use_env main.py --model smlpnet_tiny --dist-eval

  The paper says batches of 1024 and names no erasing, which the code does by default. T*, which the code lacks, is as T.
  """
  config.model.stoch_depth = {"S": 0.2, "B": 0.3}.get(config.model.variant, 0.0)
  config.schedule.warmup_epochs = 20.0


def _spach(config: Any) -> None:
  """The authors' code. Open: the number of devices, with 128 images each.

  Theirs: as `_smlp_net`'s with another --model, spach_ms_s_patch4_224_hybrid and the like.

  There gamma decays, too, which has three axes there and one here.
  """
  config.schedule.warmup_epochs = 20.0


def _hire_mlp(config: Any) -> None:
  """The authors' README and code: T in batches of 2048 without drop path, B in batches of 1024 with 0.2; no average.

  Theirs: python -m torch.distributed.launch --nproc_per_node=8 train.py --model hire_mlp_tiny --batch-size 256 --apex-amp
  --drop-path 0.0 --epochs 300 --warmup-epochs 20 --warmup-lr 1e-6 --no-model-ema (B: --batch-size 128 --drop-path 0.2)

  Open: S and L, which are trained as B here, with T's drop path for S.
  """
  tiny = config.model.variant == "T"
  config.batch_size = 2048 if tiny else 1024
  config.learning_rate = 2e-3 if tiny else 1e-3
  config.total_epochs = 310.0
  config.model.stoch_depth = 0.2 if config.model.variant in ("B", "L") else 0.0
  config.schedule.warmup_epochs = 20.0
  config.schedule.cooldown_epochs = 10.0


def _ms_mlp(config: Any) -> None:
  """The authors' code: no augmentation is repeated, the learning rate changes with every update, no average.

  Theirs: python -m torch.distributed.launch --nproc_per_node=8 --nnodes=1 main.py --batch-size 128 --cache-mode no
  --cfg configs/msmlp_tiny_patch4_shift5_224.yaml (B: --batch-size 64 --accumulation-steps 2). Throughput by their README, on
  a device that it does not name: 792, 484 and 367 images/s for T, S and B.

  The paper has drop path 0.2, 0.3 and 0.5, the code's files 0.1, 0.4 and 0.5; warm-up starts at 1e-5 in the paper.
  """
  config.model.stoch_depth = {"S": 0.4, "B": 0.5}.get(config.model.variant, 0.1)
  config.data.repeats = 1
  config.optimizer.clip_norm = 5.0
  config.schedule.warmup_epochs = 20.0
  config.schedule.every = "step"


_FAMILIES: dict[str, Callable[[Any], None]] = {
  "mixer": _mixer,
  "res_mlp": _res_mlp,
  "conv_mlp": _conv_mlp,
  "cycle_mlp": _cycle_mlp,
  "s2_mlp": _s2_mlp,
  "smlp_net": _smlp_net,
  "spach": _spach,
  "hire_mlp": _hire_mlp,
  "ms_mlp": _ms_mlp,
}
