"""What the evaluation of a run reads of a checkpoint, and the memory that it takes.

python -m benchmarks.restore --workdir=DIR  # a run with Adam, say, whose moments are twice its parameters

Prints the bytes that the checksums and the restore have read (Linux counts them for each process), and the peak of the
process's memory.
"""

import pathlib
import resource
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags

from mixer_jax.inference import evaluate
from mixer_jax.workdir import checkpoint

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a run.", required=True)


def _bytes_read() -> int:
  return int(pathlib.Path("/proc/self/io").read_text().split()[1])


def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns the function, which then prints what it has read."""

  def counted(*args: Any, **kwargs: Any) -> Any:
    before = _bytes_read()
    result = jax.block_until_ready(function(*args, **kwargs))
    print(f"{name}: {(_bytes_read() - before) / 1e6:,.1f} MB read", flush=True)
    return result

  return counted


def main(argv: list[str]) -> None:
  del argv
  checkpoint.choose = counting("checksums", checkpoint.choose)
  checkpoint.restore_variables = counting("restore", checkpoint.restore_variables)
  evaluate.evaluate(workdir=_WORKDIR.value, config=None)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  print(f"peak of the process's memory: {peak / 1e3:,.0f} MB")


if __name__ == "__main__":
  app.run(main)
