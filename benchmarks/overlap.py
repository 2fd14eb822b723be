"""Whether a CPU's steps follow one another without a gap: batches are put on the device while the step before computes.

    python -m benchmarks.overlap

Trains the quickstart's Mixer, widened so that a step takes long, and reads the trace of some steps. Prints for each how much of
the putting of its batch lies in another step's computing, and how long the device then had nothing to do.
"""

import argparse
import gzip
import itertools
import json
import pathlib
import tempfile
from typing import Any

import jax

from mixer_jax.configs import quickstart
from mixer_jax.training import loop

FIRST, STEPS = 10, 12


def main() -> None:
  argparse.ArgumentParser(description="copies of batches beside computing").parse_args()
  jax.config.update("jax_platforms", "cpu")
  config = quickstart.get_config()
  config.model.hidden_dim, config.schedule.warmup_steps = 256, 5
  config.total_epochs, config.total_steps = None, FIRST + STEPS
  config.profile.first_step, config.profile.num_steps = FIRST, STEPS
  with tempfile.TemporaryDirectory() as workdir:
    loop.train(config, workdir)
    (path,) = pathlib.Path(workdir).rglob("*.trace.json.gz")
    with gzip.open(path) as f:
      report(json.load(f)["traceEvents"])


def report(events: list[dict[str, Any]]) -> None:
  """Prints a line for each step; times in milliseconds."""
  puts = spans(events, "put_batch")
  # A thread of the backend begins a program and waits for it.
  begun, waited = "ThunkExecutor::Execute", "ThunkExecutor::Execute (wait for completion)"
  parts = sorted([*spans(events, begun), *spans(events, waited)])
  computing = [
    (a, b) for a, b in joined(parts) if b - a > 10
  ]  # steps, and not what prints or counts
  for step, (begin, end) in enumerate(puts, FIRST):
    within = sum(max(min(b, end) - max(a, begin), 0) for a, b in computing)
    print(
      f"step {step}: batch put in {end - begin:.2f} ms, of which {within:.2f} ms while another step computed"
    )
  for (_, end), (begin, _) in itertools.pairwise(computing):
    print(f"nothing to do for {begin - end:.2f} ms after a step")


def joined(parts: list[tuple[float, float]]) -> list[tuple[float, float]]:
  """Returns the spans in which at least one part lies, but for gaps below a tenth of a millisecond."""
  found = parts[:1]
  for begin, end in parts[1:]:
    if begin > found[-1][1] + 0.1:
      found.append((begin, end))
    else:
      found[-1] = found[-1][0], max(found[-1][1], end)
  return found


def spans(events: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
  """Returns (begin, end) in milliseconds of the events whose name ends so, in order."""
  found = [e for e in events if e.get("ph") == "X" and e["name"].endswith(name)]
  return sorted((e["ts"] / 1e3, (e["ts"] + e["dur"]) / 1e3) for e in found)


if __name__ == "__main__":
  main()
