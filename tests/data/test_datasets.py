"""The table of data sets against TFDS's own builders and split arithmetic; computed labels by hand."""

import functools

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import naming, splits

from mixer_jax.data import datasets, digits, sources

# TFDS's splits and sizes, from its catalogue.
SIZES = {
  "caltech101": {"train": 3057, "test": 6084},
  "cifar10": {"train": 50_000, "test": 10_000},
  "cifar100": {"train": 50_000, "test": 10_000},
  "clevr": {"train": 70_000, "validation": 15_000, "test": 15_000},
  "digits": {"train": 1437, "test": 360},
  "digits_0_4": {"train": 720, "test": 181},
  "digits_5_9": {"train": 717, "test": 179},
  "diabetic_retinopathy_detection": {"train": 35_126, "validation": 10_906, "test": 42_670},
  "dmlab": {"train": 65_550, "validation": 22_628, "test": 22_735},
  "dsprites": {"train": 737_280},
  "dtd": {"train": 1880, "validation": 1880, "test": 1880},
  "eurosat": {"train": 27_000},
  "hmdb51": {"train": 3570, "test": 1530},
  "imagenet2012": {"train": 1_281_167, "validation": 50_000},
  "imagenet2012_real": {"validation": 50_000},
  "imagenet21k": {"train": 14_197_122},
  "imagenet_v2": {"test": 10_000},
  "jft300m": {"train": 300_000_000},
  "kinetics400": {"train": 240_436, "validation": 19_796},
  "kitti": {"train": 6347, "validation": 423, "test": 711},
  "oxford_flowers102": {"train": 1020, "validation": 1020, "test": 6149},
  "oxford_iiit_pet": {"train": 3680, "test": 3669},
  "patch_camelyon": {"train": 262_144, "validation": 32_768, "test": 32_768},
  "resisc45": {"train": 31_500},
  "smallnorb": {"train": 24_300, "test": 24_300},
  "something_v1": {"train": 86_017, "validation": 11_522},
  "something_v2": {"train": 168_913, "validation": 24_777},
  "sun397": {"train": 76_128, "validation": 10_875, "test": 21_750},
  "svhn_cropped": {"train": 73_257, "test": 26_032},
  "ucf101": {"train": 9537, "test": 3783},
}
VIDEOS = {"hmdb51", "kinetics400", "something_v1", "something_v2", "ucf101"}
NOT_IN_TFDS = {"imagenet21k", "jft300m", *VIDEOS}


@functools.lru_cache
def features_of(name):
  if name in digits.BUILDERS:
    return digits.BUILDERS[name](data_dir="/nonexistent").info.features
  return tfds.builder(name, data_dir="/nonexistent", try_gcs=False).info.features


def split_dict(tfds_name):
  name = tfds_name.partition("/")[0]
  template = naming.ShardedFileTemplate(
    data_dir="/nonexistent", dataset_name=name, filetype_suffix="array_record"
  )
  return splits.SplitDict(
    [
      tfds.core.SplitInfo(name=k, shard_lengths=[n], num_bytes=1, filename_template=template)
      for k, n in SIZES[name].items()
    ]
  )


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_splits_hold_what_tfds_says(name):
  entry = datasets.DATASETS[name]
  found = split_dict(entry.tfds)
  for role, split in entry.splits.items():
    assert found[split.tfds].num_examples == split.num_examples, role


def examples(entry, role):
  """Returns {(TFDS split, first, end)} of a split."""
  text = entry.splits[role].tfds
  names = [t.split("[")[0] for t in text.split("+")]
  pieces = split_dict(entry.tfds)[text].file_instructions
  return {
    (name, piece.skip, piece.skip + piece.take) for name, piece in zip(names, pieces, strict=True)
  }


def overlap(a, b):
  return any(x[0] == y[0] and x[1] < y[2] and y[1] < x[2] for x in a for y in b)


@pytest.mark.parametrize("name", [n for n, d in datasets.DATASETS.items() if "train" in d.splits])
def test_no_example_is_both_trained_and_evaluated_on(name):
  entry = datasets.DATASETS[name]
  if "tune" in entry.splits:
    assert not overlap(examples(entry, "tune"), examples(entry, "dev"))
    assert overlap(examples(entry, "train"), examples(entry, "dev"))
  evaluated = "test" if "test" in entry.splits else "dev"
  assert not overlap(examples(entry, "train"), examples(entry, evaluated))


@pytest.mark.parametrize("name", [n for n in datasets.DATASETS if n not in NOT_IN_TFDS])
def test_labels_are_features_with_that_many_classes(name):
  entry = datasets.DATASETS[name]
  features = features_of(entry.tfds)
  assert isinstance(features["image"], tfds.features.Image)
  if entry.label not in datasets.LABELS:
    label = features[entry.label]
    assert getattr(label, "feature", label).num_classes == entry.num_classes


def test_vtab_has_its_nineteen_tasks():
  assert len(datasets.VTAB) == 19
  for entry in datasets.VTAB.values():
    assert [entry.splits[r].num_examples for r in ("tune", "dev", "train")] == [800, 200, 1000]
    shape = features_of(entry.tfds)["image"].shape
    assert entry.small == (shape[0] is not None and shape[0] <= 96)


def label(name, **values):
  """Returns a computed label of a record as TFDS stores it, of a data set's own features."""
  entry = next(d for d in datasets.DATASETS.values() if d.label == name)
  features = features_of(entry.tfds)
  kinds = {k: features[k] for k in values}
  if "objects" in values:
    objects = features["objects"].feature
    kinds = {"objects": tfds.features.Sequence({k: objects[k] for k in values["objects"]})}
  described = tfds.features.FeaturesDict(kinds)
  stored = described.serialize_example(described.encode_example(values))
  (record,) = sources.Records([stored], described.get_serialized_info())
  return datasets.LABELS[name](record)


def test_every_computed_label_is_reachable_and_in_range():
  """Each task's records, made so that class c is the right answer, give c."""
  for c in range(8):
    assert label("clevr_count", objects={"size": [0] * (c + 3)}) == c
  for c, distance in enumerate([7.9, 8.2, 8.7, 9.3, 9.9, 11.0]):
    coordinates = np.array([[0, 0, 50.0], [1, 2, distance]], np.float32)
    assert label("clevr_distance", objects={"pixel_coords": coordinates}) == c
  positions = [label("dsprites_position", label_x_position=i) for i in range(32)]
  assert positions == [i // 2 for i in range(32)]
  orientations = [label("dsprites_orientation", label_orientation=i) for i in range(40)]
  assert orientations == [int(i // 2.5) for i in range(40)]


@pytest.mark.parametrize(
  ("types", "depths", "wanted"),
  [
    ([0, 3], [30.0, 1.0], 2), ([1, 2], [7.0, 9.0], 0), ([2], [15.0], 1), ([4, 7], [2.0, 3.0], 3), ([], [], 3),
  ],
)  # fmt: skip
def test_kitti_looks_at_cars_vans_and_trucks_only(types, depths, wanted):
  location = np.array([[0.0, 0.0, z] for z in depths], np.float32).reshape(-1, 3)
  assert label("kitti_distance", objects={"type": types, "location": location}) == wanted


def test_other_names_are_left_to_tfds():
  entry = datasets.find("some_other/config")
  assert (entry.tfds, dict(entry.splits), entry.label) == ("some_other/config", {}, None)
