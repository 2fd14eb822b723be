"""Real TFDS data sets, opened without TensorFlow: which label, which classes, which split."""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from mixer_jax.data import buckets, builders, datasets, ops, sources
from mixer_jax.errors import BadRecordError, InputError
from mixer_jax.tools.preparation import tfrecords
from tests import tfds_sets


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  return tfds_sets.varied(tmp_path_factory.mktemp("tfds"))


def test_a_printed_command_can_be_pasted(tmp_path):
  data_dir = f"{tmp_path}/my data"
  with pytest.raises(InputError) as e:
    sources.open_source(dataset="mnist", data_dir=data_dir, split="train", label=None)
  assert shlex.split(str(e.value).splitlines()[-1])[-1] == f"--data_dir={data_dir}"


def open_source(directory, split="train", label=None):
  return sources.open_source(dataset=directory, data_dir=None, split=split, label=label)


def numbers(source):
  """Returns the examples' numbers, which their pixels tell."""
  pictures = [
    np.random.default_rng(i).integers(0, 2, (4, 4, 1), np.uint8).repeat(3, 2) for i in range(12)
  ]
  decoded = [ops.decode_image(source[i]["image"]) for i in range(len(source))]
  return [next(i for i, p in enumerate(pictures) if np.array_equal(p, d)) for d in decoded]


def test_lists_of_labels_are_found_by_themselves(directory):
  source = open_source(directory)
  for place, number in enumerate(numbers(source)):
    assert source[place]["label"].tolist() == list(range(number % 3))
  assert (source.num_classes, source.class_names) == (3, ["ant", "bee", "cow"])


def test_another_feature_can_be_the_label(directory):
  source = open_source(directory, label="sex")
  assert [int(source[i]["label"]) for i in range(12)] == [n % 2 for n in numbers(source)]
  assert source.class_names == ["female", "male"]
  with pytest.raises(InputError, match=r"no feature 'sax'. Did you mean 'sex'"):
    open_source(directory, label="sax")


def test_splits_can_be_joined(directory):
  whole, joined = open_source(directory), open_source(directory, "train[2:5]+train[9:]")
  assert numbers(joined) == [*numbers(whole)[2:5], *numbers(whole)[9:]]


def test_every_split_that_a_directory_is_said_to_have_can_be_opened(directory):
  found = sources.describe(directory).splits
  assert set(found) == {"train", "tune", "dev"}
  for name, split in found.items():
    assert len(open_source(directory, name)) == split.num_examples
  assert numbers(open_source(directory, "dev")) == numbers(open_source(directory, "train[90%:]"))


@pytest.mark.parametrize(
  ("names", "tune", "dev"),
  [
    (["train", "val", "test"], "train", "val"), (["train", "dev"], "train", "dev"),
    (["train", "valid"], "train[:90%]", "train[90%:]"), (["test"], None, None),
  ],
)  # fmt: skip
def test_splits_that_are_searched_on(names, tune, dev):
  found = datasets.splits_of(names)
  assert (found.get("tune"), found.get("dev")) == (tune, dev)
  assert all(found[name] == name for name in names)


def test_entries_of_the_table_name_split_label_and_scale(directory, monkeypatch):
  entry = datasets.Dataset(
    tfds=directory, num_classes=2, label="sex", image_scale=255,
    splits={"dev": datasets.Split("train[8:]", 4)},
  )  # fmt: skip
  monkeypatch.setitem(datasets.DATASETS, "varied", entry)
  source = open_source("varied", "dev")
  plain = open_source(directory, "train[8:]", "sex")
  for i in range(4):
    assert source[i]["label"] == plain[i]["label"]
    scaled, pixels = (ops.decode_image(s[i]["image"]) for s in (source, plain))
    np.testing.assert_array_equal(scaled, pixels * 255)


def test_computed_labels_come_from_the_whole_record(directory, monkeypatch):
  monkeypatch.setitem(datasets.LABELS, "both", lambda r: len(r["labels"]) + 3 * int(r["sex"]))
  source = open_source(directory, label="both")
  assert [int(source[i]["label"]) for i in range(12)] == [
    n % 3 + 3 * (n % 2) for n in numbers(source)
  ]
  assert source.class_names is None


def test_what_is_not_prepared_leaves_no_temporary_directory(tmp_path, monkeypatch):
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
  assert not builders.find("digits", str(tmp_path / "none")).info.splits
  assert list(tmp_path.iterdir()) == []


