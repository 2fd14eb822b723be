"""The transfer protocol at work: runs of a shared directory are taken, trained and put into a table.

What is to be run is protocol.py's, who runs it lease.py's.
"""

import dataclasses
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from mixer_jax import configuration, evaluators, files, schema, tables
from mixer_jax.errors import DivergedError, InputError
from mixer_jax.tools.sweep import protocol
from mixer_jax.training import experiment, init_from, loop
from mixer_jax.workdir import directory as workdirs
from mixer_jax.workdir import lease

MakeConfig = Callable[[protocol.Run], Any]
POLL_SECS = 10.0


def run_protocol(
  sweep: protocol.Sweep,
  results: pathlib.Path,
  make_config: MakeConfig,
  *,
  report_only: bool = False,
) -> None:
  """Takes runs until all are finished, or with `report_only` none, and prints the table; see tools/transfer.py.

  Raises:
    InputError: bad configuration or data, before the first step; or results of other settings.
  """
  if not report_only:
    for t in sweep.transfers:
      _check(sweep.grid(t)[0], make_config)
    work(sweep, results, make_config)
  found = finished(results)
  _check_settings(sweep, results, found, make_config)
  report(sweep.table(found), results)


def plan(sources: Sequence[str], names: Sequence[str], size: str | None) -> list[protocol.Transfer]:
  """Returns the cells of the table for weights and data sets, groups expanded.

  Raises:
    InputError: unknown weights, a data set twice, or names that would share a directory.
  """
  transfers = []
  for source in sources:
    spec = init_from.describe(source)
    for dataset in protocol.expand(names):
      px = protocol.size_of(dataset, size, spec.sides())
      transfers.append(protocol.Transfer(source, dataset, px))
  directories = [t.name for t in transfers]
  if len(set(directories)) < len(directories):
    raise InputError(f"two of the weights or data sets would share a directory: {directories}")
  return transfers


def _check(run: protocol.Run, make_config: MakeConfig) -> None:
  """Builds the runs' experiments and opens their data, so that what is wrong is met before the first step."""
  for eval_split in ("dev", "test"):
    config = make_config(dataclasses.replace(run, eval_split=eval_split))
    exp = experiment.build(config)
    exp.train_split.open()
    evaluators.build(exp, evaluators.in_training(exp.options), None)


def _check_settings(
  sweep: protocol.Sweep, results: pathlib.Path, found: dict[str, float], make_config: MakeConfig
) -> None:
  """Raises InputError if a finished run of the table was made with other settings than are asked for."""
  for run in sweep.runs(found):
    if run.name not in found:
      continue
    config = make_config(run)
    saved = workdirs.load_config(epath.Path(results / run.name))
    # An earlier version's evaluators may lack keys that there are today.
    old, new = (schema.completed(c) for c in (saved, config))
    if changed := configuration.differences(old, new, config.may_change):
      lines = "\n  ".join(changed)
      raise InputError(
        f"{results / run.name} was run with other settings:\n  {lines}\nGive those, or another --results."
      )


def work(sweep: protocol.Sweep, results: pathlib.Path, make_config: MakeConfig) -> None:
  """Takes runs until all are finished, by this process or others; a signal ends it after saving."""
  stop = loop.StopSignal().install()
  while runs := sweep.open_runs(found := finished(results)):
    _check_settings(sweep, results, found, make_config)
    if not any(_take(run, results / run.name, make_config, stop) for run in runs):
      print(f"waiting for {len(runs)} runs of other processes", flush=True)
      for _ in range(int(POLL_SECS / 0.2)):
        _exit_if_asked(stop)
        time.sleep(0.2)


def _exit_if_asked(stop: loop.StopSignal) -> None:
  if stop.received is not None:
    sys.exit(stop.status)


def _take(
  run: protocol.Run, directory: pathlib.Path, make_config: MakeConfig, stop: loop.StopSignal
) -> bool:
  """Returns whether the run could be had, and is finished now."""
  _exit_if_asked(stop)
  try:
    mine = lease.take(directory)
  except lease.HeldError:
    return False
  with mine:
    if (directory / "result.json").exists():
      return True
    print(f"== {run.name}", flush=True)
    kept: dict[str, Any] = {"lr": run.lr, "seed": run.seed}
    try:
      config = make_config(run)
      measured = loop.train(config, str(directory), stop, lease=mine)
      top1 = measured[config.best.rpartition("/")[2]]
      kept |= {"top1": top1, "count": measured["count"], "diverged": False}
    except DivergedError as e:
      print(f"diverged, counted as 0: {e}", flush=True)
      kept |= {"top1": 0.0, "count": 0, "diverged": True}
    with files.replacing(directory / "result.json") as partial:
      partial.write_text(json.dumps(kept) + "\n")
    if run.eval_split == "dev":  # only its figure is needed; the reported runs keep theirs
      shutil.rmtree(directory / "checkpoints", ignore_errors=True)
  return True


def finished(results: pathlib.Path) -> dict[str, float]:
  """Returns {name of the run: top-1} of all finished runs in the directory."""
  paths = results.glob("*/*/*/*/result.json")
  return {str(p.parent.relative_to(results)): json.loads(p.read_text())["top1"] for p in paths}


def report(rows: list[protocol.Row], results: pathlib.Path) -> None:
  """Prints the table, and writes it to table.csv and table.md."""
  lines = [protocol.cells(row) for row in rows]
  results.mkdir(parents=True, exist_ok=True)
  (results / "table.csv").write_text(protocol.as_csv(rows))
  (results / "table.md").write_text(tables.as_markdown(protocol.HEADER, lines) + "\n")
  print(tables.as_text([protocol.HEADER, *lines]))
  print(f"{results / 'table.csv'}, {results / 'table.md'}")
