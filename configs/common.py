"""The whole schema: every key with its default and its meaning. Other configurations change values.

A key that is not here is an error. Values are those of Mixer-B/16 on ImageNet where the paper gives them.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mixer_jax.errors import InputError


def get_config(model: str = "mixer") -> Any:
  """Returns the schema with its defaults.

  Args:
    model: the model family, whose fields are those of config.model: mixer, vit, resnet.

  Raises:
    InputError: unknown family.
  """
  config = ConfigDict()
  config.seed = 0  # of parameters, order of the data, and all randomness
  config.image_size = 224  # pixels, square
  # Of the pixels: "unit" (−1…1), "zero_one", "imagenet" (timm's), or means and deviations of pixel / 255 of
  # the channels, "0.5,0.5,0.5,0.25,0.25,0.25".
  config.normalize = "unit"
  config.num_classes = 1000
  config.batch_size = 4096  # of all devices together
  config.total_epochs = placeholder(float)
  config.total_steps = placeholder(int)  # instead of total_epochs, if set
  config.grad_accum_steps = 1  # parts that a step takes the batch in; the result is the same
  config.learning_rate = 0.001  # peak
  config.loss = "sigmoid_xent"  # or "softmax_xent"
  config.mixup_p = 0.0  # of Beta(p, p); 0: no mixup
  # Of an average of parameters and batch statistics (EMA, Polyak), which is then what is evaluated,
  # exported and converted: a ← decay·a + (1 − decay)·new at each step, from those at the start; 0: none.
  config.ema_decay = 0.0

  config.model = _model(model)

  config.init = ConfigDict()
  # Start from these: name, address or file (docs/weights.md), or the workdir of a run. None: at random.
  config.init.weights = placeholder(str)
  config.init.resize = "auto"  # to another image size: or "paper" (appendix C), "interpolate"
  config.init.new_head = True  # of zeros; False: keep theirs

  config.data = ConfigDict()
  # Name in mixer_jax/data/datasets.py, TFDS name, directory of a prepared TFDS data set, or "synthetic".
  config.data.dataset = "imagenet2012"
  config.data.data_dir = placeholder(str)  # None: $TFDS_DATA_DIR or ~/tensorflow_datasets
  config.data.split = "train"
  config.data.label = placeholder(str)  # its feature; None: the data set's usual one
  config.data.labels_per_image = 1  # the most that an image has
  config.data.num_examples = 1_281_167  # of the split; so a run is planned without its data
  config.data.subset_percent = 100.0  # train on a random subset; epochs are epochs of the subset
  config.data.subset_seed = 0  # which one
  config.data.ops = "decode|inception_crop|flip"  # mixer_jax/data/ops.py
  config.data.on_bad_record = "stop"  # or "skip": skip and count
  config.data.num_workers = 0  # loader processes; 0: threads

  config.evaluation = ConfigDict()
  config.evaluation.dataset = placeholder(str)  # None: data.dataset
  config.evaluation.split = "validation"
  config.evaluation.label = placeholder(str)
  config.evaluation.labels_per_image = 1
  config.evaluation.num_examples = 50_000
  config.evaluation.ops = "decode|resize_small|central_crop"
  config.evaluation.batch_size = 4096
  config.evaluation.num_workers = 0
  config.evaluation.every_steps = 5000  # each evaluation is followed by a checkpoint

  # Linear few-shot accuracy at each evaluation (docs/evaluate.md); dataset None: none.
  config.fewshot = ConfigDict()
  config.fewshot.dataset = placeholder(str)
  config.fewshot.train_split = "train"
  config.fewshot.test_split = "test"
  config.fewshot.ops = "decode|resize|central_crop"

  config.optimizer = ConfigDict()
  config.optimizer.name = "adam"  # or "momentum"
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.999
  config.optimizer.eps = 1e-8
  config.optimizer.momentum = 0.9
  config.optimizer.accumulator_dtype = "float32"  # of Adam's first moment, or the momentum
  config.optimizer.weight_decay = 0.0
  # A step removes schedule·learning_rate·weight_decay of a kernel ("learning_rate", the paper's
  # numbers) or schedule·weight_decay ("schedule", big_vision's numbers).
  config.optimizer.weight_decay_scale = "learning_rate"
  config.optimizer.clip_norm = 1.0  # global norm of the gradients
  # "REGEX=FACTOR" for names of parameters, first match first; ("head/.*=1", ".*=0") trains the head alone.
  config.optimizer.lr_multipliers = ()

  config.schedule = ConfigDict()
  config.schedule.warmup_steps = 10_000
  config.schedule.decay = "linear"  # or "cosine", "constant"
  config.schedule.linear_end = 1e-5
  config.schedule.linear_end_unit = "peak"  # or "learning_rate": linear_end is a learning rate

  config.checkpoint = ConfigDict()
  config.checkpoint.every_steps = 1000
  config.checkpoint.keep_newest = 2
  config.checkpoint.keep_best = 1  # by top-1 of the evaluation

  config.log = ConfigDict()
  config.log.every_steps = 50
  config.log.plots = True  # pictures at the end of the run

  config.mesh = ConfigDict()
  config.mesh.data = -1  # copies of the state, each on `fsdp` devices; -1: as many as there are
  config.mesh.fsdp = 1  # devices over which a copy's parameters and optimizer state are sharded
  # "REGEX=WHERE" for names of parameters, first match first; WHERE is "replicate", the number of the
  # dimension to cut, or "auto", as without a rule (docs/scale.md).
  config.mesh.rules = ()

  # A trace of these steps, in the workdir (docs/scale.md); first_step None: none.
  config.profile = ConfigDict()
  config.profile.first_step = placeholder(int)
  config.profile.num_steps = 3

  # What a resumed run may have otherwise than the workdir's configuration.
  config.may_change = (
    "grad_accum_steps",
    "data.data_dir",
    "data.on_bad_record",
    "data.num_workers",
    "evaluation.batch_size",
    "evaluation.num_workers",
    "checkpoint",
    "log",
    "mesh",
    "profile",
    "may_change",
  )
  return config.lock()


def _model(name: str) -> ConfigDict:
  """Returns the section of a model family: mixer_jax/models explains every field."""
  if name not in _FAMILIES:
    raise InputError(f"model family {name!r} is unknown; known: {', '.join(_FAMILIES)}.")
  model = ConfigDict()
  model.name = name
  model.variant = placeholder(str)  # a published size; or None and every size below
  _FAMILIES[name](model)
  model.head_bias_init = 0.0
  # Compute type. On TPU, float32 multiplies in bfloat16 passes, as the authors ran it; "bfloat16" also
  # halves the activations' memory.
  model.dtype = "float32"
  model.param_dtype = "float32"
  model.remat = "none"  # or "block": less memory, a second forward pass
  return model


def _mixer(model: ConfigDict) -> None:  # "S/32" … "H/14"
  model.patch_size = placeholder(int)
  model.num_blocks = placeholder(int)
  model.hidden_dim = placeholder(int)
  model.tokens_mlp_dim = placeholder(int)
  model.channels_mlp_dim = placeholder(int)
  model.gelu = "tanh"  # or "erf", the exact one
  model.dropout_rate = 0.0
  model.stoch_depth = 0.0  # s: the last block drops with s, the first with 0
  model.stoch_depth_rescale = (
    False  # divide the kept branches by the probability that they are kept with
  )
  # Ablations of appendix A (docs/baselines.md).
  model.token_mixing = "mlp"  # or, of appendix A, "untied", "grouped", "views"
  model.channel_groups = 1  # channels joined in "grouped" and "views"
  model.pyramid = ()  # tokens that leave each block; (): all


def _vit(model: ConfigDict) -> None:  # "B/32" … "H/14"
  model.patch_size = placeholder(int)
  model.num_blocks = placeholder(int)
  model.hidden_dim = placeholder(int)
  model.mlp_dim = placeholder(int)
  model.num_heads = placeholder(int)
  model.representation_size = 0  # width of a tanh layer before the head; 0: none
  model.gelu = "tanh"  # or "erf", the exact one
  model.dropout_rate = 0.0
  model.stoch_depth = 0.0  # s: the last block drops with s, the first with 0
  model.stoch_depth_rescale = (
    False  # divide the kept branches by the probability that they are kept with
  )


def _resnet(model: ConfigDict) -> None:  # "R50x1" … "R200x3"
  model.num_units = placeholder(tuple)  # of each stage
  model.width = placeholder(int)  # 64 × the factor in the name
  model.num_groups = 32


_FAMILIES = {"mixer": _mixer, "vit": _vit, "resnet": _resnet}


def parse_arg(arg: str | None, **defaults: str) -> dict[str, str]:
  """Parses the text after the colon of --config=FILE:ARG, "B/16" or "L/16,epochs=14".

  Args:
    arg: comma-separated name=value; a first part without a name is the variant.
    defaults: the names that may be given, with their defaults.

  Raises:
    InputError: unknown name.
  """
  values = dict(defaults)
  for i, part in enumerate(p for p in (arg or "").split(",") if p):
    name, equals, value = part.partition("=")
    if not equals and i == 0:
      name, value = "variant", part
    if name not in defaults or not value:
      raise InputError(
        f"{part!r} in the configuration's argument is unknown; known: "
        + ", ".join("VARIANT" if name == "variant" else f"{name}=…" for name in defaults)
      )
    values[name] = value
  return values


def size_letter(variant: str, rows: dict[str, Any]) -> str:
  """Returns the letter of "B/16" that names a row of table 4; raises InputError if it has none."""
  letter = variant.partition("/")[0]
  if letter not in rows:
    raise InputError(f"table 4 has no row for {variant!r}; it has the sizes {', '.join(rows)}.")
  return letter
