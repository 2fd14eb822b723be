"""The paper's data sets, as data: where TFDS keeps them, what their label is, which splits are used.

`config.data.dataset` may be a name of `DATASETS`; its splits are then those below (or any of TFDS's).
Every other name is TFDS's own, and needs no entry here.

Roles of the splits: a grid is searched by training on "tune" and choosing on "dev"; the model is then
trained on "train" (for VTAB-1k all 1 000 images) and reported on "test". Splits and labels of VTAB-1k
are those of google-research/task_adaptation (task_adaptation/data/*.py), the others those of big_vision
(configs/transfer.py). Counts are checked against the data when a split is opened.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

MANY_LABELS = 64
VALIDATION = ("validation", "val", "valid")  # what a prepared data set may call that split


class Split(NamedTuple):
  """A split in TFDS's syntax, and its number of examples."""

  tfds: str
  num_examples: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
  """A data set and one of its labels.

  Attributes:
    tfds: TFDS's name, with its configuration if it has several.
    num_classes: classes of the label. If None, the data set's description has them.
    splits: our names -> TFDS's splits.
    label: feature that holds the label, or the name of a function in `LABELS`. Default: "label" or "labels".
    small: its images are at most 96 px; VTAB-1k is then fine-tuned at 224 and otherwise at 448.
    image_scale: what pixels are multiplied with to reach 0..255.
    mirror: an image and its mirror image have the same label.
    labels_per_image: the most that an image has; where nobody has counted, a generous bound.
  """

  tfds: str
  num_classes: int | None
  splits: Mapping[str, Split]
  label: str | None = "label"
  small: bool = False
  image_scale: int = 1
  mirror: bool = True
  labels_per_image: int = 1

  @property
  def test(self) -> str | None:
    """Name of the split that is reported, if there is one."""
    return next((s for s in ("test", *VALIDATION) if s in self.splits), None)


# --- labels that are computed from other features ---------------------------------------------------


def _clevr_count(record: Mapping[str, Any]) -> int:
  """Number of objects, 3 to 10."""
  return len(record["objects/size"]) - 3


def _interval(distance: float, thresholds: list[float]) -> int:
  """Returns the last threshold below the distance."""
  return int(np.flatnonzero(np.array(thresholds) < distance)[-1])


def _clevr_distance(record: Mapping[str, Any]) -> int:
  """Distance of the closest object, in six intervals."""
  distance = np.min(record["objects/pixel_coords"][2::3])
  return _interval(distance, [0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0])


def _kitti_distance(record: Mapping[str, Any]) -> int:
  """Distance of the closest car, van or truck, in three intervals. 3 if there is none."""
  depths = zip(record["objects/type"], record["objects/location"][2::3], strict=True)
  closest = min((depth for kind, depth in depths if kind < 3), default=1000.0)
  return _interval(closest, [-100.0, 8.0, 20.0, 999.0])


def _dsprites_position(record: Mapping[str, Any]) -> int:
  """The 32 horizontal positions, in pairs."""
  return int(record["label_x_position"]) * 16 // 32


def _dsprites_orientation(record: Mapping[str, Any]) -> int:
  """The 40 orientations, in 16 groups."""
  return int(record["label_orientation"]) * 16 // 40


# Of a record, whose features have the names under which they are stored.
LABELS: dict[str, Callable[[Mapping[str, Any]], int]] = {
  "clevr_count": _clevr_count,
  "clevr_distance": _clevr_distance,
  "kitti_distance": _kitti_distance,
  "dsprites_position": _dsprites_position,
  "dsprites_orientation": _dsprites_orientation,
}


# --- the table --------------------------------------------------------------------------------------


def _tuned(
  tfds: str, num_classes: int, train: int, dev_percent: int, test: Split, **fields: Any
) -> Dataset:
  """A data set whose last `dev_percent` of train are the dev split."""
  kept = 100 - dev_percent
  tune = round(train * kept / 100)
  splits = {
    "tune": Split(f"train[:{kept}%]", tune),
    "dev": Split(f"train[{kept}%:]", train - tune),
    "train": Split("train", train),
    "test": test,
  }
  return Dataset(tfds=tfds, num_classes=num_classes, splits=splits, **fields)


def _vtab(tfds: str, num_classes: int, dev: str, test: Split, **fields: Any) -> Dataset:
  """A task of VTAB-1k: 800 images of train, 200 from `dev`, "SPLIT" or "SPLIT FIRST_IMAGE"."""
  name, _, first = dev.partition(" ")
  dev_split = f"{name}[{first}:{int(first) + 200}]" if first else f"{name}[:200]"
  splits = {
    "tune": Split("train[:800]", 800),
    "dev": Split(dev_split, 200),
    "train": Split(f"train[:800]+{dev_split}", 1000),
    "test": test,
  }
  return Dataset(tfds=tfds, num_classes=num_classes, splits=splits, **fields)


def _evaluation_only(tfds: str, split: str, num_examples: int, **fields: Any) -> Dataset:
  splits = {"test": Split(split, num_examples)}
  return Dataset(tfds=tfds, num_classes=1000, splits=splits, **fields)


