"""A small Mixer on Fashion-MNIST for ten epochs, with DeiT's recipe and without it, on a CPU.

python train.py --config=configs/fashion_mnist.py:recipe=deit --workdir=DIR
python train.py --config=configs/fashion_mnist.py:recipe=none --workdir=DIR

  recipe  deit: crops, RandAugment, erasing, mixup, CutMix, smoothing, three copies of an image in a batch, drop path
          and an average of the parameters; none: mirrored at random, otherwise unchanged. Optimizer and schedule are the same.

Top-1 of 10 000 test images: 71.45 % with the recipe, 88.58 % without (docs/results).

Images come from Debian's package (apt install dataset-fashion-mnist) and are prepared on the first run.
"""

from configs import common, deit
from mixer_jax.errors import InputError

MODEL = dict(patch_size=4, num_blocks=4, hidden_dim=32, tokens_mlp_dim=32, channels_mlp_dim=128)


def get_config(arg: str = "recipe=deit"):
  recipe = common.parse_arg(arg, recipe="deit")["recipe"]
  if recipe not in ("deit", "none"):
    raise InputError(f"recipe {recipe!r} is unknown; known: deit, none.")
  config = deit.get_config("mixer-B/16")
  config.model.variant = None
  config.model.update(MODEL)
  config.image_size = 28
  config.image_channels = 1
  config.normalize = "unit"
  config.num_classes = 10
  config.batch_size = 192
  config.learning_rate = 3e-3
  config.total_epochs = 10.0
  config.ema_decay = 0.999

  config.data.dataset = "fashion_mnist_debian"
  config.data.num_examples = 60_000
  config.data.num_workers = 0
  config.evaluators.val.split = "test"
  config.evaluators.val.num_examples = 10_000
  config.evaluators.val.ops = "decode"
  config.evaluators.val.batch_size = 500
  config.evaluators.val.every_steps = 312  # an epoch
  config.evaluators.val.num_workers = 0
  config.schedule.warmup_epochs = 1.0
  config.schedule.every = "step"
  config.schedule.lag = 0
  if recipe == "none":
    _without(config)
  return config


def _without(config) -> None:
  plain = common.get_config()
  config.augment = plain.augment
  config.ema_decay = 0.0
  config.model.stoch_depth = 0.0
  config.data.ops = "decode|flip"
  config.data.repeats = 1
