"""A small MLP-3D on moving Fashion-MNIST, whose classes differ only in the order of four motions (docs/video.md).

python -m benchmarks.moving_fashion --workdir=workdir/moving_fashion    # makes the videos, prepares them, trains both:
python train.py --config=configs/moving_fashion.py:mixed --workdir=DIR
python train.py --config=configs/moving_fashion.py:alone --workdir=DIR

  mixed   groups of two and four tokens in time, all four kinds
  alone   groups of one token: nothing tells it the order
  epochs  of the run
"""

from mixer_jax.configs import common
from mixer_jax.errors import InputError

ARRANGEMENTS = {
  "mixed": ("short2", "long2", "window4", "token4+short4"),
  "alone": ("short1", "short1", "short1", "short1+short1"),
}


def get_config(arg: str = "mixed"):
  given = common.parse_arg(arg, variant="mixed", epochs="6")
  if (mixing := given["variant"]) not in ARRANGEMENTS:
    raise InputError(f"{mixing!r} is unknown; known: {', '.join(ARRANGEMENTS)}.")
  config = common.get_config("mlp3d")
  config.model.arrangement = ARRANGEMENTS[mixing]
  config.model.widths = (16, 24, 32, 48)
  config.model.mlp_ratios = (2, 2, 2, 2)
  config.frames = 16
  config.image_size = 32
  config.image_channels = 1
  config.num_classes = 6
  config.batch_size = 60
  config.total_epochs = common.number("epochs", given["epochs"])
  config.learning_rate = 3e-3
  config.loss = "softmax_xent"

  config.data.dataset = "moving_fashion"
  config.data.num_examples = 1200
  config.data.ops = "segments|decode"
  val = config.evaluators.val
  val.split, val.num_examples = "test", 600
  val.ops = "segments(views=1)|decode"
  val.batch_size = 100
  val.every_steps = 40

  config.optimizer.weight_decay = 0.01
  config.schedule.warmup_steps = 20
  config.schedule.decay = "cosine"
  config.log.every_steps = 10
  config.evaluators.pictures.every_steps = 0
  return config
