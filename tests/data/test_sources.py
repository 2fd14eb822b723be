"""Real TFDS data sets, opened without TensorFlow: which label, which classes, which split."""

import tempfile

import numpy as np
import pytest

from mixer_jax.data import builders, datasets, ops, sources
from mixer_jax.errors import InputError
from tests import tfds_sets


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  return tfds_sets.varied(tmp_path_factory.mktemp("tfds"))


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


def test_data_in_no_directory_are_refused(monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", "~nobody-of-that-name")
  for given in ("", None):
    with pytest.raises(InputError, match="data_dir is "):
      builders.find("digits", given)
