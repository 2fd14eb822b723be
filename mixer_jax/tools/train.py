"""Trains a model.

python train.py --config=quickstart --workdir=DIR [--config.KEY=VALUE]

The same command resumes. Exit status: 0 finished, 2 bad input, 1 diverged or could not save,
143 or 130 stopped by SIGTERM or Ctrl-C after saving, 75 another process was lost or did not come.
"""

from absl import app, flags

from mixer_jax.tools import command, config_files, process_flags

_CONFIG = config_files.define()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory of the run: local, shared by all hosts, or gs://.", required=True
)
_ALLOW_CHANGE = flags.DEFINE_list(
  "allow_change",
  [],
  "Keys or sections, such as data.split,schedule, that may differ when a run is resumed. They add to config.may_change.",
)


def main(argv: list[str]) -> None:
  command.no_arguments(argv)
  process_flags.join()
  from mixer_jax.training import loop

  stop = loop.StopSignal().install()
  loop.train(_CONFIG.value, _WORKDIR.value, stop, _ALLOW_CHANGE.value)


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  command.run(app.run, main)
