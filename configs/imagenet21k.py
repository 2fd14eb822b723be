"""Mixer on ImageNet-21k, tables 3 and 4 of the paper.

Paper, ImageNet top-1 after fine-tuning at 224 / cost in TPUv3-core-days (extrapolated there):
  B/16  80.64 %  150
  L/16  82.89 %  410

python train.py --config=configs/imagenet21k.py:L/16 --workdir=gs://BUCKET/imagenet21k-l16

TFDS has no builder for ImageNet-21k (14 197 122 images, 21 843 classes): prepare your own copy under this name
(docs/pretrain.md). The first 51 200 images are held out. Without data the configuration can be built and planned.
Shorter: configs/imagenet21k.py:L/16,epochs=90.
"""

from mixer_jax.configs import common

# Table 4's rows: mixup and magnitude of RandAugment, by the letter of the size.
ROWS = {"B": {"mixup_p": 0.2, "magnitude": 10}, "L": {"mixup_p": 0.5, "magnitude": 20}}


def get_config(arg: str = "B/16"):
  given = common.parse_arg(arg, variant="B/16", epochs="300")
  row = ROWS[common.size_letter(given["variant"], ROWS)]
  config = common.get_config()
  config.num_classes = 21_843
  config.total_epochs = common.number("epochs", given["epochs"])
  config.batch_size = 4096
  config.learning_rate = 0.001
  config.augment.mixup_p = row["mixup_p"]

  config.model.variant = given["variant"]
  config.model.stoch_depth = 0.1
  config.model.dropout_rate = 0.0
  config.model.head_bias_init = -10.0

  config.data.dataset = "imagenet21k"
  config.data.split = "train[51200:]"
  config.data.num_examples = 14_197_122 - 51_200
  config.data.ops = f"decode|inception_crop|flip|randaugment(2, {row['magnitude']})"
  config.data.num_workers = 16

  config.evaluators.val.split = "train[:51200]"
  config.evaluators.val.num_examples = 51_200
  config.evaluators.val.num_workers = 8

  config.optimizer.weight_decay = 0.1
  config.schedule.warmup_steps = 10_000
  return config
