"""Whole runs, in this process: resumed runs equal undisturbed ones, damage is met, bad input is named."""

import csv
import dataclasses
import json
import shutil
import types

import numpy as np
import pytest
from etils import epath

from mixer_jax import configuration, inference
from mixer_jax.errors import DivergedError, InputError, SaveError
from mixer_jax.inference import follow
from mixer_jax.training import experiment, headline, loop
from mixer_jax.workdir import checkpoint, checksums, provenance
from tests import runs, tfds_sets
from tests.configurations import small_config, train_batches
from tests.conftest import GOLDEN
from tests.marks import long
from tests.training.steps import put


def averaging(**changes):
  return small_config(ema_decay=0.9, **changes)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  """A finished small run, which keeps an average: (workdir, results)."""
  workdir = tmp_path_factory.mktemp("undisturbed")
  return workdir, loop.train(averaging(), str(workdir))


def test_a_finished_run_reports_itself(undisturbed, capsys):
  """The same command again finds it finished: the same figures, and nothing written twice."""
  workdir, results = undisturbed
  before = (workdir / "metrics.jsonl").read_text()
  assert loop.train(averaging(), str(workdir)) == results
  assert (workdir / "metrics.jsonl").read_text() == before
  output = capsys.readouterr().out
  assert "finished: val on digits test: top-1" in output
  assert results["count"] == 360
  logged = runs.records(workdir)
  assert [r["step"] for r in logged if "loss" in r] == [5, 10, 15, 20]
  assert [r["step"] for r in logged if "val/top1" in r] == [10, 20]


def test_events_hold_the_same_numbers(undisturbed):
  from tensorboardX.proto.event_pb2 import Event

  workdir, _ = undisturbed
  found = {}
  for path in sorted((workdir / "events").iterdir()):
    data, at = path.read_bytes(), 0
    while at < len(data):  # a TFRecord: length, its checksum, data, its checksum
      length = int.from_bytes(data[at : at + 8], "little")
      event = Event.FromString(data[at + 12 : at + 12 + length])
      for value in event.summary.value:
        found[event.step, value.tag] = value.simple_value
      at += 16 + length
  for record in (json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()):
    for name, value in record.items():
      if name != "step":
        np.testing.assert_allclose(found[record["step"], name], value, rtol=1e-6)


def test_checkpoints_are_evaluated_as_they_come_and_nothing_else_is_touched(
  undisturbed, tmp_path, monkeypatch, capsys
):
  """The last checkpoint comes while another process waits for it; one goes before it is read."""
  run = tmp_path / "run"
  shutil.copytree(undisturbed[0], run)
  *kept, end = steps_of(run)
  last = (run / "checkpoints" / str(end)).rename(tmp_path / "last")
  before = files_of(run)
  monkeypatch.setattr(
    follow,
    "time",
    types.SimpleNamespace(
      sleep=lambda _: last.exists() and last.rename(run / "checkpoints" / str(end))
    ),
  )
  found = checkpoint.steps
  monkeypatch.setattr(checkpoint, "steps", lambda workdir: [kept[-1] - 1, *found(workdir)])
  follow.follow(str(run))
  follow.follow(str(run))
  recorded = [json.loads(x) for x in (run / "evaluations.jsonl").read_text().splitlines()]
  assert [r["step"] for r in recorded] == [*kept, end]
  assert recorded[-1]["top1"] == undisturbed[1]["top1"]
  assert {k: v for k, v in files_of(run).items() if k in before} == before
  output = capsys.readouterr().out
  assert f"skipped step {kept[-1] - 1}" in output
  assert f"after step {kept[-1]}; the run ends at step {end}" in output


def files_of(directory):
  return {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("stops", "num_workers"), [((3, 8, 2), 0), long((6,), 1), long((15,), 2)])
