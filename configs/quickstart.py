"""A small Mixer, or one of its relatives, on scikit-learn's handwritten digits, from scratch, on a CPU.

python train.py --config=configs/quickstart.py --workdir=/tmp/mixer-quickstart
python train.py --config=configs/quickstart.py:conv_mlp --workdir=/tmp/conv-mlp-quickstart
"""

from mixer_jax.configs import common
from mixer_jax.errors import InputError

MODELS = {
  "mixer": dict(
    patch_size=4, num_blocks=4, hidden_dim=64, tokens_mlp_dim=32, channels_mlp_dim=256
  ),
  "res_mlp": dict(patch_size=4, num_blocks=4, hidden_dim=64, mlp_dim=256, layer_scale_init=0.1),
  "conv_mlp": dict(
    stem_channels=16, num_conv_blocks=1, num_blocks=(2, 2, 1), widths=(32, 48, 64), mlp_ratios=(2, 2, 2)
  ),
  "s2_mlp": dict(patch_size=4, num_blocks=4, hidden_dim=64, mlp_dim=256),
}  # fmt: skip


def get_config(model: str = "mixer"):
  if model not in MODELS:
    raise InputError(f"quickstart.py:{model} is unknown; known: {', '.join(MODELS)}.")
  config = common.get_config(model)
  config.image_size = 16
  config.num_classes = 10
  config.batch_size = 128
  config.total_epochs = 54.0
  config.learning_rate = 0.003
  config.loss = "softmax_xent"

  config.model.update(MODELS[model])
  config.model.stoch_depth = 0.1

  config.data.dataset = "digits"
  config.data.num_examples = 1437
  config.data.ops = "decode|inception_crop(area_min=80)"  # mirrored digits are not digits

  config.evaluators.val.split = "test"
  config.evaluators.val.num_examples = 360
  config.evaluators.val.ops = "decode|resize(16)"
  config.evaluators.val.batch_size = 360
  config.evaluators.val.every_steps = 200
  config.evaluators.pictures.every_steps = 1000  # which is at the end

  config.optimizer.weight_decay = 0.1
  config.schedule.warmup_steps = 50

  config.checkpoint.every_steps = 100
  config.log.every_steps = 20
  return config
