"""The transfer protocol as one command: grid on the development split, best rate, three seeds, table.

python -m mixer_jax.tools.transfer --weights=imagenet21k/Mixer-B_16 --datasets=five,vtab --results=DIR

The same command resumes: finished runs are kept, and a killed run continues from its checkpoint. Any number of
machines may run it at once on a shared directory, as an array of jobs. Each takes runs that no other has leased. The
table is printed, and written to DIR/table.csv and DIR/table.md. `--report` only does that, for the finished runs.
"""

import pathlib
from typing import Any

from absl import flags

from mixer_jax import files
from mixer_jax.errors import InputError
from mixer_jax.tools import command, config_files
from mixer_jax.tools.sweep import protocol, worker

_WEIGHTS = flags.DEFINE_list(
  "weights",
  None,
  "Weights to fine-tune: released names, addresses, files or workdirs.",
  required=True,
)
_DATASETS = flags.DEFINE_list(
  "datasets",
  ["five"],
  "Data sets to fine-tune on: names, directories, and the groups five and vtab.",
)
_RESULTS = flags.DEFINE_string(
  "results", None, "Directory of the runs and the table.", required=True
)
_SIZE = flags.DEFINE_string(
  "size",
  None,
  "Image size in pixels, SIDE or HEIGHTxWIDTH. Default: the size of pre-training, twice that for VTAB-1k's large images.",
)
_LRS = flags.DEFINE_list("lrs", None, "Learning rates of the grid. Default: the paper's.")
_SEEDS = flags.DEFINE_integer(
  "seeds",
  protocol.NUM_SEEDS,
  "Number of seeds at the best learning rate, which are reported.",
  lower_bound=1,
)
_STEPS = flags.DEFINE_integer(
  "steps", None, "Training steps. Default: the paper's for each data set."
)
_BATCH = flags.DEFINE_integer("batch_size", None, "Batch size. Default: the paper's 512.")
_CONFIG = flags.DEFINE_string(
  "config", "finetune", "Name or file of the configuration whose get_config(arg) makes a run's."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Directory where TFDS keeps its data.")
_REPORT = flags.DEFINE_bool(
  "report", False, "Print the table of the finished runs without starting any."
)


def main(argv: list[str]) -> None:
  command.no_arguments(argv)
  transfers = worker.plan(_WEIGHTS.value or [], _DATASETS.value or [], _SIZE.value)
  results = pathlib.Path(files.path_of(_RESULTS.value, "--results")).absolute()
  sweep = protocol.Sweep(transfers, _learning_rates(), _SEEDS.value)
  worker.run_protocol(sweep, results, _load_get_config(_CONFIG.value), report_only=_REPORT.value)


def _learning_rates() -> list[float] | None:
  given = _LRS.value
  try:
    return [float(lr) for lr in given] if given else None
  except ValueError as e:
    raise InputError(f"--lrs={','.join(given or [])}: {e}") from e


def _load_get_config(path: str) -> worker.MakeConfig:
  """Returns run -> configuration, by the file's get_config."""
  get_config = config_files.module(path).get_config

  def make(run: protocol.Run) -> Any:
    arg = run.argument
    if _STEPS.value:
      arg += f",steps={_STEPS.value}"
    if _DATA_DIR.value:
      arg += f",data_dir={_DATA_DIR.value}"
    config = get_config(arg)
    config.seed = run.seed
    config.batch_size = _BATCH.value or config.batch_size
    config.evaluators.pictures.every_steps = 0
    config.checkpoint.keep_newest, config.checkpoint.keep_best = 1, 0
    return config

  return make


if __name__ == "__main__":
  command.run(main)
