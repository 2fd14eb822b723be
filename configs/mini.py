"""The paper in miniature: small Mixers, ViTs and ResNets on small real images, on a CPU (docs/paper.md).

python train.py --config=configs/mini.py:L,model=vit,percent=10 --workdir=DIR

  S, M, L  the size
  model    mixer, vit or resnet
  percent  of the training images; the number of steps is the same
  order    permutation of the input as in the paper's figure 4: patches or pixels
  dataset  name or directory of a prepared data set of small images
  fewshot  data set of the linear few-shot evaluation
  steps    of the run
  points   evaluations, spread over the run
"""

from typing import Any

from mixer_jax.configs import common
from mixer_jax.errors import InputError

IMAGE_SIZE, PATCH_SIZE = 28, 4
MOST_EVALUATED = 1000

_MIXER = {
  "S": dict(num_blocks=2, hidden_dim=16, tokens_mlp_dim=16, channels_mlp_dim=64),
  "M": dict(num_blocks=3, hidden_dim=24, tokens_mlp_dim=24, channels_mlp_dim=96),
  "L": dict(num_blocks=4, hidden_dim=32, tokens_mlp_dim=32, channels_mlp_dim=128),
}
_VIT = {
  "S": dict(num_blocks=2, hidden_dim=16, mlp_dim=64, num_heads=2),
  "M": dict(num_blocks=3, hidden_dim=24, mlp_dim=96, num_heads=2),
  "L": dict(num_blocks=4, hidden_dim=32, mlp_dim=128, num_heads=2),
}
_RESNET = {
  "S": dict(num_units=(1, 1), width=8, num_groups=4),
  "M": dict(num_units=(2, 1), width=12, num_groups=4),
  "L": dict(num_units=(2, 2), width=16, num_groups=4),
}
_PATCH = dict(patch_size=PATCH_SIZE)
MODELS = {
  "mixer": {size: fields | _PATCH for size, fields in _MIXER.items()},
  "vit": {size: fields | _PATCH for size, fields in _VIT.items()},
  "resnet": _RESNET,
}
"""Family -> size -> fields of the model."""

_ORDERS = {"": "", "patches": f"|permute_patches({PATCH_SIZE})", "pixels": "|permute_pixels"}


def get_config(arg: str = ""):
  from mixer_jax.data import sources

  given = common.parse_arg(
    arg, variant="L", model="mixer", percent="100", order="", dataset="digits_0_4",
    fewshot="digits_5_9", steps="240", points="1",
  )  # fmt: skip
  config = _model(given)
  order = _choose(_ORDERS, given["order"], "order")
  dataset = sources.describe(given["dataset"])
  config.image_size = IMAGE_SIZE
  config.num_classes = dataset.num_classes
  config.batch_size = 64
  config.total_steps = int(common.number("steps", given["steps"]))
  config.learning_rate = 0.003
  config.loss = "softmax_xent"

  config.data.dataset = given["dataset"]
  config.data.num_examples = dataset.splits["train"].num_examples
  config.data.subset_percent = common.number("percent", given["percent"])
  config.data.ops = f"decode|inception_crop(area_min=60){order}"

  num_test = dataset.splits["test"].num_examples
  config.evaluators.val.split = f"test[:{MOST_EVALUATED}]" if num_test > MOST_EVALUATED else "test"
  config.evaluators.val.num_examples = min(num_test, MOST_EVALUATED)
  config.evaluators.val.ops = f"decode|resize({IMAGE_SIZE}){order}"
  config.evaluators.val.batch_size = 500
  config.evaluators.val.every_steps = config.total_steps // int(
    common.number("points", given["points"])
  )

  val = config.evaluators.val
  config.evaluators.fewshot = {
    "type": "fewshot", "dataset": given["fewshot"], "ops": val.ops, "every_steps": val.every_steps,
    "batch_size": val.batch_size,
  }  # fmt: skip

  config.optimizer.weight_decay = 0.03
  config.schedule.warmup_steps = config.total_steps // 10
  config.checkpoint.every_steps = config.total_steps
  config.checkpoint.keep_newest, config.checkpoint.keep_best = 1, 0
  config.log.every_steps = max(config.total_steps // 20, 1)
  config.evaluators.pictures.every_steps = 0
  return config


def _model(given: dict[str, str]) -> Any:
  """Returns the schema with the model's fields filled in."""
  sizes = _choose(MODELS, given["model"], "model")
  config = common.get_config(given["model"])
  for name, value in _choose(sizes, given["variant"], "size").items():
    config.model[name] = value
  return config


def _choose(known: dict[str, Any], name: str, what: str) -> Any:
  if name not in known:
    raise InputError(
      f"{what} {name!r} is unknown; known: {', '.join(k or '(none)' for k in known)}."
    )
  return known[name]
