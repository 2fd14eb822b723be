"""TFDS data sets stored as TFRecord: copied record for record; each kind of damage counted."""

import json
import shutil
import struct

import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source

from mixer_jax.errors import InputError
from mixer_jax.tools.preparation import tfrecords
from tests.tools.preparation import preparation_sets as sets

# What TensorFlow 2.21's tf.io.TFRecordWriter wrote for the records b"mixer" and b"".
GOLDEN = "0500000000000000eab2043e6d69786572d6ecce05000000000000000029039807d8ea82a2"
COUNTS = {"a": 6, "b": 5}


def masked_crc32c(data):
  """CRC-32C bit by bit (RFC 3720), and the mask of the TFRecord format."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
  crc ^= 0xFFFFFFFF
  return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def framed(data):
  length = struct.pack("<Q", len(data))
  return length + masked_crc32c(length) + data + masked_crc32c(data)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """An ArrayRecord data set, and the same records as TFDS would store them as TFRecord."""
  root = tmp_path_factory.mktemp("photos")
  sets.folder(root, COUNTS)
  made = sets.plan(root, num_shards=2, held_out=0.2)
  theirs = sets.prepare(made, tmp_path_factory.mktemp("out")).directory
  ours = tmp_path_factory.mktemp("tfrecord") / "1.0.0"
  ours.mkdir()
  for name in ("features.json", "label.labels.txt", "dataset_info.json"):
    shutil.copy(theirs / name, ours / name)
  info = json.loads((ours / "dataset_info.json").read_text())
  info |= {"fileFormat": "tfrecord", "citation": "Nobody, 2026"}
  (ours / "dataset_info.json").write_text(json.dumps(info))
  for path in theirs.glob("*.array_record*"):
    source = array_record_data_source.ArrayRecordDataSource([path])
    data = b"".join(framed(source[i]) for i in range(len(source)))
    (ours / path.name.replace("array_record", "tfrecord")).write_bytes(data)
  return theirs, ours


@pytest.fixture
def directory(prepared, tmp_path):
  return shutil.copytree(prepared[1], tmp_path / "1.0.0")


def test_framing_is_that_of_tensorflow():
  assert framed(b"mixer") + framed(b"") == bytes.fromhex(GOLDEN)


def test_is_copied_whole(prepared, tmp_path):
  theirs, ours = prepared
  made = tfrecords.plan(str(ours))
  result = sets.prepare(made, tmp_path)
  assert result.directory == tmp_path / "mine" / "1.0.0"
  for path in theirs.glob("*.array_record*"):
    assert (result.directory / path.name).read_bytes() == path.read_bytes()
  assert result.splits == {"train": 9, "validation": 2}
  assert result.classes == {"train": {"a": 5, "b": 4}, "validation": {"a": 1, "b": 1}}
  builder = tfds.builder_from_directory(result.directory)
  assert builder.info.citation == "Nobody, 2026"
  assert builder.info.features["label"].names == ["a", "b"]
  assert builder.info.splits["train"].shard_lengths == [4, 5]
  examples = sets.read(result.directory, "train")
  assert [e["image"] for e in examples] == [e["image"] for e in sets.read(theirs, "train")]


def test_damaged_records_are_counted_and_the_others_kept(directory, tmp_path):
  first, second = sorted(directory.glob("*train*"))
  data = bytearray(first.read_bytes())
  data[300] ^= 1  # in the first record's image
  first.write_bytes(data)
  data = second.read_bytes()
  length = struct.unpack("<Q", data[:8])[0] + 16
  second.write_bytes(data[:length] + b"\xff" + data[length + 1 :])  # the second record's length
  with pytest.raises(InputError, match="3 of 11 images cannot be used") as e:
    sets.prepare(tfrecords.plan(str(directory)), tmp_path / "out")
  assert f"{first.name}:0: its checksum does not fit" in str(e.value)
  assert f"{second.name}:1: the checksum of its length does not fit; the rest" in str(e.value)
  assert "holds 2 records, dataset_info.json says 5" in str(e.value)
  again = tfrecords.plan(str(directory))
  result = sets.prepare(again, tmp_path / "out", skip_bad=True)
  assert result.splits == {"train": 4, "validation": 2} and result.num_bad == 3
  assert len(sets.read(result.directory, "train")) == 4


@pytest.mark.parametrize("keep", [0, 5, 12, 100])
def test_truncated_files(directory, tmp_path, keep):
  path = min(directory.glob("*train*"))
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(InputError, match="says 4"):
    sets.prepare(tfrecords.plan(str(directory)), tmp_path / "out")


def test_wrong_lengths_and_examples_are_counted(directory, tmp_path):
  path = min(directory.glob("*train*"))
  image = tfds.core.example_serializer.ExampleSerializer(
    tfds.features.FeaturesDict({"other": tfds.features.Text()}).get_serialized_info()
  ).serialize_example({"other": "x"})
  huge = struct.pack("<Q", 1 << 62)
  path.write_bytes(
    framed(b"\xff\xff\xff") + framed(image) + framed(b"") + huge + masked_crc32c(huge)
  )
  with pytest.raises(InputError, match="4 of 11 images cannot be used") as e:
    sets.prepare(tfrecords.plan(str(directory)), tmp_path / "out")
  assert ":0: not a tf.train.Example" in str(e.value)
  assert ":1: 0 images in the feature 'image'" in str(e.value)
  assert ":3: it ends within a record; the rest of the file, 12 bytes, is lost" in str(e.value)


def change(directory, **values):
  path = directory / "dataset_info.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (lambda d: (d / "dataset_info.json").unlink(), "is not the directory of a prepared TFDS"),
    (lambda d: (d / "dataset_info.json").write_text("{"), "is damaged"),
    (lambda d: (d / "features.json").unlink(), "is damaged"),
    (lambda d: min(d.glob("*train*")).unlink(), "00000-of-00002 is missing"),
    (lambda d: change(d, fileFormat="array_record"), "is stored as array_record, not as tfrecord"),
    (lambda d: change(d, name="../evil"), "no name that TFDS would give|is damaged"),
    (lambda d: change(d, splits=[{"name": "x", "shardLengths": ["1"], "filepathTemplate": "../../{SPLIT}"}]),
     "is missing|is damaged"),
  ],
)  # fmt: skip
def test_bad_data_sets(directory, spoil, message):
  spoil(directory)
  with pytest.raises(InputError, match=message):
    tfrecords.plan(str(directory))
