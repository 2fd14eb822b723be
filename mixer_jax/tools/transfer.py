"""The transfer protocol as one command: grid on the development split, best rate, three seeds, table.

python -m mixer_jax.tools.transfer --weights=imagenet21k/Mixer-B_16 --datasets=five,vtab --results=DIR

Finished runs are kept, a killed one goes on from its checkpoint: the same command continues. Any number of
machines may give it at once with a shared directory (an array of jobs); each takes runs that nobody has.
`--report` prints the table of what is there. Table: terminal, DIR/table.csv, DIR/table.md.
"""

import dataclasses
import importlib.util
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

from absl import app, flags
from etils import epath

from mixer_jax import claims, configuration, experiment, finetune, loop, protocol
from mixer_jax.errors import DivergedError, InputError
from mixer_jax.tools import command

MakeConfig = Callable[[protocol.Run], Any]

_WEIGHTS = flags.DEFINE_list(
  "weights", None, "Released names, addresses, files, workdirs.", required=True
)
_DATASETS = flags.DEFINE_list(
  "datasets", ["five"], "Names, directories, and the groups five and vtab."
)
_RESULTS = flags.DEFINE_string("results", None, "Directory of runs and tables.", required=True)
_SIZE = flags.DEFINE_integer(
  "size", None, "Image size in pixels; default: of pre-training, VTAB-1k's large images twice that."
)
_LRS = flags.DEFINE_list("lrs", None, "Learning rates; default: the paper's.")
_SEEDS = flags.DEFINE_integer("seeds", protocol.NUM_SEEDS, "Runs that are reported.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", None, "Default: the paper's for each data set.")
_BATCH = flags.DEFINE_integer("batch_size", None, "Default: the paper's 512.")
_CONFIG = flags.DEFINE_string(
  "config", "configs/finetune.py", "File whose get_config(arg) makes a run's configuration."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data.")
_REPORT = flags.DEFINE_bool("report", False, "Print the table of what is there, run nothing.")

POLL_SECS = 10.0


def main(argv: list[str]) -> None:
  command.no_arguments(argv)
  results = pathlib.Path(_RESULTS.value).expanduser().absolute()
  transfers, lrs = _transfers(), _learning_rates()
  make_config = _load_get_config(_CONFIG.value)
  if not _REPORT.value:
    for t in transfers:
      _check(protocol.grid_runs(t, lrs)[0], make_config)
    work(transfers, lrs, results, make_config)
  found = finished(results)
  _check_settings(transfers, lrs, results, found, make_config)
  report(protocol.table(transfers, lrs, _SEEDS.value, found), results)


def _check(run: protocol.Run, make_config: MakeConfig) -> None:
  """Builds the runs' experiments and opens their data, so that what is wrong is met before the first step."""
  for judge in ("dev", "test"):
    config = make_config(dataclasses.replace(run, judge=judge))
    exp = experiment.build(config, experiment.make_mesh(config))
    exp.train_split.open()
    exp.eval_split.open()


def _check_settings(
  transfers: list[protocol.Transfer],
  lrs: list[float] | None,
  results: pathlib.Path,
  found: dict[str, float],
  make_config: MakeConfig,
) -> None:
  """Raises InputError if a finished run of the table was made with other settings than are asked for."""
  for t in transfers:
    for run in protocol.grid_runs(t, lrs) + protocol.test_runs(t, lrs, _SEEDS.value, found):
      if run.name in found:
        config = make_config(run)
        saved = configuration.load(epath.Path(results / run.name / "config.json"))
        if changed := configuration.differences(saved, config, config.may_change):
          raise InputError(
            f"{results / run.name} was run with other settings:\n  " + "\n  ".join(changed)
            + "\nGive those, or another --results."
          )  # fmt: skip


def work(
  transfers: list[protocol.Transfer],
  lrs: list[float] | None,
  results: pathlib.Path,
  make_config: MakeConfig,
) -> None:
  """Takes runs until all are finished, by this process or others; a signal ends it after saving."""
  stop = loop.StopSignal().install()
  while runs := protocol.open_runs(transfers, lrs, _SEEDS.value, found := finished(results)):
    _check_settings(transfers, lrs, results, found, make_config)
    if not any(_take(run, results / run.name, make_config, stop) for run in runs):
      print(f"waiting for {len(runs)} runs of other processes", flush=True)
      for _ in range(int(POLL_SECS / 0.2)):
        _exit_if_asked(stop)
        time.sleep(0.2)


def _exit_if_asked(stop: loop.StopSignal) -> None:
  if stop.received is not None:
    sys.exit(128 + stop.received)


def _take(
  run: protocol.Run, directory: pathlib.Path, make_config: MakeConfig, stop: loop.StopSignal
) -> bool:
  """Returns whether the run could be had, and is finished now."""
  _exit_if_asked(stop)
  with claims.claimed(directory) as mine:
    if not mine or (directory / "result.json").exists():
      return mine
    print(f"== {run.name}", flush=True)
    kept: dict[str, Any] = {"lr": run.lr, "seed": run.seed}
    try:
      measured = loop.train(make_config(run), str(directory), stop)
      kept |= {"top1": measured["top1"], "count": measured["count"], "diverged": False}
    except DivergedError as e:
      print(f"diverged, counted as 0: {e}", flush=True)
      kept |= {"top1": 0.0, "count": 0, "diverged": True}
    partial = directory / "result.json.partial"
    partial.write_text(json.dumps(kept) + "\n")
    partial.replace(directory / "result.json")
    if run.judge == "dev":  # only its figure is needed; the reported runs keep theirs
      shutil.rmtree(directory / "checkpoints", ignore_errors=True)
  return True


def finished(results: pathlib.Path) -> dict[str, float]:
  """Returns {name of the run: top-1} of all finished runs in the directory."""
  found = {}
  for path in results.glob("*/*/*/*/result.json"):
    found[str(path.parent.relative_to(results))] = float(json.loads(path.read_text())["top1"])
  return found


def _transfers() -> list[protocol.Transfer]:
  transfers = []
  for source in _WEIGHTS.value:
    origin = finetune.describe(source)
    pretrained_size = origin.grid[0] * origin.fields["patch_size"]
    for dataset in protocol.expand(_DATASETS.value):
      size = protocol.size_of(dataset, _SIZE.value, pretrained_size)
      transfers.append(protocol.Transfer(source, dataset, size))
  names = [t.name for t in transfers]
  if len(set(names)) < len(names):
    raise InputError(f"two of --weights or --datasets would share a directory: {sorted(names)}")
  return transfers


def _learning_rates() -> list[float] | None:
  given = _LRS.value
  try:
    return [float(lr) for lr in given] if given else None
  except ValueError as e:
    raise InputError(f"--lrs={','.join(given or [])}: {e}") from e


def _load_get_config(path: str) -> MakeConfig:
  """Returns run -> configuration, by the file's get_config."""
  spec = importlib.util.spec_from_file_location("transfer_config", path)
  if spec is None or spec.loader is None or not pathlib.Path(path).is_file():
    raise InputError(f"--config={path} is no Python file.")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)

  def make(run: protocol.Run) -> Any:
    t = run.transfer
    arg = f"weights={t.weights},dataset={t.dataset},size={t.size},lr={run.lr},judge={run.judge}"
    if _STEPS.value:
      arg += f",steps={_STEPS.value}"
    if _DATA_DIR.value:
      arg += f",data_dir={_DATA_DIR.value}"
    config = module.get_config(arg)
    config.seed = run.seed
    config.batch_size = _BATCH.value or config.batch_size
    config.log.plots = False
    config.checkpoint.keep_newest, config.checkpoint.keep_best = 1, 0
    return config

  return make


def report(rows: list[protocol.Row], results: pathlib.Path) -> None:
  """Prints the table, and writes it to table.csv and table.md."""
  results.mkdir(parents=True, exist_ok=True)
  (results / "table.csv").write_text(protocol.as_csv(rows))
  (results / "table.md").write_text(protocol.as_markdown(rows))
  print(protocol.as_text(rows))
  print(f"{results / 'table.csv'}, {results / 'table.md'}")


if __name__ == "__main__":
  command.run(app.run, main)
