"""One process at a time writes a workdir: leases are refused, taken over and lost."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import fsspec
import pytest

from mixer_jax.errors import SaveError
from mixer_jax.training import loop
from mixer_jax.workdir import lease
from tests import runs
from tests.configurations import small_config

HOLD = "import sys, time; from mixer_jax.workdir import lease; held = lease.take(sys.argv[1]); print(held); time.sleep(99)"


def change(path, **values):
  """Rewrites a lease, as another owner would have written it."""
  path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_lease_ends_with_its_owner_whatever_has_its_process_id(tmp_path):
  owner = subprocess.Popen(
    [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, cwd=runs.ROOT
  )
  assert owner.stdout is not None
  owner.stdout.readline()
  old = time.time() - 2 * lease.STALE_SECS
  os.utime(tmp_path / "lease", (old, old))  # a suspended process of this machine still has it
  with pytest.raises(lease.HeldError, match=rf"process {owner.pid} on .* since 20"):
    lease.take(tmp_path)
  owner.kill()
  owner.wait()
  change(tmp_path / "lease", pid=os.getpid())
  with lease.take(tmp_path):
    pass
  assert [*tmp_path.iterdir()] == []


def test_another_machines_lease_ends_when_it_is_not_renewed(tmp_path):
  path = tmp_path / "lease"
  path.write_text(json.dumps({"host": "elsewhere", "machine": "other", "pid": 1, "since": "then"}))
  with pytest.raises(lease.HeldError, match="process 1 on elsewhere since then"):
    lease.take(tmp_path)
  old = time.time() - lease.STALE_SECS - 1
  os.utime(path, (old, old))
  with lease.take(tmp_path) as held:
    held.check()
  assert not path.exists()


def test_a_buckets_lease_is_created_on_condition(monkeypatch):
  url = "memory://bucket/run"
  with lease.take(url) as held:
    held.check()
    with pytest.raises(lease.HeldError, match=f"process {os.getpid()} on"):
      lease.take(url)
  held = lease.take(url)
  monkeypatch.setattr(lease, "STALE_SECS", -1.0)
  with lease.take(url), pytest.raises(SaveError, match=f"in use by process {os.getpid()}"):
    held.check()
  held.release()
  assert fsspec.filesystem("memory").find("bucket") == []


class LosesItsLease(runs.StopAfter):
  """A run that another one takes the workdir from, as if this one had stood still."""

  def __init__(self, workdir):
    super().__init__(2)
    self._path = pathlib.Path(workdir) / "lease"

  def asked(self):
    change(self._path, host="elsewhere", id="another")
    return super().asked()


def test_a_run_is_alone_in_its_workdir_and_ends_when_it_is_not(tmp_path):
  with lease.take(tmp_path), pytest.raises(lease.HeldError):
    loop.train(small_config(), str(tmp_path))
  with pytest.raises(SaveError, match=r"in use by process \d+ on elsewhere"):
    loop.train(small_config(), str(tmp_path), LosesItsLease(tmp_path))
  assert [*(tmp_path / "checkpoints").iterdir()] == []
  assert (tmp_path / "lease").exists()


@pytest.mark.campaign
def test_a_second_run_is_refused_and_a_waiting_one_takes_over(tmp_path):
  command = runs.command(tmp_path, total_steps=1000)
  first = runs.start(command)
  runs.wait_for(first, "first step")
  status, output = runs.run(command)
  assert status == 2, output
  assert f"process {first.pid} on" in output.splitlines()[-1], output
  second = runs.start([*command, "--wait_for_workdir"])
  runs.wait_for(second, "waiting for workdir")
  first.kill()
  assert "resuming at step" in runs.wait_for(second, "first step")
  second.send_signal(signal.SIGTERM)
  output, _ = second.communicate(timeout=120)
  assert second.returncode == 143, output
  assert not (tmp_path / "lease").exists()