def test_data_that_are_prepared_unasked_say_where(tmp_path, capsys):
  for said in (True, False):
    builders.prepare("digits_0_4", str(tmp_path))
    assert (str(tmp_path / "digits_0_4") in capsys.readouterr().err) == said


def test_data_in_no_directory_are_refused(monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", "~nobody-of-that-name")
  for given in ("", None):
    with pytest.raises(InputError, match="data_dir is "):
      builders.find("digits", given)


# --- code of others ---------------------------------------------------------------------------------

WRITES = "import pathlib\npathlib.Path({!r}).touch()\n"


@pytest.fixture
def evil(directory, tmp_path, monkeypatch):
  """A data set, evil/1.0.0, whose label is of a class in a module that is on the path; the module makes a file."""
  copy = tmp_path / "evil" / "1.0.0"
  shutil.copytree(directory, copy)
  (copy / "stranger.py").write_text(WRITES.format(str(tmp_path / "ran")))
  monkeypatch.syspath_prepend(copy)
  monkeypatch.delitem(sys.modules, "stranger", raising=False)
  info = json.loads((copy / "dataset_info.json").read_text()) | {"name": "evil"}
  (copy / "dataset_info.json").write_text(json.dumps(info))
  return copy


def rename_class(path, description):
  features = json.loads((path / "features.json").read_text())
  label = {"pythonClassName": "stranger.Label"}
  if description == "features.json":
    features["featuresDict"]["features"]["sex"] |= label
  elif description == "of an old TFDS":
    features = {
      "type": "stranger.Label",
      "content": "{}",
      "proto_cls": "tensorflow_datasets.TextFeature",
    }
  else:
    info = json.loads((path / "dataset_info.json").read_text())
    (path / "dataset_info.json").write_text(json.dumps(info | {"features": features | label}))
  (path / "features.json").write_text(json.dumps(features))


@pytest.mark.parametrize("description", ["features.json", "of an old TFDS", "dataset_info.json"])
@pytest.mark.parametrize(
  "opened",
  [
    lambda d: open_source(str(d)),
    lambda d: builders.find("evil", str(d.parents[1])),
    lambda d: tfrecords.plan(str(d)),
    lambda d: buckets._probe(str(d)),
  ],
)
def test_a_description_does_not_run_the_code_that_it_names(evil, tmp_path, opened, description):
  rename_class(evil, description)
  with pytest.raises(InputError, match=r"stranger\.Label"):
    opened(evil)
  assert not (tmp_path / "ran").exists()


def test_a_command_imports_nothing_from_the_working_directory(tmp_path):
  (tmp_path / "subprocess.py").write_text(WRITES.format(str(tmp_path / "ran")))
  project = str(pathlib.Path(__file__).parents[2])
  command = [sys.executable, "-m", "mixer_jax.data.buckets"]
  subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": project}, check=False)
  assert not (tmp_path / "ran").exists()


def test_a_data_set_that_users_prepare_says_how(tmp_path):
  with pytest.raises(InputError, match=r"prepare --name=imagenet21k, with --from_folder=DIR"):
    sources.open_source(dataset="imagenet21k", data_dir=str(tmp_path), split="train", label=None)


def test_records_hold_what_tfds_decodes(directory):
  builder = builders.from_directory(directory)
  decoded = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
  raw = builder.as_data_source("train", deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
  records = sources.Records(raw, builder.info.features.get_serialized_info())
  assert len(records) == 12
  for i in range(12):
    record, wanted = records[i], decoded[i]
    assert record["image"] == wanted["image"]
    assert (list(record["labels"]), record["sex"]) == (list(wanted["labels"]), wanted["sex"])


@pytest.mark.parametrize("stored", [b"\xff" * 9, {"label": [1, 2]}, {"label": [2**40]}, {}])
def test_records_that_are_no_examples_are_bad_ones(stored):
  kinds = {"image": tfds.features.Image(), "label": tfds.features.Scalar(np.int64)}
  described = tfds.features.FeaturesDict(kinds)
  if isinstance(stored, dict):
    features = {k: {"int64_list": {"value": v}} for k, v in stored.items()}
    image = {"image": {"bytes_list": {"value": [tfds_sets.png(0)]}}}
    example = tf_example_pb2.Example(features={"feature": features | image})
    stored = example.SerializeToString()
  source = sources.Source("s", sources.Records([stored], described.get_serialized_info()))
  with pytest.raises(BadRecordError):
    source[0]