VTAB: dict[str, Dataset] = {
  # natural
  "vtab/caltech101": _vtab("caltech101", 102, "train 2751", Split("test", 6084)),
  "vtab/cifar100": _vtab("cifar100", 100, "train 45000", Split("test", 10_000), small=True),
  "vtab/dtd": _vtab("dtd", 47, "validation", Split("test", 1880)),
  "vtab/oxford_flowers102": _vtab("oxford_flowers102", 102, "validation", Split("test", 6149)),
  "vtab/oxford_iiit_pet": _vtab("oxford_iiit_pet", 37, "train 2944", Split("test", 3669)),
  "vtab/svhn": _vtab("svhn_cropped", 10, "train 65931", Split("test", 26_032), small=True),
  "vtab/sun397": _vtab("sun397/tfds", 397, "validation", Split("test", 21_750)),
  # specialised
  "vtab/patch_camelyon": _vtab("patch_camelyon", 2, "validation", Split("test", 32_768), small=True),
  "vtab/eurosat": _vtab("eurosat/rgb", 10, "train 16200", Split("train[21600:]", 5400), small=True),
  "vtab/resisc45": _vtab("resisc45", 45, "train 18900", Split("train[25200:]", 6300)),
  "vtab/diabetic_retinopathy": _vtab(
    "diabetic_retinopathy_detection/btgraham-300", 5, "validation", Split("test", 42_670)
  ),
  # structured
  "vtab/clevr_count": _vtab(
    "clevr", 8, "train 63000", Split("validation", 15_000), label="clevr_count"
  ),
  "vtab/clevr_distance": _vtab(
    "clevr", 6, "train 63000", Split("validation", 15_000), label="clevr_distance"
  ),
  "vtab/dmlab": _vtab("dmlab", 6, "validation", Split("test", 22_735)),
  "vtab/dsprites_position": _vtab(
    "dsprites", 16, "train 589824", Split("train[663552:]", 73_728),
    label="dsprites_position", small=True, image_scale=255,
  ),
  "vtab/dsprites_orientation": _vtab(
    "dsprites", 16, "train 589824", Split("train[663552:]", 73_728),
    label="dsprites_orientation", small=True, image_scale=255,
  ),
  "vtab/kitti_distance": _vtab(
    "kitti", 4, "validation", Split("test", 711), label="kitti_distance"
  ),
  "vtab/smallnorb_azimuth": _vtab(
    "smallnorb", 18, "test", Split("test[50%:]", 12_150), label="label_azimuth", small=True
  ),
  "vtab/smallnorb_elevation": _vtab(
    "smallnorb", 9, "test", Split("test[50%:]", 12_150), label="label_elevation", small=True
  ),
}  # fmt: skip
"""The 19 tasks of VTAB-1k in the paper's order of groups."""

DATASETS: dict[str, Dataset] = {
  "imagenet2012": _tuned("imagenet2012", 1000, 1_281_167, 1, Split("validation", 50_000)),
  "imagenet2012_real": _evaluation_only(
    "imagenet2012_real", "validation", 50_000, label="real_label", labels_per_image=MANY_LABELS
  ),
  "imagenet_v2": _evaluation_only("imagenet_v2/matched-frequency", "test", 10_000),
  "cifar10": _tuned("cifar10", 10, 50_000, 2, Split("test", 10_000), small=True),
  "cifar100": _tuned("cifar100", 100, 50_000, 2, Split("test", 10_000), small=True),
  "oxford_iiit_pet": _tuned("oxford_iiit_pet", 37, 3680, 10, Split("test", 3669)),
  "oxford_flowers102": _tuned("oxford_flowers102", 102, 1020, 10, Split("test", 6149)),
  "digits": _tuned("digits", 10, 1437, 20, Split("test", 360), small=True, mirror=False),
  "digits_0_4": _tuned("digits_0_4", 5, 720, 20, Split("test", 181), small=True, mirror=False),
  "digits_5_9": _tuned("digits_5_9", 5, 717, 20, Split("test", 179), small=True, mirror=False),
  # Not in TFDS: prepared by the user under these names (docs/pretrain.md).
  "imagenet21k": Dataset(
    tfds="imagenet21k",
    num_classes=21_843,
    splits={
      "train": Split("train[51200:]", 14_197_122 - 51_200),
      "dev": Split("train[:51200]", 51_200),
    },
  ),
  "jft300m": Dataset(
    tfds="jft300m",
    num_classes=18_291,
    label="labels",
    labels_per_image=16,
    splits={
      "train": Split("train[50000:]", 300_000_000 - 50_000),
      "dev": Split("train[:50000]", 50_000),
    },
  ),
  # Videos, prepared from their files under these names (docs/video.md); TFDS has UCF101 alone, which needs TensorFlow. UCF101
  # and HMDB51 are their first splits. Copies of Kinetics-400 differ: these are the numbers of MMAction2's.
  "kinetics400": _tuned("kinetics400", 400, 240_436, 10, Split("validation", 19_796)),
  # Their classes tell left from right, and their test split has no labels.
  "something_v1": _tuned(
    "something_v1", 174, 86_017, 10, Split("validation", 11_522), mirror=False
  ),
  "something_v2": _tuned(
    "something_v2", 174, 168_913, 10, Split("validation", 24_777), mirror=False
  ),
  "ucf101": _tuned("ucf101", 101, 9537, 10, Split("test", 3783)),
  "hmdb51": _tuned("hmdb51", 51, 3570, 10, Split("test", 1530)),
  **VTAB,
}


def splits_of(names: Collection[str]) -> dict[str, str]:
  """Returns our names -> TFDS's splits of a data set that is not in the table, from the names of its splits.

  What is searched on is "tune" and "dev", unless it has splits of these names: train and validation if there is a test
  split too, else the first 90 % and the last 10 % of train.
  """
  own = {name: name for name in names}
  validation = next((s for s in VALIDATION if s in own), "")
  if "dev" in own or (validation and "test" in own):
    return {"tune": "train", "dev": validation} | own if "train" in own else own
  return {"tune": "train[:90%]", "dev": "train[90%:]"} | own if "train" in own else own


def find(name: str) -> Dataset:
  """Returns the table's entry, or one that leaves everything to TFDS's data set of this name."""
  return DATASETS.get(name) or Dataset(tfds=name, num_classes=None, splits={}, label=None)
