"""The protocol on a tiny model: its table, resuming, leases."""

import json

import numpy as np
import pytest
from etils import epath

from configs import finetune as finetune_config
from mixer_jax import configuration
from mixer_jax.errors import DivergedError, InputError
from mixer_jax.tools.sweep import protocol, worker
from tests.configurations import small_weights


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return small_weights(tmp_path_factory)


def call(source, results, **values):
  """Runs the protocol on the small setting; `config` are changes of a run's configuration."""
  given = dict(datasets=["digits_5_9"], size=16, lrs=[0.01, 0.03], seeds=2, report=False, steps=2)
  given |= values

  def make_config(run):
    config = finetune_config.get_config(f"{run.argument},steps={given['steps']}")
    config.seed, config.batch_size, config.mesh.data = run.seed, 16, 1
    config.evaluators.pictures.every_steps = 0
    return config

  transfers = worker.plan([given.get("weights", source)], given["datasets"], given["size"])
  sweep = protocol.Sweep(transfers, given["lrs"], given["seeds"])
  worker.run_protocol(sweep, results, make_config, report_only=given["report"])


def test_it_prints_its_table_and_repeats_nothing(source, tmp_path, capsys):
  call(source, tmp_path)
  output = capsys.readouterr().out
  assert output.count("== ") == 4
  runs = {str(p.parent.relative_to(tmp_path)): json.loads(p.read_text())
          for p in tmp_path.rglob("result.json")}  # fmt: skip
  (best,) = {r["lr"] for n, r in runs.items() if "/test-" in n}
  assert sorted(r.rsplit("/", 1)[1] for r in runs) == [
    "dev-lr0.01-seed0", "dev-lr0.03-seed0", f"test-lr{best}-seed0", f"test-lr{best}-seed1",
  ]  # fmt: skip
  assert {r["count"] for n, r in runs.items() if "/dev-" in n} == {143}
  tests = [r for n, r in runs.items() if "/test-" in n]
  assert {r["count"] for r in tests} == {179}
  mean = 100 * np.mean([r["top1"] for r in tests])
  assert f"{mean:.2f}" in output and f"{mean:.2f}" in (tmp_path / "table.md").read_text()
  assert not list(tmp_path.rglob("lease*"))
  call(source, tmp_path)
  again = capsys.readouterr().out
  assert "== " not in again and f"{mean:.2f}" in again
  # A lost seed alone is run again, with the same result.
  (lost,) = [tmp_path / n for n in runs if n.endswith("-seed1")]
  (lost / "result.json").unlink()
  call(source, tmp_path)
  assert capsys.readouterr().out.count("== ") == 1
  assert json.loads((lost / "result.json").read_text()) == runs[str(lost.relative_to(tmp_path))]
  for path in tmp_path.rglob("config.json"):  # as a version without this key saved them
    config = json.loads(path.read_text())
    del config["evaluators"]["val"]["num_workers"]
    path.write_text(json.dumps(config))
    (path.parent / "SHA256SUMS").unlink(missing_ok=True)
  call(source, tmp_path, report=True)
  with pytest.raises(InputError, match=r"(?s)run with other settings:.*total_steps: 2 -> 3"):
    call(source, tmp_path, steps=3)
  assert not list(tmp_path.glob("*/*/*/dev-*/checkpoints"))
  assert len(list(tmp_path.glob("*/*/*/test-*/checkpoints"))) == 2


def test_a_diverged_run_counts_as_nothing_right(source, tmp_path, capsys, monkeypatch):
  def train(config, workdir, stop, lease):
    configuration.save(epath.Path(workdir) / "config.json", config)
    if config.learning_rate > 1:
      raise DivergedError("step 3: loss is not finite")
    return {"top1": 0.5, "count": 143}

  monkeypatch.setattr(worker.loop, "train", train)
  call(source, tmp_path, lrs=[1e38, 0.01], seeds=1)
  output = capsys.readouterr().out
  assert "diverged, counted as 0" in output
  assert "  0.01  " in output


def test_what_was_not_run_is_shown_as_such(source, tmp_path, capsys):
  call(source, tmp_path, report=True)
  assert "0 of 2 seeds finished" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"datasets": ["digits_5_9", "digits_5_9"]}, "twice"),
    ({"datasets": ["digts"]}, "not known"),
    ({"weights": "/nowhere.npz"}, "neither a file"),
    ({"size": 18}, "does not divide"),
  ],
)
def test_bad_input_is_named_before_anything_runs(source, tmp_path, capsys, values, message):
  with pytest.raises(InputError, match=message):
    call(source, tmp_path, **values)
  assert "== " not in capsys.readouterr().out
