"""The trace that config.profile writes."""

import gzip
import json
import signal

import jax
import pytest
from etils import epath

from mixer_jax.errors import InputError
from mixer_jax.training import experiment, loop, profiling
from tests import runs
from tests.configurations import small_config


def test_a_trace_holds_the_named_steps(tmp_path, capsys):
  config = small_config()
  config.profile.first_step, config.profile.num_steps = 3, 2
  with pytest.raises(SystemExit) as stop:
    loop.train(config, str(tmp_path), runs.StopAfter(5))
  assert stop.value.code == 128 + signal.SIGTERM
  assert "traced steps 3 to 4 into" in capsys.readouterr().out
  (xplane,) = (tmp_path / "plugins" / "profile").glob("*/*.xplane.pb")  # where XProf looks
  events = [
    dict(event.stats)
    for plane in jax.profiler.ProfileData.from_file(str(xplane)).planes
    for line in plane.lines
    for event in line.events
    if event.name == "train"
  ]
  assert sorted(e["step_num"] for e in events) == [3, 4]
  (trace,) = xplane.parent.glob("*.trace.json.gz")
  names = {e.get("name") for e in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
  assert "train" in names


def test_a_trace_beyond_the_run_is_named():
  config = small_config()
  config.profile.first_step, config.profile.num_steps = 19, 3
  with pytest.raises(InputError, match="3 steps from 19 on, but the run has 20 steps"):
    experiment.build(config)


def test_a_trace_that_a_resumed_run_is_too_late_for_is_said():
  profiler = profiling.StepProfiler(epath.Path("run"), first_step=3, num_steps=2)
  assert profiler.missed(2) is None
  assert "profile.first_step=3 was taken before: nothing is traced" in (profiler.missed(3) or "")
  assert profiling.StepProfiler(epath.Path("run"), first_step=None, num_steps=1).missed(3) is None
