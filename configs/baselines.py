"""The paper's baselines, ViT and BiT ResNet, pre-trained as Mixer is (tables 2 and 3, figures 2 to 4).

python train.py --config=configs/baselines.py:L/16,model=vit,data=jft,epochs=14 --workdir=DIR
python train.py --config=configs/baselines.py:R50x1,model=resnet,data=jft --workdir=DIR

  variant  B/32 … H/14, R50x1 … R200x3
  model    vit or resnet
  data     imagenet, imagenet21k or jft
  epochs, subset  as in configs/jft.py

Table 4 has no rows for the baselines. These take the data, schedule and regularisation of the Mixer of their
size (ResNets of 50 layers those of B, deeper ones those of L), so that only the model differs.
"""

from configs import common, imagenet, imagenet21k, jft
from mixer_jax.errors import InputError

DATA = {"imagenet": imagenet, "imagenet21k": imagenet21k, "jft": jft}


def get_config(arg: str = ""):
  given = common.parse_arg(arg, variant="B/16", model="vit", data="imagenet", epochs="", subset="")
  if given["data"] not in DATA:
    raise InputError(f"data={given['data']} is unknown; known: {', '.join(DATA)}.")
  if given["model"] not in ("vit", "resnet"):
    raise InputError(f"model={given['model']} is no baseline; known: vit, resnet.")
  rest = "".join(f",{k}={given[k]}" for k in ("epochs", "subset") if given[k])
  config = DATA[given["data"]].get_config(f"{_mixer_of(given['variant'])}{rest}")
  model = common.get_config(given["model"]).model
  model.variant = given["variant"]
  for name in ("head_bias_init", "stoch_depth", "dropout_rate"):
    if name in model:
      model[name] = config.model[name]
  with config.unlocked():
    config.model = model
  return config


def _mixer_of(variant: str) -> str:
  """Returns the Mixer whose row of table 4 a baseline takes."""
  if variant.startswith("R"):
    return "B/16" if variant.startswith("R50") else "L/16"
  return variant
