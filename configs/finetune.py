"""Fine-tuning as in the paper (section 3, appendix C): momentum SGD, batch 512, cosine decay, new head.

python train.py --workdir=DIR --config=configs/finetune.py:model=B/16,dataset=cifar10,size=448,lr=0.03

  model       B/16 or L/16, which the authors pre-trained on ImageNet-21k. Give this or `weights`
  weights     a released name, an address, a file or the workdir of a run (docs/weights.md)
  dataset     a name in mixer_jax/data/datasets.py (cifar10, oxford_iiit_pet, vtab/dmlab, …), or the directory
              of a prepared data set
  size        image size in pixels, SIDE or HEIGHTxWIDTH. Default: the size of pre-training. K times that size
              is resized as in appendix C, any other size by interpolation
  lr          peak learning rate. The paper's grid is in mixer_jax/tools/sweep/protocol.py
  steps       training steps. Default: the paper's for the data set
  resize      auto, paper (appendix C) or interpolate
  data_dir    directory where TFDS keeps its data
  mixup       p of Beta(p, p)
  polyak      decay of an average of the parameters, which is then what is evaluated
  crop        random, or inception
  eval_split  test: train on all training images and evaluate on the test split. dev: train on the part of them
              that the paper searches its grid with, and evaluate on the development split

mixup, polyak and crop=inception are those of appendix A, where they did not help. There is no mixup by default, and
never stochastic depth or weight decay. Images are squashed to one size, cropped at random and mirrored. VTAB-1k's
images are only squashed, because a crop may change their labels. A Vision Transformer or a ResNet is fine-tuned in
the same way. The paper reports for Mixer-B/16 of ImageNet-21k at 224 px: ImageNet 80.64 %, mean of five data sets
92.50 % (table 3).
"""

from mixer_jax.configs import common
from mixer_jax.errors import InputError

DEFAULTS = {
  "model": "",
  "weights": "",
  "dataset": "cifar10",
  "size": "",
  "lr": "0.03",
  "steps": "",
  "eval_split": "test",
  "resize": "auto",
  "data_dir": "",
  "mixup": "0",
  "polyak": "0",
  "crop": "random",
}
STEPS = {
  "imagenet2012": 20_000, "cifar10": 10_000, "cifar100": 10_000, "oxford_iiit_pet": 500,
  "oxford_flowers102": 500,
}  # fmt: skip
VTAB_STEPS = 2500
OTHER_STEPS = 500


def get_config(arg: str = ""):
  from mixer_jax import schema, weights
  from mixer_jax.data import sources
  from mixer_jax.training import init_from

  given = common.parse_arg(arg, **DEFAULTS)
  source = _weights(given)
  spec = init_from.describe(source)
  config = common.get_config(spec.family)
  height, width = schema.sides(given["size"]) if given["size"] else spec.sides()
  config.image_size = schema.joined(height, width)
  config.image_channels = spec.input_shape[-1]

  config.batch_size = 512
  config.learning_rate = common.number("lr", given["lr"])
  config.loss = "softmax_xent"
  config.init.weights = source
  config.init.resize = given["resize"]
  if known := weights.known(source):
    config.normalize = known.normalize
  config.model.update(init_from.fields_at(spec, (height, width), given["resize"]))

  config.data.data_dir = given["data_dir"] or None
  dataset = sources.describe(given["dataset"], config.data.data_dir)
  train, evaluated = _splits(given["eval_split"], dataset)
  config.num_classes = dataset.num_classes
  config.data.dataset = given["dataset"]
  config.data.split, config.evaluators.val.split = train, evaluated
  config.data.num_examples = dataset.splits[train].num_examples
  config.evaluators.val.num_examples = dataset.splits[evaluated].num_examples
  config.data.labels_per_image = config.evaluators.val.labels_per_image = dataset.labels_per_image
  if dataset.labels_per_image > 1:
    config.loss = "sigmoid_xent"
  vtab = given["dataset"].startswith("vtab/")
  resize = f"decode|resize({height}{f', {width}' * (width != height)})"
  config.data.ops = _training_ops(given["crop"], resize if vtab else None, dataset.mirror)
  config.evaluators.val.ops = resize if vtab else "decode|resize|central_crop"
  config.evaluators.val.batch_size = 512

  default = VTAB_STEPS if vtab else STEPS.get(given["dataset"], OTHER_STEPS)
  config.total_steps = int(common.number("steps", given["steps"] or default))
  config.augment.mixup_p = common.number("mixup", given["mixup"])
  config.optimizer.name = "momentum"
  config.ema_decay = common.number("polyak", given["polyak"])
  config.schedule.decay = "cosine"
  # The paper's 500 steps; the shortest runs take fewer, as in big_vision's configs/transfer.py.
  config.schedule.warmup_steps = min(500, config.total_steps // 5)
  config.evaluators.val.every_steps = max(config.total_steps // 5, 1)
  config.checkpoint.every_steps = max(config.total_steps // 5, 1)
  config.log.every_steps = min(config.log.every_steps, max(config.total_steps // 20, 1))
  return config


def _training_ops(crop: str, only: str | None, mirror: bool) -> str:
  if crop not in ("random", "inception"):
    raise InputError(f"crop={crop} is neither random nor inception.")
  if crop == "inception":
    return "decode|inception_crop" + "|flip" * mirror
  return only or "decode|resize|random_crop" + "|flip" * mirror


def _weights(given: dict[str, str]) -> str:
  if given["weights"] and given["model"]:
    raise InputError("give model=… or weights=…, not both: weights determine the model.")
  if given["weights"]:
    return given["weights"]
  return f"imagenet21k/Mixer-{(given['model'] or 'B/16').replace('/', '_')}"


def _splits(eval_split: str, dataset) -> tuple[str, str]:
  """Returns the names of the splits to train on and to evaluate on."""
  if eval_split not in ("test", "dev"):
    raise InputError(f"eval_split={eval_split} is neither test nor dev.")
  train, evaluated = ("tune", "dev") if eval_split == "dev" else ("train", dataset.test or "test")
  for name in (train, evaluated):
    if name not in dataset.splits:
      raise InputError(
        f"the data set has no split {name!r}; it has {', '.join(dataset.splits)}. Prepare it with --held_out=10%, or "
        "set config.data.split and config.evaluators.val.split with their num_examples by hand."
      )
  return train, evaluated
