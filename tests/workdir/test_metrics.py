"""metrics.jsonl: a damaged line costs its own record."""

import json
import os

import pytest
from etils import epath

from mixer_jax.errors import InputError
from mixer_jax.training import loop
from mixer_jax.workdir import metrics, trackers
from tests.configurations import small_config

LINES = [json.dumps({"step": step, "loss": 1 / step}).encode() for step in range(1, 7)]
KEPT = [{"step": step, "loss": 1 / step} for step in (1, 2, 4)]


@pytest.mark.parametrize(
  "bad",
  [b'{"step": 3, "los\xf3": 0.3}', b'{"step": 3 "loss": 0.3}', b"\x00", b"[3]", b'{"step": "3"}', b'{"loss": 1}'],
)  # fmt: skip
def test_an_unreadable_line_is_reported_and_stays(tmp_path, capsys, bad):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(b"\n".join([*LINES[:2], bad, *LINES[3:]]) + b'\n{"step": 7, "lo')
  for _ in range(2):
    writer = metrics.MetricWriter(epath.Path(tmp_path), 4, 4)
    assert writer.records == KEPT
    assert path.read_bytes() == b"\n".join([*LINES[:2], bad, LINES[3], b""])
    output = capsys.readouterr().out
    assert "1 unreadable line(s), which stay as they are: 3" in output
    assert "1 of the 4 records" in output
    writer.close()
  assert metrics.read_metrics(epath.Path(tmp_path)) == KEPT


def test_another_digit_is_reported(tmp_path, capsys):
  """A later evaluation of the same step may have added a record."""
  path, records = tmp_path / "metrics.jsonl", [json.loads(line) for line in LINES[:4]]
  sha256 = metrics.digest(records[:3])
  for third, warned in (LINES[2], False), (LINES[2].replace(b"0.3", b"0.7"), True):
    path.write_bytes(b"\n".join([*LINES[:2], third, LINES[3], b""]))
    metrics.MetricWriter(epath.Path(tmp_path), 4, 3, sha256).close()
    assert ("not all of the 3 records up to here are" in capsys.readouterr().out) == warned


def test_what_a_kill_left_incomplete_is_no_damage(tmp_path, capsys):
  (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(LINES[:2]) + b'\n{"step": 3, "lo')
  metrics.MetricWriter(epath.Path(tmp_path), 2, 2).close()
  assert capsys.readouterr().out == ""


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to(path.name)])
def test_a_node_that_is_no_file_loses_its_records_and_is_replaced(tmp_path, capsys, make):
  make(tmp_path / "metrics.jsonl")
  writer = metrics.MetricWriter(epath.Path(tmp_path), 2, 2)
  assert "2 of the 2 records" in capsys.readouterr().out
  writer.write(3, {"loss": 0.5})
  writer.close()
  assert metrics.read_metrics(epath.Path(tmp_path)) == [{"step": 3, "loss": 0.5}]


class _Recorder:
  def __init__(self):
    self.seen = []

  def write(self, step, values):
    self.seen.append((step, values))

  def close(self):
    self.seen.append("closed")


def test_trackers_get_every_record_once(tmp_path):
  recorder = _Recorder()
  writer = metrics.MetricWriter(epath.Path(tmp_path), 0, 0, trackers=[recorder])
  for step, values in ((1, {"loss": 0.5}), (1, {"loss": 0.5}), (2, {"val/top1": 0.25})):
    writer.write(step, values)
  writer.close()
  assert recorder.seen == [(1, {"loss": 0.5}), (2, {"val/top1": 0.25}), "closed"]


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
  config = small_config()
  config.log.wandb = "mixers"
  with pytest.raises(InputError, match=r"config\.log\.wandb is 'mixers'.*pip install .*wandb"):
    loop.train(config, str(tmp_path / "run"))
  assert [p.name for p in tmp_path.glob("run/*") if p.name != "lease"] == []


def test_weights_and_biases_keeps_a_run_offline(tmp_path, monkeypatch):
  pytest.importorskip("wandb", reason="needs wandb: pip install '.[wandb]'")
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  for step in (1, 2):  # resumed
    tracker = trackers.Wandb("mixers", epath.Path(tmp_path), "abc123", {"learning_rate": 0.125})
    tracker.write(step, {"val/top1": 0.25})
    tracker.close()
  files = [*tmp_path.glob("wandb/offline-run-*-abc123/run-abc123.wandb")]
  assert files and all(b"val/top1" in file.read_bytes() for file in files)


def test_progress_tells_speed_and_waiting_apart_from_pauses(monkeypatch):
  clock = [100.0]
  monkeypatch.setattr(metrics.time, "perf_counter", lambda: clock[0])
  progress = metrics.Progress(
    start_step=4, total_steps=10, batch_size=6, num_cores=2, core_hours=1.0
  )
  clock[0] += 3.0
  progress.wait(0.5)
  progress.pause(1.0)
  values = progress.measure(6)
  assert values == {
    "seconds": 2.0, "images_per_sec": 6.0, "data_wait": 0.25, "seconds_left": 4.0, "core_hours": 1 + 6 / 3600,
  }  # fmt: skip
  line = metrics.progress_line(6, 10, values | {"loss": 1.0, "lr": 0.1}, "videos")
  assert "6 videos/s  waits for data 25% of the time  left 0:00:04" in line
  line = metrics.progress_line(
    6, 10, values | {"loss": 1.0, "lr": 0.1, "data_wait": 0.09}, "images"
  )
  assert "6 images/s  left" in line
