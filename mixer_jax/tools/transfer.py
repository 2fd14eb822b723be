"""The transfer protocol as one command: grid on the development split, best rate, three seeds, table.

python -m mixer_jax.tools.transfer --weights=imagenet21k/Mixer-B_16 --datasets=five,vtab --results=DIR

Finished runs are kept, a killed one goes on from its checkpoint: the same command continues. Any number of
machines may give it at once with a shared directory (an array of jobs); each takes runs that nobody has.
`--report` prints the table of what is there. Table: terminal, DIR/table.csv, DIR/table.md.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import app, flags

from mixer_jax import finetune, loop, protocol
from mixer_jax.errors import InputError
from mixer_jax.tools import command

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

HEARTBEAT_SECS = 20.0
STALE_SECS = 300.0  # without a heartbeat: its machine is gone
POLL_SECS = 10.0


def main(argv: list[str]) -> None:
  command.no_arguments(argv)
  results = pathlib.Path(_RESULTS.value).expanduser().absolute()
  transfers = _transfers()
  lrs = _learning_rates()
  if not _REPORT.value:
    make_config = _load_get_config(_CONFIG.value)
    for t in transfers:  # all that can be wrong is found before the first step
      make_config(protocol.grid_runs(t, lrs)[0])
    work(transfers, lrs, results, make_config)
  report(protocol.table(transfers, lrs, _SEEDS.value, finished(results)), results)


def work(
  transfers: list[protocol.Transfer],
  lrs: list[float] | None,
  results: pathlib.Path,
  make_config: Callable[[protocol.Run], Any],
) -> None:
  """Takes runs until all are finished, by this process or others."""
  stop = loop.StopSignal().install()
  while runs := protocol.open_runs(transfers, lrs, _SEEDS.value, finished(results)):
    taken = None
    for run in runs:
      with claimed(results / run.name) as mine:
        if mine:
          taken = run
          _train(run, results / run.name, make_config(run), stop)
          break
    if taken is None:
      print(f"waiting for {len(runs)} runs of other processes", flush=True)
      time.sleep(POLL_SECS)


def _train(run: protocol.Run, directory: pathlib.Path, config: Any, stop: loop.StopSignal) -> None:
  print(f"== {run.name}", flush=True)
  measured = loop.train(config, str(directory), stop)
  kept = {"top1": measured["top1"], "count": measured["count"], "lr": run.lr, "seed": run.seed}
  partial = directory / "result.json.partial"
  partial.write_text(json.dumps(kept) + "\n")
  partial.replace(directory / "result.json")


def finished(results: pathlib.Path) -> dict[str, float]:
  """Returns {name of the run: top-1} of all finished runs in the directory."""
  found = {}
  for path in results.glob("*/*/*/*/result.json"):
    found[str(path.parent.relative_to(results))] = float(json.loads(path.read_text())["top1"])
  return found


@contextlib.contextmanager
def claimed(directory: pathlib.Path) -> Iterator[bool]:
  """Yields whether this process has the run for itself; a claim without a heartbeat is taken over."""
  directory.mkdir(parents=True, exist_ok=True)
  path = directory / "claim"
  if path.exists() and time.time() - path.stat().st_mtime > STALE_SECS:
    # Renamed first, so that of several processes one takes it over.
    with contextlib.suppress(FileNotFoundError):
      aside = path.rename(directory / f"claim.stale.{socket.gethostname()}.{os.getpid()}")
      aside.unlink()
  try:
    with path.open("x") as f:
      f.write(f"{socket.gethostname()} {os.getpid()}\n")
  except FileExistsError:
    yield False
    return
  ended = threading.Event()
  beat = threading.Thread(target=_beat, args=(path, ended), daemon=True)
  beat.start()
  try:
    yield True
  finally:
    ended.set()
    beat.join()
    path.unlink(missing_ok=True)


def _beat(path: pathlib.Path, ended: threading.Event) -> None:
  while not ended.wait(HEARTBEAT_SECS):
    with contextlib.suppress(OSError):
      path.touch()


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


def _load_get_config(path: str) -> Callable[[protocol.Run], Any]:
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
    config = module.get_config(arg)
    config.seed = run.seed
    config.batch_size = _BATCH.value or config.batch_size
    config.data.data_dir = _DATA_DIR.value
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
