"""Fashion-MNIST's files are read strictly; Debian's, where installed, are what they should be."""

import gzip
import struct

import numpy as np
import pytest

from mixer_jax.data import fashion_mnist, sources
from mixer_jax.errors import InputError


def idx(array, magic=None, sizes=None):
  magic = bytes((0, 0, 8, array.ndim)) if magic is None else magic
  return magic + struct.pack(f">{array.ndim}I", *(sizes or array.shape)) + array.tobytes()


ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
GOOD = gzip.compress(idx(ARRAY), mtime=0)


def test_an_idx_file_is_its_array(tmp_path):
  (tmp_path / "a.gz").write_bytes(GOOD)
  np.testing.assert_array_equal(fashion_mnist.read_idx(tmp_path / "a.gz", (2, 3, 4)), ARRAY)


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"", "begins with"),
    (b"no gzip at all", "no gzip file"),
    (GOOD[:-9], "damaged"),
    (GOOD[:30] + bytes([GOOD[30] ^ 8]) + GOOD[31:], "damaged"),
    (GOOD[:-8] + bytes(8), "damaged"),
    (gzip.compress(idx(ARRAY, magic=bytes((0, 0, 9, 3)))), "no IDX file of bytes"),
    (gzip.compress(idx(ARRAY, magic=bytes((0, 0, 8, 1)))), "no IDX file of bytes"),
    (gzip.compress(idx(ARRAY, sizes=(3, 2, 4))), "is not of shape"),
    (gzip.compress(idx(ARRAY)[:10]), "is not of shape"),
    (gzip.compress(idx(ARRAY)[:-1]), "too short"),
    (gzip.compress(idx(ARRAY) + b"x" * 10_000_000), "too long"),
  ],
  ids=range(11),  # the time of compression is in the data
)
def test_other_files_are_refused(tmp_path, data, message):
  (tmp_path / "a.gz").write_bytes(data)
  with pytest.raises(InputError, match=message):
    fashion_mnist.read_idx(tmp_path / "a.gz", (2, 3, 4))


def test_labels_must_be_of_the_ten_classes(tmp_path, monkeypatch):
  monkeypatch.setattr(fashion_mnist, "_SPLITS", {"train": ("train", 2)})
  images, labels = np.zeros((2, 28, 28), np.uint8), np.array([3, 10], np.uint8)
  (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
  (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
  assert fashion_mnist.is_installed(tmp_path)
  with pytest.raises(InputError, match="has the label 10; the last class is 9"):
    fashion_mnist.read_split("train", tmp_path)


def test_a_prepared_data_set_holds_the_files(tmp_path, monkeypatch):
  """A few images through TFDS and back, at their places."""
  rng = np.random.default_rng(0)
  monkeypatch.setattr(fashion_mnist, "_SPLITS", {"train": ("train", 5), "test": ("t10k", 3)})
  monkeypatch.setattr(fashion_mnist, "DIRECTORY", tmp_path)
  for function in (fashion_mnist.read_split, fashion_mnist.is_installed):
    monkeypatch.setattr(function, "__defaults__", (tmp_path,))
  with pytest.raises(InputError, match="apt install dataset-fashion-mnist"):
    sources.describe("fashion_mnist_debian", str(tmp_path / "tfds"))
  written = {}
  for split, (stem, count) in fashion_mnist._SPLITS.items():
    images = rng.integers(0, 256, (count, 28, 28), np.uint8)
    labels = rng.integers(0, 10, count).astype(np.uint8)
    (tmp_path / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (tmp_path / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    written[split] = {image.tobytes(): int(c) for image, c in zip(images, labels, strict=True)}
  from mixer_jax.data.decode import decode_image

  for split, expected in written.items():
    source = sources.open_source(
      dataset="fashion_mnist_debian", data_dir=str(tmp_path / "tfds"), split=split, label=None
    )
    read = {
      np.ascontiguousarray(decode_image(e["image"])[..., 0]).tobytes(): int(e["label"])
      for e in (source[i] for i in range(len(source)))
    }
    assert read == expected
  assert source.class_names == list(fashion_mnist.CLASSES)


@pytest.mark.skipif(
  not fashion_mnist.is_installed(), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_debians_files():
  for split, count in (("train", 60_000), ("test", 10_000)):
    images, labels = fashion_mnist.read_split(split)
    assert images.shape == (count, 28, 28)
    np.testing.assert_array_equal(np.bincount(labels), np.full(10, count // 10))
