"""Mixer on JFT-300M, tables 2 to 4 of the paper.

Paper, ImageNet top-1 after fine-tuning at 224 / cost in TPUv3-core-days:
  S/32   5 epochs  68.70 %    10
  S/16   5 epochs  73.83 %    30
  B/32   7 epochs  75.53 %    50
  B/16   7 epochs  80.00 %    80
  L/32   7 epochs  80.67 %   120
  L/16   7 epochs  84.05 %   230
  L/16  14 epochs  84.82 %   450
  H/14  14 epochs  86.32 %  1010

python train.py --config=configs/jft.py:H/14 --workdir=gs://BUCKET/jft-h14
python train.py --config=configs/jft.py:L/16,epochs=14 --workdir=gs://BUCKET/jft-l16-14ep

Figure 2, right, trains on random subsets for as many steps: subset=30,epochs=23 or subset=10,epochs=70
or subset=3,epochs=233 (per cent of the images).

JFT-300M is not public (about 300 M images, 18 291 classes, several labels an image). Without data the
configuration can be built and planned. A table of images with several labels takes its place (docs/pretrain.md).
"""

from mixer_jax.configs import common

# Table 4's rows, by the letter of the size.
ROWS = {
  "S": {"epochs": "5", "learning_rate": 0.003},
  "B": {"epochs": "7", "learning_rate": 0.003},
  "L": {"epochs": "7", "learning_rate": 0.001},
  "H": {"epochs": "14", "learning_rate": 0.001},
}


def get_config(arg: str = "B/16"):
  given = common.parse_arg(arg, variant="B/16", epochs="", subset="100")
  row = ROWS[common.size_letter(given["variant"], ROWS)]
  config = common.get_config()
  config.num_classes = 18_291
  config.total_epochs = common.number("epochs", given["epochs"] or row["epochs"])
  config.batch_size = 4096
  config.learning_rate = row["learning_rate"]
  config.augment.mixup_p = 0.0

  config.model.variant = given["variant"]
  config.model.stoch_depth = 0.0
  config.model.dropout_rate = 0.0
  config.model.head_bias_init = -10.0

  config.data.dataset = "jft300m"
  config.data.split = "train[50000:]"
  config.data.labels_per_image = 16
  config.data.num_examples = 300_000_000 - 50_000
  config.data.subset_percent = common.number("subset", given["subset"])
  config.data.ops = "decode|inception_crop|flip"
  config.data.num_workers = 16

  config.evaluators.val.split = "train[:50000]"
  config.evaluators.val.labels_per_image = 16
  config.evaluators.val.num_examples = 50_000
  config.evaluators.val.num_workers = 8

  config.optimizer.weight_decay = 0.03
  config.schedule.warmup_steps = 10_000
  return config
