"""A weights file put to use as it is: its own model, image size and classes.

It is evaluated as its published accuracy was, if that is known (weights.RELEASED), else as in table 3.

python eval.py --weights=imagenet1k/Mixer-B_16 --dataset=imagenet2012
python -m mixer_jax.tools.predict --config=configs/evaluate.py:weights=imagenet1k/Mixer-B_16 \\
  --weights=imagenet1k/Mixer-B_16 IMAGE

Paper, top-1 of imagenet1k/Mixer-B_16: ImageNet 76.44 %, ReaL 82.36 %.
"""

from typing import Any

from mixer_jax import schema
from mixer_jax.configs import common


def get_config(arg: str = "weights=imagenet1k/Mixer-B_16"):
  return make_config(common.parse_arg(arg, weights="")["weights"])


def make_config(source: str) -> Any:
  """Returns the configuration of weights: a released name, an address or a file (docs/weights.md)."""
  from mixer_jax import weights
  from mixer_jax.training import init_from

  origin = init_from.describe(source)
  config = common.get_config(origin.family)
  config.image_size = schema.joined(*origin.sides())
  config.image_channels = origin.input_shape[-1]
  config.num_classes = origin.fields["num_classes"]
  config.loss = "softmax_xent"
  config.model.update({k: v for k, v in origin.fields.items() if k != "num_classes"})
  config.evaluators.val.ops = "decode|resize_small|central_crop"
  if released := weights.RELEASED.get(source):
    config.normalize = released.normalize
    config.evaluators.val.ops = released.crop or config.evaluators.val.ops
  config.evaluators.val.batch_size = 256
  return config
