"""MLP-3D on Kinetics-400, from a CycleMLP of images.

Published, 16 frames at 224 px, 4 × 3 views, top-1 / top-5 (arXiv:2206.06292); none was trained here:

  XS  77.2 / 93.1    S  80.2 / 93.8    M  81.0 / 94.9    L  81.4 / 95.2

python train.py --config=configs/kinetics.py:XS --workdir=gs://BUCKET/mlp3d-xs
python eval.py --workdir=gs://BUCKET/mlp3d-xs --evaluators=views

Known of the recipe: it starts from weights of ImageNet-1k, and the views. The arrangement in time is known of
XS alone. Assumed: all else. That is DeiT's recipe, without repeated augmentation, in batches of 256 for 60 epochs;
clips of every fourth frame; and weights of CycleMLP's B1, B2, B3 and B5, whose widths and depths are assumed, too
(models/mlp_3d.py). Data: docs/video.md. Other lengths: configs/kinetics.py:S,epochs=30.
"""

from typing import Any

from mixer_jax.configs import common, deit
from mixer_jax.errors import InputError

IMAGES = {"XS": "B1", "S": "B2", "M": "B3", "L": "B5"}
"""Size -> the CycleMLP that it starts from."""


def get_config(arg: str = "XS"):
  given = common.parse_arg(arg, variant="XS", epochs="60")
  return recipe(given, "kinetics400", ("window(4)", "window(4, views=1)", "window(4, views=4)"))


def recipe(given: dict[str, str], dataset: str, sampling: tuple[str, str, str]) -> Any:
  """Returns the configuration of an MLP-3D, by what is known and assumed.

  Args:
    given: its size, "variant", and "epochs".
    dataset: name in mixer_jax/data/datasets.py.
    sampling: the frames of a clip to train, to evaluate while training, and to evaluate in several views.
  """
  from mixer_jax.data import datasets

  if (size := given["variant"]) not in IMAGES:
    raise InputError(f"{size!r} is unknown; known: {', '.join(IMAGES)}.")
  config = deit.recipe("mlp3d")
  config.frames = 16
  config.model.variant = {"XS": f"XS/{dataset.partition('_')[0]}"}.get(size, size)
  config.model.step = 3  # CycleMLP's
  config.init.weights = f"cyclemlp/CycleMLP_{IMAGES[size]}"
  config.batch_size = 256
  config.learning_rate = 2.5e-4  # 5e-4 for each 512 clips
  config.total_epochs = common.number("epochs", given["epochs"])

  data, val, entry = config.data, config.evaluators.val, datasets.DATASETS[dataset]
  config.num_classes = entry.num_classes
  data.dataset = dataset
  data.split, data.num_examples = entry.splits["train"]
  data.repeats, data.split_copies = 1, False
  data.ops = f"{sampling[0]}|{data.ops if entry.mirror else data.ops.replace('|flip', '')}"
  val.split, val.num_examples = entry.splits["test"]
  val.ops = f"{sampling[1]}|{val.ops}"
  val.batch_size = 256
  crops = "decode(mode='pillow')|resize_short(crop_pct=1.0)|three_crops"
  config.evaluators.views = val.to_dict() | {"ops": f"{sampling[2]}|{crops}", "every_steps": 0}
  return config
