"""The paper's baselines, Vision Transformer and BiT ResNet, pre-trained in the same loop (table 3).

python train.py --config=configs/baselines.py:ViT-B/16 --workdir=gs://BUCKET/imagenet-vit-b16
python train.py --config=configs/baselines.py:BiT-R152x2,data=jft --workdir=gs://BUCKET/jft-r152x2

  ViT-B/32 ViT-B/16 ViT-L/32 ViT-L/16 ViT-H/14 BiT-R50x1 BiT-R50x2 BiT-R101x1 BiT-R152x1 BiT-R152x2 BiT-R152x4
  BiT-R200x3
  data    imagenet, imagenet21k or jft: everything about the data is that configuration's
  epochs  default: the paper's
  subset  of JFT-300M, per cent of the images (figure 2, right)

Paper, ImageNet top-1 after fine-tuning at 224: ViT-B/16 79.67 % (ImageNet), 84.59 % (ImageNet-21k); on JFT-300M
ViT-L/16 85.63 %, ViT-H/14 86.65 %, BiT-R50x1 73.69 %, BiT-R152x2 83.34 %, BiT-R200x3 84.73 %.

The paper gives the baselines' epochs, and of their other settings none. On JFT-300M they are here those of the
Vision Transformer's paper (arXiv:2010.11929, table 3), whose figures these rows are; it has no R200x3 and
R152x4, which take R152x2's. On ImageNet and ImageNet-21k they are those of the Mixer of that size (table 4), the
extra regularisation included; for a ResNet those of Mixer-B (R50) or Mixer-L, without stochastic depth.
"""

from mixer_jax.configs import common, imagenet, imagenet21k, jft
from mixer_jax.errors import InputError

# On JFT-300M: epochs of the paper's table 3, learning rate of arXiv:2010.11929, table 3.
JFT_ROWS = {
  "ViT-B/32": ("7", 8e-4),
  "ViT-B/16": ("7", 8e-4),
  "ViT-L/32": ("7", 6e-4),
  "ViT-L/16": ("14", 4e-4),
  "ViT-H/14": ("14", 3e-4),
  "BiT-R50x1": ("7", 1e-3),
  "BiT-R50x2": ("7", 1e-3),
  "BiT-R101x1": ("7", 8e-4),
  "BiT-R152x1": ("7", 6e-4),
  "BiT-R152x2": ("14", 6e-4),
  "BiT-R152x4": ("14", 6e-4),
  "BiT-R200x3": ("14", 6e-4),
}
FAMILIES = {"ViT": "vit", "BiT": "resnet"}
DATA = {"imagenet": imagenet, "imagenet21k": imagenet21k, "jft": jft}


def get_config(arg: str = "ViT-B/16"):
  given = common.parse_arg(arg, variant="ViT-B/16", data="imagenet", epochs="", subset="")
  name, data = given["variant"], given["data"]
  if name not in JFT_ROWS or data not in DATA:
    raise InputError(
      f"{name!r} with data={data} is unknown; known: {', '.join(JFT_ROWS)}, with data="
      f"{' or '.join(DATA)}."
    )
  title, _, variant = name.partition("-")
  epochs, learning_rate = JFT_ROWS[name]
  passed = {"epochs": given["epochs"], "subset": given["subset"]}
  if data == "jft":
    passed["epochs"] = given["epochs"] or epochs
  like = variant[0] if title == "ViT" else "B" if variant.startswith("R50") else "L"
  config = DATA[data].get_config(
    ",".join([f"{like}/16", *(f"{k}={v}" for k, v in passed.items() if v)])
  )

  mixer, config.model = config.model, common.get_config(FAMILIES[title]).model
  config.model.variant = variant
  config.model.head_bias_init = mixer.head_bias_init
  if title == "ViT":
    config.model.stoch_depth, config.model.dropout_rate = mixer.stoch_depth, mixer.dropout_rate
  if data == "jft":
    config.learning_rate, config.optimizer.weight_decay = learning_rate, 0.1
  return config
