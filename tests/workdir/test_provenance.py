"""What a checkpoint was trained with: written with it, read as untrusted, compared at a resume."""

import dataclasses
import json

import numpy as np
import pytest
from etils import epath

from mixer_jax.data import sources
from mixer_jax.errors import InputError
from mixer_jax.workdir import checkpoint, checksums, provenance
from mixer_jax.workdir import directory as workdirs
from tests.configurations import small_config

NAMES = ["ant", "bee"]


def split(**changed):
  """Ten records; `changed` are other images by index."""
  images = {i: changed.get(f"image{i}", b"image %d" % i) for i in range(10)}
  records = [{"image": images[i], "label": i % 2} for i in range(10)]
  return sources.Source("set train", records, class_names=NAMES)


def describe(train=None, **changes):
  return provenance.describe(
    small_config(**changes), {"data.split": train or split(), "evaluators.val.split": split()}
  )


def test_a_checkpoint_carries_its_provenance(tmp_path):
  workdir, wanted = epath.Path(tmp_path), describe()
  saver = checkpoint.Checkpointer(workdir, keep_newest=2, keep_best=0, provenance=wanted)
  for step in (3, 4):
    saver.save(step, {"a": np.zeros(1)}, None)
  saver.close()
  for step in (3, 4):
    found = provenance.read(workdir, step)
    content = json.loads(json.dumps(wanted.configuration))
    assert found == dataclasses.replace(wanted, step=step, configuration=content)
    assert found.class_names == tuple(NAMES)
    assert checksums.find_damage(workdirs.checkpoint_path(workdir, step)) is None


def saved(tmp_path, before):
  """The workdir of a run that was saved at step 0."""
  directory = workdirs.checkpoint_path(epath.Path(tmp_path), 0)
  directory.mkdir(parents=True)
  provenance.write(directory, before)
  return epath.Path(tmp_path)


@pytest.mark.parametrize("index", [0, 5, 9])
def test_another_record_is_refused_and_named(tmp_path, index, capsys):
  before, other = describe(), describe(split(**{f"image{index}": b"another"}))
  workdir = saved(tmp_path, before)
  with pytest.raises(InputError, match=r"data\.split\.records of set train: ") as e:
    provenance.resume(other, workdir, 0, ["evaluators"])
  assert "evaluators" not in str(e.value)
  for key in ("data.split", "data"):
    resumed = provenance.resume(other, workdir, 0, [key])
    assert resumed == dataclasses.replace(other, run=before.run)
    assert "data.split.records of set train" in capsys.readouterr().out
  assert provenance.resume(describe(), workdir, 0, ()).run == before.run


def test_another_record_of_an_evaluator_is_said_to_be_harmless(tmp_path):
  workdir, key, other = saved(tmp_path, describe()), "evaluators.val.split", describe()
  other.splits[key] = dataclasses.replace(other.splits[key], records=("another",))
  with pytest.raises(InputError, match=rf"no parameter, with --allow_change={key}$"):
    provenance.resume(other, workdir, 0, ())


def test_a_record_that_cannot_be_read_is_no_error():
  """What is to be done about it, config.data.on_bad_record says, when it is met."""
  prints = split(image0=None).fingerprint()
  assert prints[0] == "unreadable"
  assert prints[1:] == split().fingerprint()[1:]


def test_permitted_changes_are_named_by_keys_that_there_are(tmp_path, capsys):
  workdir, longer = saved(tmp_path, describe()), describe(total_steps=30)
  with pytest.raises(InputError, match=r"--allow_change: .*'total_step'.*'total_steps'"):
    provenance.resume(longer, workdir, 0, ["total_step"])
  provenance.resume(longer, workdir, 0, ["seed", "total_steps"])
  assert "total_steps: 20 -> 30" in capsys.readouterr().out
  misspelled = describe(may_change=("total_step",))
  with pytest.raises(InputError, match=r"config\.may_change: .*'total_step'.*'total_steps'"):
    provenance.resume(misspelled, workdir, 0, ())


