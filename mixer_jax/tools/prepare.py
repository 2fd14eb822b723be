"""Prepares a data set with TFDS's own builder, stored as ArrayRecord.

python -m mixer_jax.tools.prepare imagenet2012 [--data_dir=DIR]

Most stock builders need TensorFlow for this once: pip install 'mixer-jax[prepare]'.
"""

from absl import app, flags

from mixer_jax.data import sources
from mixer_jax.errors import InputError
from mixer_jax.tools import command

_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Where to keep it; default $TFDS_DATA_DIR or ~/tensorflow_datasets."
)


def main(argv: list[str]) -> None:
  if len(argv) != 2:
    raise InputError("give the name of one TFDS data set: prepare imagenet2012")
  try:
    print(f"{argv[1]} is prepared in {sources.prepare(argv[1], _DATA_DIR.value)}")
  except ImportError as e:
    raise InputError(f"{argv[1]} needs {e.name}: pip install 'mixer-jax[prepare]'") from e


if __name__ == "__main__":
  command.run(app.run, main)
