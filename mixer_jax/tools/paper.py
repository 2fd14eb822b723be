"""The paper's tables and figures beside what has been run here: the paper's numbers, ours, the difference.

python -m mixer_jax.tools.paper table1                                # table1 … table4
python -m mixer_jax.tools.paper table3 --results=DIR --measure_throughput
python -m mixer_jax.tools.paper figure4 --results=DIR                 # figure2 … figure4
python -m mixer_jax.tools.paper figure5 --weights=imagenet21k/Mixer-B_16  # figure5 … figure7
python -m mixer_jax.tools.paper families                              # the other families' sizes and accuracies

--results is the directory of your runs, of tools.transfer, and of `eval.py --record`. What has not been run is shown
as such, with the command that runs it. The output is printed, and written below --output: tables as Markdown and CSV,
figures also as PNG and SVG.
"""

import pathlib
from typing import Any

from absl import flags

from mixer_jax import files
from mixer_jax.errors import InputError
from mixer_jax.tools import command

NAMES = ("table1", "table2", "table3", "table4", "figure2", "figure3", "figure4", "figure5", "figure6", "figure7", "families")  # fmt: skip

_RESULTS = flags.DEFINE_string(
  "results", "results", "Directory with the runs and evaluations to compare."
)
_OUTPUT = flags.DEFINE_string("output", None, "Directory to write to. Default: RESULTS/paper.")
_WEIGHTS = flags.DEFINE_list(
  "weights", [], "Weights for figures 5 to 7: released names, addresses, files or workdirs. Figure 7 shows several side by side."
)  # fmt: skip
_MEASURE = flags.DEFINE_bool(
  "measure_throughput",
  False,
  "For table2 and table3: measure the throughput of the models that have none on this device yet.",
)


def main(argv: list[str]) -> None:
  if len(argv) != 2 or argv[1] not in NAMES:
    given = argv[1] if len(argv) == 2 else f"{len(argv) - 1} names"
    raise InputError(f"{given!r} is not a table or figure; give one of {', '.join(NAMES)}.")
  name, results = argv[1], pathlib.Path(files.path_of(_RESULTS.value, "--results"))
  if _WEIGHTS.value and name not in ("figure5", "figure6", "figure7"):
    raise InputError(f"--weights goes with figure5 to figure7, not {name}.")
  if _MEASURE.value and name not in ("table2", "table3"):
    raise InputError(f"--measure_throughput goes with table2 and table3, not {name}.")
  output = pathlib.Path(files.path_of(_OUTPUT.value or f"{results}/paper", "--output"))
  figure, table = _make(name, results)
  _show(name, table, figure, output)


def _make(name: str, results: pathlib.Path) -> tuple[Any, Any]:
  """Returns the figure (None for a table) and the comparison table."""
  from mixer_jax.tools.paper_tables import families, figures, tables, weights_figures
  from mixer_jax.tools.paper_tables import results as results_lib

  if name == "families":
    return families.families()
  found = results_lib.scan(results)
  if _MEASURE.value:
    _measure(tables.models_of(name), results)
  if name in tables.TABLES:
    return None, tables.TABLES[name](found)
  if name in figures.FIGURES:
    return figures.FIGURES[name](found)
  return weights_figures.FIGURES[name]({w: _mixer(w) for w in _chosen_weights(name, found)})


def _chosen_weights(name: str, found: Any) -> list[str]:
  """Returns --weights, else the run of the paper's own model."""
  from mixer_jax.tools.paper_tables import rows

  if _WEIGHTS.value:
    return list(_WEIGHTS.value)
  runs, _ = rows.match(found)
  models = ("Mixer-B/16", "Mixer-B/32") if name == "figure7" else ("Mixer-B/16",)
  own = [rows.Pretraining("JFT-300M", model, 7.0) for model in models]
  if not all(p in runs for p in own):
    commands = "".join(f"  {p.train_command(found.directory)}\n" for p in own)
    raise InputError(
      f"{name} shows weights of the paper's JFT-300M run, which has not been run:\n{commands}"
      "Or give --weights=imagenet21k/Mixer-B_16, a file, or the workdir of a run."
    )
  return [str(runs[p].path) for p in own]


def _mixer(source: str) -> dict[str, Any]:
  """Returns a Mixer's parameters; raises InputError for another architecture's."""
  from mixer_jax import weights
  from mixer_jax.training import init_from

  variables = init_from.load(source)
  weights.check_family(variables, "mixer", source)
  return variables["params"]


def _measure(models: list[tuple[str, int]], results: pathlib.Path) -> None:
  """Measures the models that have no throughput on this device yet, and keeps each at once."""
  from mixer_jax.tools import throughput
  from mixer_jax.tools.paper_tables import rows

  for model, size in models:
    key = throughput.key(model, size)
    if key in throughput.load(results):
      continue
    print(f"measuring {model} at {size} px", flush=True)
    config = rows.benchmark_config(model, size)
    try:
      throughput.save(results, key, throughput.measure(config))
    except InputError as e:
      print(f"{model} at {size} px: {e}", flush=True)


def _show(name: str, table: Any, figure: Any, output: pathlib.Path) -> None:
  from mixer_jax.tools.paper_tables import comparison

  print(comparison.as_text(table))
  try:
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.md").write_text(comparison.as_markdown(table))
    (output / f"{name}.csv").write_text(comparison.as_csv(table))
    for suffix in ("png", "svg") if figure else ():
      figure.savefig(output / f"{name}.{suffix}", dpi=150)
  except OSError as e:
    raise InputError(f"--output={output} cannot be written: {e}") from e
  print("written: " + ", ".join(str(p) for p in sorted(output.glob(f"{name}.*"))))


if __name__ == "__main__":
  command.run(main)