def test_a_workdir_without_a_checkpoint_takes_a_corrected_configuration(tmp_path, capsys):
  (tmp_path / "config.json").write_text(json.dumps(describe().configuration))
  corrected = describe(split(image0=b"another"), seed=1)
  assert provenance.resume(corrected, epath.Path(tmp_path), None, ()) == corrected
  assert "seed: 0 -> 1" in capsys.readouterr().out


def test_one_size_written_in_two_ways_is_one_configuration(tmp_path):
  workdir = saved(tmp_path, describe(image_size=16))
  provenance.resume(describe(image_size=(16, 16)), workdir, 0, ())
  with pytest.raises(InputError, match="image_size: 16 -> '16x24'"):
    provenance.resume(describe(image_size=(16, 24)), workdir, 0, ())


def test_the_same_data_and_weights_that_have_done_their_work_may_be_elsewhere(tmp_path):
  workdir = saved(tmp_path, describe(init={"weights": "/gone"}))
  new = describe()
  new.configuration["data"] = {**new.configuration["data"], "dataset": "/moved/set/1.0.0"}
  new.configuration["evaluators"]["val"]["dataset"] = "/moved/set/1.0.0"
  provenance.resume(new, workdir, 0, ())
  other = describe(split(image5=b"another"))
  other.configuration["data"] = new.configuration["data"]
  with pytest.raises(InputError, match=r"data\.dataset: [\s\S]*data\.split\.records"):
    provenance.resume(other, workdir, 0, ())


def test_checkpoints_alone_say_what_they_were_trained_with(tmp_path):
  """Where config.json was left behind; earlier checkpoints, which cannot say it, are not resumed."""
  workdir = saved(tmp_path, describe())
  with pytest.raises(InputError, match=r"learning_rate: [\s\S]*seed: 0 -> 1"):
    provenance.resume(describe(seed=1, learning_rate=0.5), workdir, 0, ())
  (workdirs.checkpoint_path(workdir, 0) / "provenance.json").unlink()
  with pytest.raises(InputError, match=r"no config\.json"):
    provenance.resume(describe(), workdir, 0, ())


def test_an_evaluator_comes_or_goes_before_the_next_checkpoint(tmp_path):
  """The same command goes on although the checkpoint that it resumes from knows another set of them."""
  few, more = describe(), describe()
  config = more.configuration
  config["evaluators"] = {**config["evaluators"], "more": dict(config["evaluators"]["val"])}
  more = dataclasses.replace(
    more, splits={**more.splits, "evaluators.more.split": few.splits["data.split"]}
  )
  for before, now in ((few, more), (more, few)):
    workdir = saved(tmp_path / str(len(before.splits)), before)
    (workdir / "config.json").write_text(json.dumps(now.configuration))
    for _ in range(2):
      assert provenance.resume(now, workdir, 0, ()).run == before.run
  refused = describe(split(image0=b"another"))
  with pytest.raises(InputError, match=r"data\.split\.records"):
    provenance.resume(refused, workdir, 0, ["evaluators.more"])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"format": 2}, "format is 2"),
    ({"step": "3"}, "step is '3'"),
    ({"step": 3}, "step is 3, .* of step 0"),
    ({"class_names": ["\x1b[2J"]}, "the name '.x1b"),
    ({"class_names": [1]}, "class_names is"),
    ({"splits": {"\ud800": {"name": "a", "num_examples": 1, "records": []}}}, "the name '.ud800"),
    ({"splits": {"data": {"name": "a", "num_examples": 0, "records": []}}}, r"data\.num_examples"),
    ({"splits": {"data": 3}}, r"splits\.data"),
    ({"more": 1}, "more is not read"),
  ],
)
def test_a_damaged_file_is_named(tmp_path, change, message):
  path = workdirs.checkpoint_path(saved(tmp_path, describe()), 0) / "provenance.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(InputError, match=message):
    provenance.read(epath.Path(tmp_path), 0)


@pytest.mark.parametrize("content", ["{", "[1]", "[" * 100_000, "\x00", " " * (1 << 25)])
def test_what_is_no_json_object_is_named(tmp_path, content):
  path = workdirs.checkpoint_path(saved(tmp_path, describe()), 0) / "provenance.json"
  path.write_text(content)
  with pytest.raises(InputError, match=r"provenance\.json"):
    provenance.read(epath.Path(tmp_path), 0)