def test_interrupted_runs_end_bit_identical(undisturbed, tmp_path, capsys, stops, num_workers):
  config = averaging()
  config.data.num_workers = num_workers
  for steps in stops:
    with pytest.raises(SystemExit) as stop:
      loop.train(config, str(tmp_path), runs.StopAfter(steps))
    assert stop.value.code == 143
    assert int(capsys.readouterr().out.split("saved step ")[1].split()[0]) == steps_of(tmp_path)[-1]
  results = loop.train(config, str(tmp_path))
  assert results == undisturbed[1]
  runs.assert_same_run(tmp_path, undisturbed[0], 20)


def test_saving_does_not_see_later_steps(tmp_path):
  """The state is donated to the next step while it is still being written."""
  config = small_config(total_steps=13)
  config.checkpoint.every_steps, config.checkpoint.keep_newest = 1, 13
  loop.train(config, str(tmp_path))
  again = small_config(total_steps=13)
  exp = experiment.build(again)
  batches = train_batches(exp, 13)
  state = exp.init_state()
  for step in range(13):
    state, _ = exp.train_step(state, put(exp, batches[step]))
    if step % 6 == 0:
      saved = runs.final_state(tmp_path, step + 1)
      kernel = saved["['params']['stem']['kernel']"]
      np.testing.assert_array_equal(kernel, state.params["stem"]["kernel"])


def steps_of(workdir):
  return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


def test_newest_and_best_are_kept(tmp_path):
  config = small_config(total_steps=24)
  config.evaluators.val.every_steps, config.checkpoint.every_steps = 6, 3
  loop.train(config, str(tmp_path))
  top1 = {r["step"]: r["val/top1"] for r in runs.records(tmp_path) if "val/top1" in r}
  kept = steps_of(tmp_path)
  assert kept[-2:] == [21, 24]
  assert set(kept) - {21, 24} <= {6, 12, 18}
  best = max(top1.values())
  assert any(top1.get(step) == best for step in kept)
  results = runs.evaluated(workdir=str(tmp_path), config=None, which="best")
  assert results["top1"] == best


def test_only_scores_of_one_measure_are_compared(tmp_path):
  """A run that goes on by top-5, the larger number, keeps and chooses its best by top-5 alone."""
  config = small_config(total_steps=24, best="val/top5")
  config.evaluators.val.every_steps, config.checkpoint.every_steps = 6, 6
  with pytest.raises(SystemExit):
    loop.train(config, str(tmp_path), runs.StopAfter(10))
  before = steps_of(tmp_path)
  config.best = "val/top1"
  loop.train(config, str(tmp_path), allow_change=["best"])
  top1 = {r["step"]: r["val/top1"] for r in runs.records(tmp_path) if "val/top1" in r}
  later = {step: value for step, value in top1.items() if step > max(before)}
  assert later[checkpoint.best_step(epath.Path(tmp_path))] == max(later.values())


def stopped_run(tmp_path):
  """A run that was stopped with checkpoints of several steps; returns the configuration."""
  config = averaging()
  config.checkpoint.keep_newest = 3
  with pytest.raises(SystemExit):
    loop.train(config, str(tmp_path), runs.StopAfter(14))
  assert len(steps_of(tmp_path)) >= 3
  return config


