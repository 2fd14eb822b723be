"""The planning command: on this machine's devices and, where libtpu is, on a TPU that is not there."""

import importlib.util
import json

import pytest

from tests import runs

SMALL = (
  "--config=configs/quickstart.py", "--config.model.num_blocks=1", "--config.model.stoch_depth=0.0",
  "--config.augment.mixup_p=0.0", "--config.optimizer.name=momentum",
)  # fmt: skip
# By hand: stem, block (norms, token mixing, channel mixing), norm, head.
PARAMETERS = (
  (48 * 64 + 64)
  + (2 * 2 * 64 + 2 * 16 * 32 + 32 + 16 + 2 * 64 * 256 + 256 + 64)
  + 2 * 64
  + (64 * 10 + 10)
)
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install '.[tpu]'"
)


def planned(*arguments):
  """Returns the plan of the small configuration."""
  status, output, errors = runs.tool("plan", *SMALL, "--json", *arguments)
  assert status == 0, errors
  return json.loads(output)


def test_this_machine():
  found = planned("--config.batch_size=32")
  assert found["parameters"] == PARAMETERS
  assert found["settings"]["batch_size"] == 32
  assert found["total_steps"] == (54 * 1437) // 32
  assert found["fits"]
  assert found["rates"] == "measured here"
  times, per_image = found["estimate"], found["training_flops_per_image"]
  assert times["seconds"] == max(times["compute_seconds"], times["memory_seconds"])
  products = 32 * per_image / found["program"]["flops"]
  assert times["mfu"] == pytest.approx(products * times["compute_seconds"] / times["seconds"])
  memory = found["program"]["memory"]
  assert memory["arguments"] >= 4 * 2 * PARAMETERS + 32 * 16 * 16 * 3
  assert found["needed_bytes"] == memory["total"]


@needs_libtpu
def test_a_tpu_that_is_not_there():
  found = planned("--topology=v3:2x2")
  assert (found["num_devices"], found["num_cores"], found["fits"]) == (8, 8, True)
  assert 15e9 < found["limit_bytes"] < 16 * 2**30
  sums = {c["kind"]: c["bytes"] for c in found["program"]["collectives"]}
  assert 4 * PARAMETERS <= sums["all-reduce"] < 4 * PARAMETERS + 100
  assert 0 < found["estimate"]["mfu"] < 1


@needs_libtpu
def test_fit_finds_a_setting_for_what_does_not_fit():
  """A wide and shallow Mixer whose activations, and not its parameters, are too much for 8 GiB."""
  wide = (
    "--topology=v2:2x2", "--config.batch_size=524288", "--config.total_epochs=1000.0", "--config.data.num_examples=100000000",
    "--config.model.channels_mlp_dim=2048",
  )  # fmt: skip
  status, output, errors = runs.tool("plan", *SMALL, *wide)
  assert status == 1, errors
  assert "DOES NOT FIT" in output
  assert "too much" in output
  plan = planned(*wide, "--fit=cost")
  assert plan["settings"]["grad_accum_steps"] > 1
  assert plan["needed_bytes"] <= plan["limit_bytes"]
