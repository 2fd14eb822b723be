"""Paths that users name, and the names of files that other programs leave."""

import random

import pytest

from mixer_jax import files
from mixer_jax.errors import InputError


@pytest.mark.parametrize("text", ["", " ", "\t\n", "~nobody-of-that-name/a"])
def test_a_path_that_names_nothing_is_refused(text):
  with pytest.raises(InputError, match="--output is "):
    files.path_of(text, "--output")


@pytest.mark.parametrize("home", ["", None])
def test_home_must_be_known(monkeypatch, home):
  monkeypatch.setattr(
    "os.path.expanduser", lambda text: text
  )  # as where the user is not known either
  monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
  with pytest.raises(InputError, match="~ is no home directory"):
    files.path_of("~/a", "--output")


def test_a_path_is_no_pattern(tmp_path):
  directory = files.path_of(str(tmp_path / "[a]*"), "--output")
  (directory / "b" / "c1").mkdir(parents=True)
  assert [p.name for p in (directory / "b").glob("c*")] == ["c1"]


@pytest.mark.parametrize(
  ("name", "foreign"),
  [
    (".DS_Store", True), ("._photo.jpg", True), (".nfs00000a1b00000001", True), (".photo.jpg.Zk3fPq", True),
    ("@eaDir", True), ("Thumbs.db", True), (".~lock.table.csv#", True), ("a (Ann's conflicted copy 2024-01-02).jpg", True),
    ("photo.jpg", False), ("manifest.ocdbt", False), ("_METADATA", False), ("SHA256SUMS", False), ("process_0", False),
    (".hidden.jpeg", False), ("d", False), ("0", False),
  ],
)  # fmt: skip
def test_names_that_other_programs_give(name, foreign):
  assert files.is_foreign(name) == foreign


def test_every_bit_of_a_small_file_counts(tmp_path):
  directory, rng = files.path_of(str(tmp_path), "--output"), random.Random(0)
  content, path = b"first\nsecond\n", directory / "label.labels.txt"
  path.write_bytes(content)
  assert files.read_listed(path) == content  # as earlier versions left it
  files.list_checksums(directory, [path.name])
  assert files.read_listed(path) == content
  flipped = bytearray(content)
  flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  path.write_bytes(flipped)
  with pytest.raises(ValueError, match="does not match its SHA-256"):
    files.read_listed(path)
