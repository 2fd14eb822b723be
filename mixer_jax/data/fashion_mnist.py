"""Fashion-MNIST from Debian's package `dataset-fashion-mnist`, as a TFDS data set, without a network.

70 000 real grey images of 28×28 pixels in 10 classes of clothing (Xiao et al., 2017, arXiv:1708.07747, MIT
licence), in four gzip files of the IDX format: a magic number, the sizes of the axes, the bytes.
"""

import gzip
import pathlib
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from mixer_jax.errors import InputError

DIRECTORY = pathlib.Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
  "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip
SIDE_PX = 28
_SPLITS = {"train": ("train", 60_000), "test": ("t10k", 10_000)}


def is_installed(directory: pathlib.Path = DIRECTORY) -> bool:
  """Returns whether Debian's package is there."""
  return all(p.is_file() for split in _SPLITS for p in _paths(directory, split))


def _paths(directory: pathlib.Path, split: str) -> tuple[pathlib.Path, pathlib.Path]:
  stem, _ = _SPLITS[split]
  return directory / f"{stem}-images-idx3-ubyte.gz", directory / f"{stem}-labels-idx1-ubyte.gz"


def read_idx(path: pathlib.Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
  """Returns the array of a gzipped IDX file of bytes.

  Args:
    path: of the file.
    shape: that it must have; so no more is unpacked than is expected.

  Raises:
    InputError: no gzip, another magic number or shape, too short, too long, or a wrong checksum.
  """
  header_bytes, data_bytes = 4 + 4 * len(shape), int(np.prod(shape))
  try:
    with gzip.open(path) as f:
      data = f.read(header_bytes + data_bytes + 1)
  except (OSError, EOFError, zlib.error) as e:
    raise InputError(f"{path} is damaged or no gzip file: {e}") from e
  magic = bytes((0, 0, 8, len(shape)))  # 8: unsigned bytes
  if data[:4] != magic:
    raise InputError(
      f"{path} begins with {data[:4].hex()}, not {magic.hex()}: no IDX file of bytes."
    )
  if len(data) < header_bytes or struct.unpack(f">{len(shape)}I", data[4:header_bytes]) != shape:
    raise InputError(f"{path} is not of shape {shape}.")
  if len(data) != header_bytes + data_bytes:
    raise InputError(
      f"{path} is too {'short' if len(data) < header_bytes + data_bytes else 'long'}."
    )
  return np.frombuffer(data, np.uint8, offset=header_bytes).reshape(shape)


def read_split(
  split: str, directory: pathlib.Path = DIRECTORY
) -> tuple[UInt8[np.ndarray, "n 28 28"], UInt8[np.ndarray, " n"]]:
  """Returns images and labels of "train" or "test"; raises InputError for files that are not theirs."""
  images, labels = _paths(directory, split)
  count = _SPLITS[split][1]
  pixels, classes = read_idx(images, (count, SIDE_PX, SIDE_PX)), read_idx(labels, (count,))
  if classes.max() >= len(CLASSES):
    raise InputError(
      f"{labels} has the label {classes.max()}; the last class is {len(CLASSES) - 1}."
    )
  return pixels, classes


class FashionMnistDebian(tfds.core.GeneratorBasedBuilder):
  """TFDS builder, stored as PNG; the name keeps it apart from TFDS's own, which downloads."""

  name = "fashion_mnist_debian"
  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Fashion-MNIST: 70 000 grey images of 28x28 pixels, 10 classes of clothing.",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(SIDE_PX, SIDE_PX, 1), encoding_format="png"),
          "label": tfds.features.ClassLabel(names=list(CLASSES)),
        }
      ),
      supervised_keys=("image", "label"),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    del dl_manager  # nothing to download
    if not is_installed():
      raise InputError(
        f"fashion_mnist_debian is not in {DIRECTORY}: apt install dataset-fashion-mnist, or take TFDS's fashion_mnist."
      )
    return {split: self._generate_examples(*read_split(split)) for split in _SPLITS}

  def _generate_examples(
    self, images: np.ndarray, labels: np.ndarray
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
      yield i, {"image": cv2.imencode(".png", image)[1].tobytes(), "label": int(label)}


BUILDERS = {"fashion_mnist_debian": FashionMnistDebian}
