"""The paper in miniature: pre-trains, transfers and permutes small models on small real images, on a CPU.

python -m mixer_jax.tools.paper_mini --results=workdir/paper-mini

The images are Fashion-MNIST if Debian's package dataset-fashion-mnist is installed, else scikit-learn's digits. The
command writes RESULTS/report.html. The same command resumes: finished runs are kept. `--report` writes the report of the
finished runs.
"""

import os
import pathlib
import sys
import time

from absl import flags

from mixer_jax import files
from mixer_jax.errors import DivergedError
from mixer_jax.tools import command

_RESULTS = flags.DEFINE_string(
  "results", "workdir/paper-mini", "Directory of the runs and the report."
)
_STEPS = flags.DEFINE_integer("steps", 240, "Training steps per pre-training run.", lower_bound=10)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Directory where TFDS keeps its data.")
_REPORT = flags.DEFINE_bool(
  "report", False, "Write the report of the finished runs without starting any."
)


def main(argv: list[str]) -> None:
  command.no_arguments(argv)
  results = pathlib.Path(files.path_of(_RESULTS.value, "--results"))
  if _DATA_DIR.value:
    os.environ["TFDS_DATA_DIR"] = _DATA_DIR.value
  from mixer_jax.tools.paper_tables import mini_report

  setting = _setting()
  results.mkdir(parents=True, exist_ok=True)
  if not _REPORT.value:
    _run_all(setting, results)
  print(f"report: {mini_report.write(results, setting)}")


def _setting():
  """Returns what the story is told on."""
  from mixer_jax.data import fashion_mnist
  from mixer_jax.tools.paper_tables import mini

  if fashion_mnist.is_installed():
    return mini.Setting("fashion_mnist_debian", "digits", (1.0, 10.0, 100.0), _STEPS.value)
  print("Fashion-MNIST is not installed (apt install dataset-fashion-mnist): using digits instead")
  return mini.Setting("digits_0_4", "digits_5_9", (10.0, 30.0, 100.0), _STEPS.value)


def _run_all(setting, results: pathlib.Path) -> None:
  """Takes the runs that are not finished, in this process, so that what was compiled serves them all."""
  import jax

  from mixer_jax.tools.paper_tables import mini
  from mixer_jax.training import loop

  # Runs that differ in their images alone have the same program.
  jax.config.update("jax_compilation_cache_dir", str((results / "compiled").absolute()))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
  stop, begin = loop.StopSignal().install(), time.monotonic()
  keys = mini.runs_of(setting)
  for i, key in enumerate(keys):
    config = mini.config_of(key, setting, results)
    if mini.finished(results / key.name, config):
      continue
    minutes = (time.monotonic() - begin) / 60
    print(f"== {key.name}: run {i + 1} of {len(keys)}, {minutes:.1f} minutes", flush=True)
    try:
      loop.train(config, str(results / key.name), stop)
    except DivergedError as e:
      print(f"diverged, left out: {e}", file=sys.stderr)
    if stop.received is not None:
      sys.exit(stop.status)
  print(f"all runs finished after {(time.monotonic() - begin) / 60:.1f} minutes")


if __name__ == "__main__":
  command.run(main)
