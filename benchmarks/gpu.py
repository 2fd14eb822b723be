"""All that is measured on one GPU, in the order of worth, within the minutes that there are.

    python -m benchmarks.gpu --minutes=8 --rival_python=PYTHON --workdir=DIR
    python -m benchmarks.gpu --tiny --workdir=DIR                # on CPU, small: to see that it works

Speed beside timm and the published model, kernels on and off, where a step's time goes, a run interrupted and resumed, and what
it costs that it repeats. Each part is a command of its own that the clock may end; the report lists what it left out. Nothing
is downloaded or installed: PyTorch runs in --rival_python, without which its rows say so. `gpu.json` and `gpu.md` (the tables of
docs/results/gpu.md) in --workdir are written after each part.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple

from benchmarks import resumed
from mixer_jax import tables

ROOT = pathlib.Path(__file__).parents[1]
LEAST = 20  # seconds left without which no part begins


class Part(NamedTuple):
  """A command: `python -m benchmarks.MODULE`, with XLA's flags."""

  name: str
  module: str
  flags: str
  xla_flags: str = ""


RIVALS = "--contestant ours compiled"
PARTS = (
  Part("B/16", "step", "--model=B/16 --batch_sizes 256 --contestant ours pallas compiled"),
  Part("profile", "step_profile", "--model=B/16 --batch_sizes 256"),
  Part("L/16", "step", "--model=L/16 --batch_sizes 128 --contestant ours pallas compiled"),
  Part("resumed", "resumed", ""),
  Part(
    "deterministic", "step", "--model=B/16 --batch_sizes 256 --work training --contestant ours",
    resumed.DETERMINISTIC,
  ),
  Part("others", "step", "--model=B/16 --batch_sizes 256 --contestant ours eager published"),
  Part("ViT", "step", f"--model=vit-B/16 --batch_sizes 256 {RIVALS}"),
  Part("tuned", "step", "--model=B/16 --batch_sizes 256 --contestant ours tuned"),
  Part("batches", "step", f"--model=B/16 --batch_sizes 64 128 512 {RIVALS}"),
  Part("S/16", "step", f"--model=S/16 --batch_sizes 256 1024 {RIVALS}"),
  Part("L/16 batches", "step", f"--model=L/16 --batch_sizes 64 256 {RIVALS}"),
  Part("H/14", "step", f"--model=H/14 --batch_sizes 64 {RIVALS}"),
)  # fmt: skip
"""In the order of worth."""


def main() -> None:
  parser = argparse.ArgumentParser(description="all that is measured on one GPU")
  parser.add_argument("--minutes", type=float, default=8.0)
  parser.add_argument("--rival_python", type=pathlib.Path, help="Python that has PyTorch and timm")
  parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("workdir/gpu"))
  parser.add_argument("--tiny", action="store_true", help="on CPU, small; no measurement")
  args = parser.parse_args()
  args.workdir.mkdir(parents=True, exist_ok=True)
  report: dict[str, Any] = {"environment": environment(args), "parts": {}, "left_out": {}}
  end = time.monotonic() + 60 * args.minutes
  for part in PARTS:
    left = end - time.monotonic()
    if problem := "no time" if left < LEAST else run(args, part, left):
      report["left_out"][part.name] = problem
    path = json_of(args, part)
    report["parts"][part.name] = json.loads(path.read_text())["rows"] if path.exists() else []
    (args.workdir / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.workdir / "gpu.md").write_text(markdown(report))
  print(markdown(report))


def environment(args: argparse.Namespace) -> dict[str, str]:
  """Returns the device and the versions of what runs on it."""
  code = "from importlib.metadata import version as v; print({})"
  versions = code.format("'jax', v('jax')")
  rivals = code.format("'timm', v('timm'), 'torch', v('torch')")
  query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
  return {
    "device": "CPU, tiny" if args.tiny else _output(query),
    "ours": _output([sys.executable, "-c", versions]),
    "rivals": _output([args.rival_python, "-c", rivals]) if args.rival_python else "none",
  }