def data_file(step_directory):
  return max((p for p in step_directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(step_directory):
  path = data_file(step_directory)
  data = bytearray(path.read_bytes())
  data[len(data) // 3] ^= 4
  path.write_bytes(data)


def half_written(step_directory):
  data_file(step_directory).unlink()
  (step_directory / "default" / checksums.CHECKSUMS).unlink()


def break_metrics(step_directory):
  (step_directory / "metrics" / "metrics").write_text('{"top1": ')


@pytest.mark.parametrize("damage", [flip, long(half_written), long(break_metrics)])
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(
  undisturbed, tmp_path, capsys, damage
):
  config = stopped_run(tmp_path)
  *_, before, newest = steps_of(tmp_path)
  damage(tmp_path / "checkpoints" / str(newest))
  capsys.readouterr()
  assert runs.evaluated(workdir=str(tmp_path), config=None)["count"] == 360
  assert f"checkpoint of step {newest} is damaged" in capsys.readouterr().out
  results = loop.train(config, str(tmp_path))
  output = capsys.readouterr().out
  assert f"WARNING: checkpoint of step {newest} is damaged" in output
  assert f"resuming at step {before}" in output
  assert len(list((tmp_path / "damaged_checkpoints").iterdir())) == 1
  assert results == undisturbed[1]
  runs.assert_same_state(runs.final_state(tmp_path, 20), runs.final_state(undisturbed[0], 20))


def test_without_any_intact_checkpoint_nothing_is_overwritten(tmp_path):
  config = stopped_run(tmp_path)
  before = steps_of(tmp_path)
  for step in before:
    flip(tmp_path / "checkpoints" / str(step))
  for _ in range(2):
    with pytest.raises(InputError, match="no intact checkpoint is left"):
      loop.train(config, str(tmp_path))
  assert steps_of(tmp_path) == before


def test_every_bit_is_covered(tmp_path):
  """A flipped bit anywhere in the saved arrays' files is found."""
  stopped_run(tmp_path)
  item = tmp_path / "checkpoints" / str(steps_of(tmp_path)[-1]) / "default"
  assert checksums.find_damage(epath.Path(item)) is None
  rng = np.random.default_rng(0)
  files = [p for p in item.rglob("*") if p.is_file() and p.name != "commit_success.txt"]
  assert item / "provenance.json" in files
  for path in files:
    data = path.read_bytes()
    for at in rng.integers(0, len(data), 3):
      changed = bytearray(data)
      changed[at] ^= 1 << int(rng.integers(8))
      path.write_bytes(changed)
      assert checksums.find_damage(epath.Path(item)) is not None, (path, at)
    path.write_bytes(data)


def test_nan_stops_at_its_step_and_leaves_a_good_checkpoint(tmp_path):
  """The learning rate overflows while warming up."""
  config = small_config(learning_rate=1e38)
  config.schedule.warmup_steps = 15
  config.checkpoint.every_steps, config.optimizer.weight_decay = 1, 0.0
  with pytest.raises(
    DivergedError, match=r"step \d+: .*not finite; the last good checkpoint is that of step"
  ) as e:
    loop.train(config, str(tmp_path))
  bad = int(str(e.value).split()[1].rstrip(":"))
  assert steps_of(tmp_path)[-1] == bad - 1
  for name, value in runs.final_state(tmp_path, bad - 1).items():
    assert np.isfinite(value.astype(np.float64)).all(), name


def test_another_configuration_is_refused_with_the_differences(undisturbed, capsys):
  config = averaging(learning_rate=0.5)
  config.model.stoch_depth = 0.2
  config.evaluators.val.ops = "decode|resize(18)|central_crop"
  with pytest.raises(InputError) as error:
    loop.train(config, str(undisturbed[0]))
  assert str(error.value).endswith(" --allow_change=evaluators.val.ops")
  assert "learning_rate: 0.001 -> 0.5" in str(error.value)
  assert "model.stoch_depth: 0.1 -> 0.2" in str(error.value)
  assert "seed" not in str(error.value)
  allowed = averaging(grad_accum_steps=2)
  allowed.data.num_workers, allowed.mesh.data, allowed.log.every_steps = 1, 4, 7
  allowed.evaluators.val.batch_size = 100
  assert loop.train(allowed, str(undisturbed[0]))["top1"] == undisturbed[1]["top1"]
  saved = configuration.load(epath.Path(undisturbed[0]) / "config.json")
  assert saved["grad_accum_steps"] == 2


def test_another_split_of_the_same_size_is_refused_unless_allowed(tmp_path, capsys):
  config = small_config()
  config.data.split, config.data.num_examples = "train[:700]", 700
  with pytest.raises(SystemExit):
    loop.train(config, str(tmp_path), runs.StopAfter(6))
  first = provenance.read(epath.Path(tmp_path), 7)
  config.data.split = "train[700:1400]"
  with pytest.raises(InputError, match=r"data\.split\.records of digits train\[700:1400\]"):
    loop.train(config, str(tmp_path))
  loop.train(config, str(tmp_path), allow_change=["data.split"])
  assert "data.split: 'train[:700]' -> 'train[700:1400]'" in capsys.readouterr().out
  last = provenance.read(epath.Path(tmp_path), 20)
  assert (first.run, first.step, last.step) == (last.run, 7, 20)
  assert last.splits["data.split"].name == "digits train[700:1400]"
  # Its class names need no data.
  trained = inference.load(workdir=str(tmp_path), config=None)
  assert trained.class_names == tuple("0123456789")
  assert inference.class_names(dataclasses.replace(trained, class_names=("a",)))[:2] == ["a", "1"]


@pytest.mark.parametrize("num_devices", [1, 4])
@pytest.mark.parametrize("batch_size", [7, 64, 360, 512])
def test_evaluation_is_exact(undisturbed, batch_size, num_devices):
  config = small_config()
  config.evaluators.val.batch_size, config.mesh.data = batch_size, num_devices
  results = runs.evaluated(workdir=str(undisturbed[0]), config=config)
  assert results["count"] == 360
  assert (results["top1"], results["top5"]) == (undisturbed[1]["top1"], undisturbed[1]["top5"])
  np.testing.assert_allclose(results["loss"], undisturbed[1]["loss"], rtol=1e-6)


def test_evaluation_does_not_ask_for_the_training_batch_or_mesh(undisturbed, tmp_path):
  """A batch of 16 does not divide by three devices, and evaluation does not care."""
  config = small_config()
  config.mesh.data = 3
  assert (
    runs.evaluated(workdir=str(undisturbed[0]), config=config)["top1"] == undisturbed[1]["top1"]
  )
  other = small_config()
  other.model.hidden_dim = 32
  with pytest.raises(InputError, match=r"another configuration:\n  model\.hidden_dim: 16 -> 32"):
    runs.evaluated(workdir=str(undisturbed[0]), config=other)


def test_details_count_what_the_evaluation_counts(undisturbed, tmp_path, capsys):
  results = runs.evaluated(
    workdir=str(undisturbed[0]), config=None, details=str(tmp_path / "details")
  )
  assert "accuracy by class" in capsys.readouterr().out
  with (tmp_path / "details" / "classes.csv").open() as f:
    classes = list(csv.DictReader(f))
  assert sum(int(c["count"]) for c in classes) == 360
  assert sum(int(c["correct"]) for c in classes) / 360 == results["top1"]
  with pytest.raises(InputError, match="--details="):
    runs.evaluated(workdir=str(undisturbed[0]), config=None, details="/dev/null/details")


def test_weights_that_do_not_fit_are_named():
  file = str(GOLDEN / "mixer_tiny_checkpoint.npz")
  with pytest.raises(InputError, match=r"num_classes=5, the model has .* num_classes=10"):
    runs.evaluated(workdir=None, config=small_config(), weights_file=file)


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("data.dataset", "imagenet2012", r"not prepared .*\n.*python -m mixer_jax\.tools\.prepare imagenet2012"),
    ("data.dataset", "digts", "not known to TFDS.* Did you mean 'digits'"),
    ("data.dataset", "tests", r"not known to TFDS.*prepare --from_folder=tests$"),
    ("data.dataset", "tests/two words", "not known to TFDS"),
    ("data.dataset", "./tests", "prepared TFDS data set.*prepare --from_folder=.*tests$"),
    ("data.dataset", "min/1.0.0", r"not known to TFDS.* NAME/VERSION\.$"),
    ("data.dataset", "/nowhere/digits/1.0.0", "not the directory of a prepared TFDS data set"),
    ("data.split", "trian", r"split 'trian' .* Did you mean 'train'"),
    ("data.split", "train[:50%]", r"data\.num_examples is 1437, .* has 718"),
    ("evaluators.val.split", "validation", r"split 'validation' .*"),
    ("data.ops", "decode|resize(20)", r"data\.ops .* leaves \(20, 20\)"),
    ("evaluators.val.ops", "decode|resize(20)", r"val\.ops .* leaves \(20, 20\)"),
    ("evaluators.val.num_examples", 100, r"val\.num_examples is 100, .* has 360"),
    ("num_classes", 7, r"10 classes.* num_classes 7"),
  ],
)  # fmt: skip
def test_bad_data_is_named_before_anything_is_written(tmp_path, key, value, message):
  config = small_config()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(InputError, match=message):
    loop.train(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_classes_that_the_data_lack_are_reported(tmp_path, capsys):
  config = small_config(num_classes=13)
  config.evaluators.val.num_examples = 100
  with pytest.raises(InputError, match="num_examples is 100"):  # which is looked at next
    loop.train(config, str(tmp_path))
  assert "config.num_classes is 13" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("platform", "asked", "device", "named"),
  [("cpu", None, "nvidia0", True), ("cpu", "cpu", "nvidia0", False), ("gpu", None, "nvidia0", False), ("cpu", "", "null", False)],
)  # fmt: skip
def test_a_gpu_that_is_not_used_is_named(tmp_path, monkeypatch, platform, asked, device, named):
  (tmp_path / device).touch()
  monkeypatch.setenv("PATH", "")  # where nvidia-smi may be
  line = headline.unused_gpu(platform, asked, str(tmp_path))
  assert ("pip install 'jax[cuda12]" in line or "nvidia-smi" in line) is named


def on_damaged_data(tmp_path, total_steps=4):
  config = small_config(total_steps=total_steps)
  config.data.dataset = tfds_sets.damaged(tmp_path / "tfds")
  config.data.num_examples, config.evaluators.val.num_examples = 40, 20
  return config


def test_damaged_records_stop_or_are_counted(tmp_path, capsys):
  config = on_damaged_data(tmp_path)
  with pytest.raises(InputError, match=r"bad record \d+ of .*damaged.* test: .*PNG"):
    loop.train(config, str(tmp_path / "stop"))
  # What was trained is saved before the evaluation's error.
  assert steps_of(tmp_path / "stop") == [4]
  config.data.on_bad_record = "skip"  # what the message says, for the same run
  results = loop.train(config, str(tmp_path / "stop"))
  assert results["count"] == 18
  assert "over 18 images (2 bad records skipped)" in capsys.readouterr().out


def test_damaged_data_files_are_named(tmp_path):
  config = on_damaged_data(tmp_path)
  (path,) = epath.Path(config.data.dataset).glob("*train.array_record*")
  data = path.read_bytes()
  for damaged in (data[: len(data) // 2], b"", data[:200] + bytes(400) + data[600:]):
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"damaged|bad record"):
      loop.train(config, str(tmp_path / "run"))


def test_skipped_training_records_are_counted(tmp_path, capsys):
  config = on_damaged_data(tmp_path, total_steps=5)  # 80 images: four epochs of 20
  config.data.split, config.data.num_examples = "test", 20
  config.data.on_bad_record = "skip"
  loop.train(config, str(tmp_path / "run"))
  assert "skipped 8 records" in capsys.readouterr().out
  assert runs.records(tmp_path / "run")[0]["skipped_records"] == 8


@pytest.mark.parametrize(
  ("error", "wanted"),
  [
    (OSError(28, "No space left on device"), SaveError),
    (ValueError('RESOURCE_EXHAUSTED: Error writing local file "a"'), SaveError),  # TensorStore's
    (ValueError("a bug"), ValueError),
    (TypeError("a bug"), TypeError),
  ],
  ids=str,
)
def test_only_failed_writes_are_reported_as_such(tmp_path, monkeypatch, error, wanted):
  def fail(*_, **__):
    raise error

  saver = checkpoint.Checkpointer(epath.Path(tmp_path), keep_newest=1, keep_best=0)
  monkeypatch.setattr(saver._manager, "save", fail)
  with pytest.raises(wanted):
    saver.save(1, {"a": np.zeros(1)}, None)
  saver.close()


def test_a_workdir_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match=r"workdir .* is not writable"):
    loop.train(small_config(), str(tmp_path / "file" / "run"))
