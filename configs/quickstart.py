"""A small Mixer on scikit-learn's handwritten digits, from scratch, on a CPU.

python train.py --config=configs/quickstart.py --workdir=/tmp/mixer-quickstart
"""

from configs import common


def get_config():
  config = common.get_config()
  config.image_size = 16
  config.num_classes = 10
  config.batch_size = 128
  config.total_epochs = 54.0
  config.learning_rate = 0.003
  config.loss = "softmax_xent"

  config.model.patch_size = 4
  config.model.num_blocks = 4
  config.model.hidden_dim = 64
  config.model.tokens_mlp_dim = 32
  config.model.channels_mlp_dim = 256
  config.model.stoch_depth = 0.1

  config.data.dataset = "digits"
  config.data.num_examples = 1437
  config.data.ops = "decode|inception_crop(area_min=80)"  # mirrored digits are not digits

  config.evaluators.val.split = "test"
  config.evaluators.val.num_examples = 360
  config.evaluators.val.ops = "decode|resize(16)"
  config.evaluators.val.batch_size = 360
  config.evaluators.val.every_steps = 200

  config.optimizer.weight_decay = 0.1
  config.schedule.warmup_steps = 50

  config.checkpoint.every_steps = 100
  config.log.every_steps = 20
  return config