def _output(command: list[Any]) -> str:
  try:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError) as e:
    return f"not known: {e}"


def json_of(args: argparse.Namespace, part: Part) -> pathlib.Path:
  return args.workdir / f"{part.name.replace('/', '').replace(' ', '-')}.json"


def command_of(args: argparse.Namespace, part: Part) -> list[str]:
  """Returns the command of a part; the last of equal flags counts."""
  path = json_of(args, part)
  flags = [f"--json={path}", f"--device={'cpu' if args.tiny else 'gpu'}"]
  flags += [f"--workdir={args.workdir / path.stem}", *(["--tiny"] if args.tiny else [])]
  if part.module != "resumed":
    cores = len(os.sched_getaffinity(0))
    flags += [f"--cores={cores}", "--repeats=3", "--min_secs=0.7"]
    flags += [f"--dtype={'float32' if args.tiny else 'bfloat16'}"]
    flags += [f"--rival_python={args.rival_python or 'none-given'}"]
  return [sys.executable, "-m", f"benchmarks.{part.module}", *part.flags.split(), *flags]


def run(args: argparse.Namespace, part: Part, seconds: float) -> str | None:
  """Runs a part; returns what is missing of it, or None. What it measured before the clock ended it is in its file."""
  begin, env = time.monotonic(), {**os.environ, "PYTHONPATH": str(ROOT)}
  env["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {part.xla_flags}".strip()
  json_of(args, part).unlink(missing_ok=True)
  print(f"{part.name}: {seconds:.0f} s left", flush=True)
  process = subprocess.Popen(command_of(args, part), cwd=ROOT, env=env, start_new_session=True)
  try:
    status = process.wait(seconds)
  except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)  # it and its children, which hold the device
    process.wait()
    return f"ended by the clock after {time.monotonic() - begin:.0f} s"
  return f"ended with status {status}" if status else None


# --- the report -------------------------------------------------------------------------------------


def markdown(report: dict[str, Any]) -> str:
  """Returns the tables of docs/results/gpu.md."""
  lines = [f"{name}: {value}" for name, value in report["environment"].items()]
  rows = [row for part in report["parts"].values() for row in part]
  timed = [[*map(str, speed(part, row))] for part, row in _rows(report, "work")]
  titles = ["part", "model", "work", "batch", "contestant", "ms", "images/s", "MFU"]
  titles += ["ours is … × as fast", "start, s", "peak, GiB"]
  sections = ["\n".join(lines), tables.as_markdown(titles, timed)]
  for row in (row for row in rows if "groups_ms" in row):
    shares = [[group, str(ms)] for group, ms in row["groups_ms"].items()]
    title = f"{row['model']}, batch {row['batch_size']}, {row['contestant']}"
    sections.append(tables.as_markdown([title, "ms a step"], shares))
  for _, row in _rows(report, "weights_identical"):
    sections.append(tables.as_markdown([*row], [[*map(str, row.values())]]))
  missing = [f"- {part} {row['contestant']}: {row['not_run']}" for part, row in _rows(report, "not_run")]  # fmt: skip
  missing += [f"- {part}: {reason}" for part, reason in report["left_out"].items()]
  return "\n\n".join([*sections, "\n".join(["Not measured:", *missing])]) + "\n"


def _rows(report: dict[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
  return [(part, row) for part, rows in report["parts"].items() for row in rows if key in row]


def speed(part: str, row: dict[str, Any]) -> list[Any]:
  """Returns the columns of a contestant at one kind of work."""
  ratio, peak = row["ours_ratio"], row["peak_bytes"]
  return [
    part, row["model"], row["work"], row["batch_size"], row["contestant"],
    f"{1000 * row['wall_s']:.2f}", f"{row['images_per_sec']:.0f}", f"{row['mfu']:.1%}",
    "" if ratio is None else f"{ratio:.2f}", f"{row['start_s']:.0f}",
    "" if peak is None else f"{peak / 2**30:.1f}",
  ]  # fmt: skip


if __name__ == "__main__":
  main()
