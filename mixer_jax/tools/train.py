"""Trains a model.

python train.py --config=quickstart --workdir=DIR [--config.KEY=VALUE]

The same command resumes, and so does --workdir=DIR alone. Exit status: 0 finished, 2 bad input, 1 diverged or could not save,
143 or 130 stopped by a signal (130: Ctrl-C) after saving, 75 another process was lost or did not come.
"""

from typing import Any

from absl import flags

from mixer_jax.errors import InputError
from mixer_jax.tools import command, config_files, process_flags

_CONFIG = config_files.define(" Default: that of the run in --workdir.")
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory of the run: local, shared by all hosts, or gs://.", required=True
)
_ALLOW_CHANGE = flags.DEFINE_list(
  "allow_change",
  [],
  "Keys or sections, such as data.split,schedule, that may differ when a run is resumed. They add to config.may_change.",
)

_WAIT = flags.DEFINE_bool(
  "wait_for_workdir",
  False,
  "Wait while another process trains in the workdir, as a requeued job may have to. Default: an error.",
)


def main(argv: list[str]) -> None:
  command.no_arguments(argv)
  process_flags.join()
  from mixer_jax.training import loop

  stop = loop.StopSignal().install()
  loop.train(
    _configuration(), _WORKDIR.value, stop, _ALLOW_CHANGE.value, wait_for_workdir=_WAIT.value
  )


def _configuration() -> Any:
  from mixer_jax.workdir import directory

  if (given := command.loaded(_CONFIG)) is not None:
    return given
  workdir = directory.path_of(_WORKDIR.value)
  if directory.find_config(workdir) is None:
    raise InputError(f"{workdir} holds no run to go on with: give a configuration with --config.")
  return directory.load_config(workdir)


if __name__ == "__main__":
  command.run(main)
