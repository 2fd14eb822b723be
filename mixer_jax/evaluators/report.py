"""Sections of a run's page (page.py): how it went, what it predicts, and how it was started."""

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from mixer_jax import figures, page, schema
from mixer_jax.errors import InputError
from mixer_jax.evaluators import confusion
from mixer_jax.figures import curves
from mixer_jax.workdir import directory as workdirs

Parts = list[str]
_WEIGHTS = {
  "hidden_units": "Hidden units of token mixing: each is a picture with a weight for every patch.",
  "embedding": "Filters of the embedding: what the stem looks for in a patch.",
}


def facts(setup: Any, records: list[dict[str, Any]]) -> Parts:
  """Returns what the run of a setup (experiment.ModelSetup) is, and how fast it was by metrics.jsonl's records."""
  options, data = setup.options, setup.options.data
  parameters = sum(x.size for x in jax.tree.leaves(setup.abstract_variables["params"]))
  speed, wait = (
    [r[name] for r in curves.timed(records) if name in r]
    for name in ("images_per_sec", "data_wait")
  )
  hours = [r["core_hours"] for r in records if "core_hours" in r]
  lines = [
    ("model", f"{setup.title} with {parameters:,} parameters, {options.size} px"),
    ("data", f"{data.dataset} {data.split}, {data.num_examples:,} {options.examples} in batches of {options.batch_size}"),
    *([("throughput", f"{statistics.median(speed):,.0f} {options.examples}/s (median)")] if speed else []),
    *([("waiting for data", f"{100 * statistics.mean(wait):.1f} % of the time")] if wait else []),
    *([("core-hours", f"{hours[-1]:.4f}")] if hours else []),
  ]  # fmt: skip
  return [page.table((), lines)]


def learning_curves(panels: Sequence[curves.Panel]) -> Parts:
  pictures = [
    page.picture(figures.encode(curves.draw(panel)), f"{panel.title} by step") for panel in panels
  ]
  return [page.heading("Learning curves"), page.panels(pictures)] if panels else []


def results(records: list[dict[str, Any]]) -> Parts:
  """Returns the last value of every evaluator's metrics."""
  last = {name: (f"{v:.6g}", r["step"]) for r in records for name, v in r.items() if "/" in name}
  lines = [(name, *value) for name, value in sorted(last.items())]
  return [page.heading("Results"), page.table(("metric", "value", "at step"), lines)]


def predictions(samples: Sequence[curves.Sample], wrong: str) -> Parts:
  """Returns images with their predictions; `wrong` says how many of all are wrong."""
  text = f"{wrong}. Those come first, in red, with their true class."
  return [
    page.heading("Predictions"),
    page.paragraph(text),
    page.tiles(sample.tile() for sample in samples),
  ]


def confusions(
  rows: Mapping[str, np.ndarray], options: schema.Options, names: Sequence[str] | None
) -> Parts:
  """Returns what was taken for what; nothing of images with several labels."""
  try:
    counted = confusion.count(dict(rows), options.num_classes, names)
  except InputError:
    return []
  picture = page.picture(figures.encode(confusion.figure(counted)), "Confusions by class")
  pairs = counted.confusions()
  table = page.table(("true class", "taken for", options.examples), pairs)
  return [page.heading("Confusions"), page.panels([picture, *([table] if pairs else [])])]


def weights(pictures: Mapping[str, bytes]) -> Parts:
  """Returns pictures of a Mixer's weights, PNG by name; nothing of other families."""
  parts = [
    page.paragraph(_WEIGHTS[name]) + page.wide(page.picture(png, _WEIGHTS[name]))
    for name, png in pictures.items()
  ]
  return [page.heading("Weights"), *parts] if parts else []


def origin(directory: epath.Path) -> Parts:
  """Returns command, environment and configuration of a workdir's run, as its last start wrote them."""
  environment = workdirs.find_environment(directory)
  command = environment.pop("command", None)
  config = json.dumps(workdirs.find_config(directory), indent=2, sort_keys=True)
  return [
    page.heading("How it was last started"),
    *([page.code(str(command))] if command else []),
    page.table((), [("workdir", directory), *environment.items()]),
    page.folded("Configuration", page.code(config)),
  ]
