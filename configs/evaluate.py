"""A weights file put to use as it is: its own model, image size and classes.

It is evaluated as its published accuracy was, if that is known (weights.RELEASED), else as in table 3.

python eval.py --weights=imagenet1k/Mixer-B_16 --dataset=imagenet2012
python -m mixer_jax.tools.predict --weights=imagenet1k/Mixer-B_16 IMAGE

Paper, top-1 of imagenet1k/Mixer-B_16: ImageNet 76.44 %, ReaL 82.36 %.
"""

from mixer_jax.configs import common


def get_config(arg: str = "weights=imagenet1k/Mixer-B_16"):
  from mixer_jax import inference
  from mixer_jax.training import init_from

  source = common.parse_arg(arg, weights="")["weights"]
  origin = init_from.describe(source)
  config = common.get_config(origin.family)
  config.update(inference.config_of_weights(source, origin))
  return config
