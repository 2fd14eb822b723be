"""Evaluates a run or a weights file on the configuration's evaluation split.

python eval.py --workdir=DIR [--checkpoint=newest|best|STEP] [--weights=FILE.npz] [--details=DIR]
python eval.py --config=configs/NAME.py --weights=FILE.npz
"""

from absl import app, flags

from mixer_jax.tools import command, model_flags

_DETAILS = flags.DEFINE_string(
  "details", None, "Directory for the accuracy of each class and the confusions, printed too."
)


def main(argv: list[str]) -> None:
  from mixer_jax import loop  # Late, as in train.py.

  command.no_arguments(argv)
  loop.evaluate(**model_flags.chosen(), details=_DETAILS.value)


if __name__ == "__main__":
  command.run(app.run, main)
