"""Where a training step's time goes: the device's own times of its operations, grouped by the part of the model.

    python -m benchmarks.step_profile --device=gpu --model=B/16 --dtype=bfloat16 --batch_sizes 256 --json=FILE

Flags are those of step.py. An operation belongs to the layer that its name in the compiled program says; one that XLA fused of
several belongs to its last. On several streams at once, the times add up to more than the step's.
"""

import collections
import json
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from benchmarks import step

STEPS = 3
GROUPS = (
  ("stem", r"/(stem|embedding)/"),
  ("token mixing", r"/token_mixing/"),
  ("channel mixing", r"/(channel_mixing|MlpBlock_\d)/"),
  ("attention", r"/MultiHeadDotProductAttention_"),
  ("norms and residuals", r"LayerNorm|layer_norm|encoder_norm|MixerBlock_|encoderblock_"),
  ("head", r"/head/"),
)
REST = "optimizer, clipping and others"


def main() -> None:
  parser = step.make_parser("where a training step's time goes", ("ours", "pallas"))
  parser.add_argument("--model", choices=step.MODELS, default="S/16")
  args = step.parse(parser)
  if args.device == "gpu":  # a graph of kernels is one event
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_command_buffer="
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
  os.environ["JAX_PLATFORMS"] = {"gpu": "cuda", "cpu": "cpu"}[args.device]
  rows = [profile(args, name) for name in args.contestant]
  for row in rows:
    print(json.dumps(row, indent=1), flush=True)
  if args.json:
    args.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def profile(args: Any, name: str) -> dict[str, Any]:
  """Returns milliseconds of a step by group, and of the operations that take longest."""
  import jax

  from benchmarks import step_jax
  from mixer_jax.tools import throughput
  from mixer_jax.training import experiment

  case = {**step.make_case(args)._asdict(), "dtype": args.dtype}
  config = step_jax.make_config(case, "pallas" if name == "pallas" else "auto")
  exp = experiment.build(config)
  state, batch = exp.init_state(), throughput.make_batch(exp, args.batch_sizes[0])
  compiled = exp.train_step.lower(state, batch).compile()
  state, metrics = compiled(state, batch)
  jax.block_until_ready(metrics)
  with tempfile.TemporaryDirectory() as directory:
    with jax.profiler.trace(directory):
      for _ in range(STEPS):
        state, metrics = compiled(state, batch)
      jax.block_until_ready((state, metrics))
    (path,) = pathlib.Path(directory).rglob("*.xplane.pb")
    operations = read(path)
  names, memory = op_names(compiled.as_text()), compiled.memory_analysis()
  return {
    "model": step.label(step.make_case(args)), "contestant": name,
    "batch_size": args.batch_sizes[0], "dtype": args.dtype,
    "temporaries_bytes": memory.temp_size_in_bytes, **grouped(operations, names),
  }  # fmt: skip


def read(path: pathlib.Path) -> dict[str, float]:
  """Returns the milliseconds a step of each operation in a trace."""
  import jax

  operations: collections.Counter[str] = collections.Counter()
  for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
    for line in plane.lines:
      for event in line.events:
        stats = dict(event.stats)
        # A kernel that tells no operation counts by its own name; the lines of a summary repeat kernels.
        if "hlo_op" in stats or (plane.name.startswith("/device") and "Stream" in line.name):
          operations[str(stats.get("hlo_op", event.name))] += event.duration_ns / 1e6 / STEPS
  return dict(operations)


def op_names(hlo: str) -> dict[str, str]:
  """Returns operation -> what JAX calls it, "jit(train_step)/…/MixerBlock_0/add"."""
  return dict(re.findall(r'^ *(?:ROOT )?%?([\w.\-]+) = .*op_name="([^"]*)"', hlo, re.MULTILINE))


def grouped(operations: Mapping[str, float], names: Mapping[str, str]) -> dict[str, Any]:
  """Returns the milliseconds of the groups, and of the fifteen longest operations with their names."""
  groups: collections.Counter[str] = collections.Counter()
  for operation, ms in operations.items():
    name = names.get(operation, "")
    group = next((group for group, pattern in GROUPS if re.search(pattern, name)), REST)
    product = re.search(r"(dot_general|conv_general_dilated|pallas_call)$", name)
    groups[f"{group}: products" if product else group] += ms
  longest = sorted(operations, key=lambda o: -operations[o])[:15]
  return {
    "groups_ms": {group: round(ms, 3) for group, ms in groups.most_common()},
    "longest_ms": {
      f"{operation} {names.get(operation, '')}".strip(): round(operations[operation], 3)
      for operation in longest
    },
  }


if __name__ == "__main__":
  sys.exit(main())
