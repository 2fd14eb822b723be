"""What a configuration needs and would take on a TPU that is not there, or on this machine's devices.

python -m mixer_jax.tools.plan --config=configs/jft.py:H/14 --topology=v3:16x16 [--config.KEY=VALUE]

Compiles the real train step. --topology needs pip install '.[tpu]' and no TPU; without it the
devices of this machine are planned for. --fit=cost searches for the cheapest setting that fits, --fit=memory
for the one with the least temporaries. Exit status: 0 it fits, 1 it does not, 2 bad input.
"""

import re
import sys

from absl import flags

from mixer_jax.tools import command, config_files
from mixer_jax.tools.planning import topology

_CONFIG = config_files.define()
_TOPOLOGY = flags.DEFINE_string(
  "topology", None, "TPU slice to plan for, such as v3:16x16. Default: the devices of this machine."
)
_JSON = flags.DEFINE_bool("json", False, "Print the plan as a JSON object.")

_FIT = flags.DEFINE_enum(
  "fit",
  None,
  ["cost", "memory"],
  "Search for a setting that fits the device: the cheapest one, or the one with the least temporaries.",
)


def main(argv: list[str]) -> None:
  command.no_arguments(argv)
  where = topology.parse(_TOPOLOGY.value) if _TOPOLOGY.value else None
  from mixer_jax.tools.planning import planner, report

  plan = planner.Planner(command.loaded(_CONFIG), where)
  result = plan.find(_FIT.value, log=lambda text: print(text, file=sys.stderr, flush=True))
  print(report.to_json(result) if _JSON.value else report.table(result))
  sys.exit(0 if result.fits else 1)


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  if any(re.match("--?topology", argument) for argument in sys.argv):
    topology.prepare_environment()  # The configuration's file, read with the flags, imports JAX.
  command.run(main)
