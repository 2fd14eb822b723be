"""Mixer from scratch on ImageNet (ILSVRC-2012), tables 3 and 4 of the paper.

Paper, ImageNet top-1 after fine-tuning at 224 / cost in TPUv3-core-days (extrapolated there):
  B/16  76.44 %  10
  L/16  71.76 %  40

python train.py --config=configs/imagenet.py:B/16 --workdir=gs://BUCKET/imagenet-b16

Data: python -m mixer_jax.tools.prepare --from_imagenet=DIR (docs/pretrain.md). Training takes train[:99%]; the last
1 % is the development set. Shorter or other sizes: configs/imagenet.py:S/16,epochs=90.
"""

from mixer_jax.configs import common


def get_config(arg: str = "B/16"):
  given = common.parse_arg(arg, variant="B/16", epochs="300")
  config = common.get_config()
  config.total_epochs = common.number("epochs", given["epochs"])
  config.batch_size = 4096
  config.learning_rate = 0.001
  config.augment.mixup_p = 0.5

  config.model.variant = given["variant"]
  config.model.stoch_depth = 0.1
  config.model.dropout_rate = 0.0
  config.model.head_bias_init = -6.9

  config.data.split = "train[:99%]"
  config.data.num_examples = 1_268_355
  config.data.ops = "decode|inception_crop|flip|randaugment(2, 15)"
  config.data.num_workers = 16

  config.evaluators.val.split = "train[99%:]"
  config.evaluators.val.num_examples = 12_812
  config.evaluators.val.num_workers = 8

  config.optimizer.weight_decay = 0.1
  config.schedule.warmup_steps = 10_000
  return config
