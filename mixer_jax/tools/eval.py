"""Evaluates a run or a weights file: exact top-1, top-5, loss and count of images, or few-shot accuracy.

python eval.py --workdir=DIR [--checkpoint=newest|best|STEP] [--weights=FILE.npz] [--evaluators=NAME,...]
  [--details=DIR] [--record] [--follow]
python eval.py --weights=imagenet1k/Mixer-B_16 --dataset=imagenet2012_real
python eval.py --config=configs/NAME.py --weights=FILE.npz

Without --dataset: by the evaluators of the configuration that classify, or those of --evaluators. A weights
file alone needs --dataset. It is evaluated as its published accuracy was, or as in the paper's table 3.
"""

from typing import Any

from absl import flags

from mixer_jax.errors import InputError
from mixer_jax.tools import command, model_flags, process_flags

_EVALUATORS = flags.DEFINE_list(
  "evaluators", None, "Names in config.evaluators. Default: all evaluators of type classification."
)
_DATASET = flags.DEFINE_string(
  "dataset",
  None,
  "Data set to evaluate on: a name in mixer_jax/data/datasets.py, or the directory of a prepared one.",
)
_SPLIT = flags.DEFINE_string(
  "split", None, "Split of --dataset to evaluate on. Default: its test split."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Directory where TFDS keeps --dataset.")
_DETAILS = flags.DEFINE_string(
  "details",
  None,
  "Directory to write the accuracy of each class and the confusions to. They are also printed.",
)
_RECORD = flags.DEFINE_bool(
  "record", False, "Add the result to WORKDIR/evaluations.jsonl, where tools.paper finds it."
)
_FOLLOW = flags.DEFINE_bool(
  "follow",
  False,
  "Evaluate and record every checkpoint of a running --workdir as it comes, up to the run's last step.",
)


def main(argv: list[str]) -> None:
  command.no_arguments(argv)
  model = model_flags.chosen()
  process_flags.join()
  from mixer_jax import inference
  from mixer_jax.inference import evaluate
  from mixer_jax.parallel import distributed

  alone = model["weights_file"] and model["config"] is None and model["workdir"] is None
  if alone and _DATASET.value is None:
    raise InputError("--weights alone needs --dataset.")
  asked: dict[str, Any] = {f.name: f.value for f in (_EVALUATORS, _DATASET, _SPLIT, _DATA_DIR)}
  written: dict[str, Any] = {f.name: f.value for f in (_DETAILS, _RECORD)}
  distributed.agree({**model, **asked, **written, "follow": _FOLLOW.value})
  if _FOLLOW.value:
    _follow(model, asked)
    return
  trained = inference.load(**model)
  sections = evaluate.choose(trained.setup.options, **asked)
  evaluate.evaluate(trained, sections, workdir=model["workdir"], **written)


def _follow(model: dict[str, Any], asked: dict[str, Any]) -> None:
  from mixer_jax.inference import follow

  if model["workdir"] is None or model["weights_file"] or _DETAILS.value:
    raise InputError("--follow takes --workdir, without --weights and --details.")
  if flags.FLAGS["checkpoint"].present:
    raise InputError("--follow takes every checkpoint: leave --checkpoint out.")
  follow.follow(model["workdir"], model["config"], **asked)


if __name__ == "__main__":
  command.run(main)
