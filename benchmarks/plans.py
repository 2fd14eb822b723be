"""Plans on TPU slices, in bfloat16: every pre-training row of the paper's table 4, or one model of each family.

    python -m benchmarks.plans table4|families [--results=FILE.csv] [--only=REGEX] [--report]

Needs pip install '.[tpu]' and no TPU. Each plan is a process of its own and takes a minute or more;
what is in FILE already is not planned again, so the same command continues. --only takes the plans whose
"CONFIG TOPOLOGY OBJECTIVE" matches, --report prints the table of what is there. CONFIG may end with flags.
"""

import argparse
import csv
import json
import pathlib
import re
import resource
import subprocess
import sys
import time

from mixer_jax import tables

# On v3 32, 512 and 128 cores; of the others sixteen chips.
TOPOLOGIES = ("v3:4x4", "v5e:4x4", "v6e:4x4", "v4:2x2x4", "v5p:2x2x4", "v3:16x16", "v3:8x8")
ROWS = (  # the largest first
  "jft:H/14", "imagenet21k:L/16", "imagenet:B/16", "jft:L/16", "imagenet:L/16", "jft:B/16",
  "imagenet21k:B/16", "jft:L/32", "jft:B/32", "jft:S/16", "jft:S/32", "imagenet:L/32",
  "imagenet:B/32", "imagenet21k:L/32", "imagenet21k:B/32",
)  # fmt: skip
MODELS = (  # the fastest to compile first
  "res_mlp-12", "ccs-mixer-B/16", "conv_mlp-S", "s2_mlp-wide", "cycle_mlp-B1", "hire_mlp-T",
  "smlp_net-T", "ms_mlp-T", "spach-MS-S/hybrid",
)  # fmt: skip
PLANS = {
  "table4": [
    ("imagenet:B/16", "v3:4x4", "cost"),
    ("jft:H/14", "v3:4x4", "cost"),
    ("imagenet:B/16", "v3:4x4", "memory"),
    *((row, topology, "cost") for row in ROWS for topology in TOPOLOGIES),
  ],
  "families": [
    (f"deit:{model} --config.batch_size=1024", topology, "cost")
    for model in MODELS
    for topology in ("v3:4x4", "v5e:4x4")
  ],
}
COLUMNS = (
  "config", "topology", "objective", "cores", "fits", "grad_accum_steps", "remat", "fsdp",
  "arguments_gib", "temporaries_gib", "needed_gib", "limit_gib", "tflop", "gb_moved", "collectives",
  "bound_ms", "bound_by", "images_per_sec_per_core", "mfu", "core_days", "paper_core_days",
  "compile_seconds", "trials", "seconds", "cpu_seconds",
)  # fmt: skip


def plan(config: str, topology: str, objective: str) -> dict[str, object]:
  """Returns a row of the results; raises RuntimeError if the command failed."""
  file, *flags = config.replace(":", ".py:").split()
  begin, cpu = time.perf_counter(), _cpu_seconds()
  done = subprocess.run(
    [
      sys.executable, "-m", "mixer_jax.tools.plan", f"--config=configs/{file}", *flags,
      f"--topology={topology}", f"--fit={objective}", "--json", "--config.model.dtype=bfloat16",
    ],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  if not done.stdout.startswith("{"):
    raise RuntimeError(done.stderr.strip()[-500:])
  trials = sum(line.startswith("--config.") for line in done.stderr.splitlines())
  facts = row_of(json.loads(done.stdout))
  return facts | {
    "config": config,
    "topology": topology,
    "objective": objective,
    "trials": trials,
    "seconds": round(time.perf_counter() - begin),
    "cpu_seconds": round(_cpu_seconds() - cpu),
  }


def _cpu_seconds() -> float:
  """Returns the processor time of the processes that this one has waited for."""
  usage = resource.getrusage(resource.RUSAGE_CHILDREN)
  return usage.ru_utime + usage.ru_stime


def row_of(found: dict) -> dict[str, object]:
  """Returns the columns that come from a plan's JSON."""
  program, times, paper = found["program"], found["estimate"], found["published"]
  row: dict[str, object] = {
    "cores": found["num_cores"],
    "fits": found["fits"],
    "needed_gib": round(found["needed_bytes"] / 2**30, 2),
    "limit_gib": round(found["limit_bytes"] / 2**30, 2),
    "paper_core_days": paper["core_days"] if paper else "",
    **{key: found["settings"][key] for key in ("grad_accum_steps", "remat", "fsdp")},
  }
  if program and times:
    row |= {
      "arguments_gib": round(program["memory"]["arguments"] / 2**30, 2),
      "temporaries_gib": round(program["memory"]["temporaries"] / 2**30, 2),
      "tflop": round(program["flops"] / 1e12, 3),
      "gb_moved": round(program["bytes_moved"] / 1e9, 2),
      "collectives": "; ".join(
        f"{c['count']} {c['kind']} {c['bytes'] / 1e6:.2f} MB" for c in program["collectives"]
      ),
      "bound_ms": round(times["seconds"] * 1e3, 2),
      "bound_by": times["bound_by"],
      "images_per_sec_per_core": round(times["images_per_sec_per_core"], 1),
      "mfu": round(times["mfu"], 3),
      "core_days": round(times["core_days"], 1),
      "compile_seconds": round(program["compile_seconds"]),
    }
  return row


def read(path: pathlib.Path) -> list[dict[str, str]]:
  if not path.exists():
    return []
  with path.open(newline="") as f:
    return list(csv.DictReader(f))


def append(path: pathlib.Path, row: dict[str, object]) -> None:
  new = not path.exists()
  with path.open("a", newline="") as f:
    writer: csv.DictWriter[str] = csv.DictWriter(f, COLUMNS)
    if new:
      writer.writeheader()
    writer.writerow(row)


def markdown(rows: list[dict[str, str]]) -> str:
  """Returns the results as a Markdown table."""
  columns = [c for c in COLUMNS if c not in ("trials", "seconds", "cpu_seconds", "cores")]
  return tables.as_markdown(columns, [[r[c] for c in columns] for r in rows])


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("models", choices=PLANS)
  parser.add_argument("--results", type=pathlib.Path, help="default: benchmarks/plans_MODELS.csv")
  parser.add_argument("--only", type=re.compile, default=re.compile(""))
  parser.add_argument("--report", action="store_true")
  options = parser.parse_args()
  results = options.results or pathlib.Path(f"benchmarks/plans_{options.models}.csv")
  done = {(r["config"], r["topology"], r["objective"]) for r in read(results)}
  for key in dict.fromkeys(PLANS[options.models]):
    if options.report or key in done or not options.only.search(" ".join(key)):
      continue
    try:
      row = plan(*key)
    except RuntimeError as e:
      print(*key, "failed:", e, file=sys.stderr, flush=True)
      continue
    append(results, row)
    print(*key, row, flush=True)
  print(markdown(read(results)))


if __name__ == "__main__":
  main()
