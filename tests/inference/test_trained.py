"""Loading a trained model: on the run's own mesh as far as the devices allow, and nothing but its variables."""

import jax
import numpy as np
import pytest

from mixer_jax import inference
from mixer_jax.training import loop
from tests import runs
from tests.configurations import small_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run of four devices, two shards of two replicas, and the results that it ended with."""
  workdir = tmp_path_factory.mktemp("fsdp")
  config = small_config(total_steps=3)
  config.mesh.data, config.mesh.fsdp = 2, 2
  config.mesh.rules = (".*/channel_mixing/Dense_0/kernel=1", ".*=replicate")
  return workdir, loop.train(config, str(workdir))


def shards(workdir):
  """Returns the shape of a device's share of a sharded kernel, and of the whole."""
  variables = inference.load(workdir=str(workdir), config=None).variables
  kernel = variables["params"]["MixerBlock_0"]["channel_mixing"]["Dense_0"]["kernel"]
  return kernel.addressable_shards[0].data.shape, kernel.shape


def test_a_run_of_sharded_parameters_is_evaluated_on_shards(run):
  workdir, results = run
  share, whole = shards(workdir)
  assert (share, whole) == ((16, 16), (16, 32))
  again = runs.evaluated(workdir=str(workdir), config=None)
  assert {k: again[k] for k in ("top1", "top5", "count")} == {
    k: results[k] for k in ("top1", "top5", "count")
  }
  np.testing.assert_allclose(again["loss"], results["loss"], rtol=1e-6)


def test_more_shards_than_devices_are_fewer_here_and_said(run, tmp_path, capsys):
  workdir, _ = run
  (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
  text = (workdir / "config.json").read_text().replace('"fsdp": 2', '"fsdp": 8')
  (tmp_path / "config.json").write_text(text)
  assert shards(tmp_path)[0] == (16, 8)
  assert f"in 4 shards on {jax.device_count()} devices" in capsys.readouterr().out
