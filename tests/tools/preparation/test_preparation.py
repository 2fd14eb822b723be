"""Folders of images become TFDS data sets: the same bytes, TFDS's order, resumable, nothing silent."""

import errno
import json
import os
import shutil

import pytest
import tensorflow_datasets as tfds

from mixer_jax.errors import InputError
from mixer_jax.tools.preparation import engine, folders, shards
from tests import tfds_sets
from tests.tools.preparation import preparation_sets as sets

COUNTS = {"b": 7, "a": 12, "C": 5}  # bytewise: C, a, b


@pytest.fixture
def photos(tmp_path):
  return tmp_path / "photos", sets.folder(tmp_path / "photos", COUNTS)


def quarantine(directory):
  return [json.loads(line) for line in (directory / engine.QUARANTINE).read_text().splitlines()]


def test_holds_each_image_once_with_its_label(photos, tmp_path):
  root, files = photos
  prepared = sets.prepare(sets.plan(root, num_shards=3), tmp_path / "out")
  builder = tfds.builder_from_directory(prepared.directory)
  assert builder.info.features["label"].names == ["C", "a", "b"]
  assert builder.info.splits["train"].shard_lengths == [8, 8, 8]
  found = sorted((e["image"], int(e["label"])) for e in sets.read(prepared.directory, "train"))
  label = {"C": 0, "a": 1, "b": 2}
  assert found == sorted((data, label[path.split("/")[0]]) for path, data in files.items())
  assert prepared.classes == {"train": {"C": 5, "a": 12, "b": 7}}
  source = sets.opened(prepared, "train[:50%]")
  assert len(source) == 12 and source.num_classes == 3


@pytest.mark.parametrize("name", ["label.labels.txt", "features.json", "dataset_info.json"])
def test_a_description_that_changed_is_named(photos, tmp_path, name):
  prepared = sets.prepare(sets.plan(photos[0]), tmp_path / "out")
  directory = prepared.directory
  assert len(sets.opened(prepared)) == 24
  text = (directory / name).read_text()
  (directory / name).write_text(text.replace("a", "i", 1))
  with pytest.raises(InputError, match=f"{name} is damaged: it does not match its SHA-256"):
    sets.opened(prepared)
  (directory / name).write_text(text)
  (directory / "SHA256SUMS").unlink()  # as earlier versions prepared it
  assert len(sets.opened(prepared)) == 24


def test_order_and_examples_are_those_of_a_tfds_builder(photos, tmp_path):
  root, files = photos

  label = tfds.features.ClassLabel(names=["C", "a", "b"])
  features = {"image": tfds.features.Image(), "label": label}
  examples = [(path, {"image": data, "label": path.split("/")[0]}) for path, data in files.items()]
  theirs = tfds_sets.prepare(tmp_path / "theirs", "Mine", features, {"train": examples})
  prepared = sets.prepare(sets.plan(root, num_shards=5), tmp_path / "ours")
  ours = sets.read(prepared.directory, "train")
  assert [e["image"] for e in ours] == [e["image"] for e in sets.read(theirs, "train")]


def test_prepared_by_processes_as_by_one(photos, tmp_path):
  root, _ = photos
  here = sets.prepare(sets.plan(root, num_shards=4), tmp_path / "here")
  there = sets.prepare(sets.plan(root, num_shards=4), tmp_path / "there", num_workers=2)
  names = sorted(p.name for p in here.directory.iterdir())
  assert names == sorted(p.name for p in there.directory.iterdir()) and len(names) == 10
  for name in names:
    assert (here.directory / name).read_bytes() == (there.directory / name).read_bytes(), name


def test_splits_by_folder(tmp_path):
  sets.folder(tmp_path, {"a": 4, "b": 3}, split="train")
  sets.folder(tmp_path, {"b": 2}, split="val")
  prepared = sets.prepare(sets.plan(tmp_path), tmp_path.parent / "out")
  assert prepared.splits == {"train": 7, "val": 2}
  assert prepared.classes["val"] == {"a": 0, "b": 2}
  assert {int(e["label"]) for e in sets.read(prepared.directory, "val")} == {1}


def test_held_out_is_stratified_and_the_same_again(tmp_path):
  files = sets.folder(tmp_path / "photos", {"a": 40, "b": 20})

  def images_of(seed, out):
    made = sets.plan(tmp_path / "photos", held_out=0.1, seed=seed)
    prepared = sets.prepare(made, tmp_path / out)
    assert prepared.classes == {"train": {"a": 36, "b": 18}, "validation": {"a": 4, "b": 2}}
    both = [{e["image"] for e in sets.read(prepared.directory, s)} for s in prepared.splits]
    assert not both[0] & both[1] and both[0] | both[1] == set(files.values())
    return both[1]

  assert images_of(0, "1") == images_of(0, "2") != images_of(1, "3")


def test_a_held_out_image_stays_when_another_class_grows(tmp_path):
  sets.folder(tmp_path, {"a": 20, "b": 20})
  before = sets.prepare(sets.plan(tmp_path, held_out=0.2), tmp_path.parent / "1")
  sets.folder(tmp_path, {"a": 20, "b": 40})
  after = sets.prepare(sets.plan(tmp_path, held_out=0.2), tmp_path.parent / "2")
  of_a = [
    {e["image"] for e in sets.read(p.directory, "validation") if e["label"] == 0}
    for p in (before, after)
  ]
  assert of_a[0] == of_a[1] and len(of_a[0]) == 4


def test_bad_images_stop_at_the_end_and_can_be_repaired_or_skipped(photos, tmp_path):
  root, files = photos
  whole = (root / "a" / "3.png").read_bytes()
  (root / "a" / "3.png").write_bytes(whole[:50])
  (root / "b" / "0.JPG").write_bytes(b"")
  (root / "b" / "notes.txt").write_text("none")
  (root / "b" / "2.JPG").unlink()
  (root / "b" / "2.JPG").symlink_to("2.JPG")
  (root / ".hidden").write_text("")
  os.mkfifo(root / "b" / "pipe.jpg")
  with pytest.raises(
    InputError, match=r"(?s)4 of 25 images cannot be used:.*on_bad_record=skip"
  ) as e:
    sets.prepare(sets.plan(root, num_shards=4), tmp_path / "out")
  assert "a/3.png: truncated PNG" in str(e.value) and not (tmp_path / "out/mine/1.0.0").exists()
  (root / "a" / "3.png").write_bytes(whole)
  prepared = sets.prepare(sets.plan(root, num_shards=4), tmp_path / "out", skip_bad=True)
  assert prepared.splits == {"train": 21} and (prepared.num_bad, prepared.num_ignored) == (4, 2)
  # Skipping looks at nothing again, so the image repaired since is left out all the same.
  reasons = {q.get("record") or q["ignored"]: q["reason"] for q in quarantine(prepared.directory)}
  assert reasons["b/pipe.jpg"] == "not a file" and "link" in reasons["b/2.JPG"]
  assert "0 bytes" in reasons["b/0.JPG"] and reasons[str(root / ".hidden")] == "hidden"
  assert reasons[str(root / "b/notes.txt")] == "not an image, by its name"


def test_repaired_images_are_taken(photos, tmp_path):
  root, files = photos
  whole = (root / "a" / "3.png").read_bytes()
  (root / "a" / "3.png").write_bytes(whole[:50] + bytes(len(whole) - 50))
  with pytest.raises(InputError, match="1 of 24 images cannot be used"):
    sets.prepare(sets.plan(root, num_shards=4), tmp_path / "out")
  (root / "a" / "3.png").write_bytes(whole)
  said = []
  prepared = sets.prepare(sets.plan(root, num_shards=4), tmp_path / "out", said=said)
  assert said[0] == "resuming: 3 shards with 18 images are done"
  assert {e["image"] for e in sets.read(prepared.directory, "train")} == set(files.values())
  assert quarantine(prepared.directory) == []


def test_unverified_images_are_copied_without_decoding(photos, tmp_path):
  root, _ = photos
  (root / "a" / "0.JPG").write_bytes(b"no image")
  prepared = sets.prepare(sets.plan(root), tmp_path / "out", verify=False)
  assert b"no image" in [e["image"] for e in sets.read(prepared.directory, "train")]


def test_resumes_after_a_kill_before_any_file(photos, tmp_path, monkeypatch):
  """Stops before each file or directory of a run takes its place, in turn, and goes on."""
  root, _ = photos
  whole = sets.prepare(sets.plan(root, num_shards=3), tmp_path / "whole").directory
  renames = []

  def dying(method):
    def call(path, target):
      if len(renames) == survives:
        raise KeyboardInterrupt
      renames.append(path.name)
      return method(path, target)

    return call

  survives = 0
  while True:
    out, renames = tmp_path / f"out{survives}", []
    with monkeypatch.context() as patched:
      for name in ("rename", "replace"):
        patched.setattr(shards.pathlib.Path, name, dying(getattr(shards.pathlib.Path, name)))
      try:
        sets.prepare(sets.plan(root, num_shards=3), out)
        break
      except KeyboardInterrupt:
        assert not (out / "mine" / "1.0.0").exists()
    shards_there = {p.name for p in out.rglob("*array_record*") if p.suffix != ".partial"}
    said = []
    again = sets.prepare(sets.plan(root, num_shards=3), out, said=said)
    kept = [line for line in said if line.startswith("resuming")]
    assert len(kept) == (survives >= 3) and len(shards_there) >= 3 * (survives >= 7)
    for path in whole.iterdir():
      assert (again.directory / path.name).read_bytes() == path.read_bytes(), path.name
    assert {p.name for p in again.directory.iterdir()} == {p.name for p in whole.iterdir()}
    survives += 1
  assert survives == 10  # the plan, three shards, their summaries, facts, checksums, the directory


def test_a_shard_that_was_damaged_meanwhile_is_written_again(photos, tmp_path):
  root, files = photos
  (root / "a" / "0.JPG").write_bytes(b"")
  with pytest.raises(InputError):
    sets.prepare(sets.plan(root, num_shards=3), tmp_path / "out")
  first = min((tmp_path / "out").rglob("*array_record-*"))
  first.write_bytes(first.read_bytes()[:-100])
  prepared = sets.prepare(sets.plan(root, num_shards=3), tmp_path / "out", skip_bad=True)
  assert len(sets.read(prepared.directory, "train")) == 23


def test_same_command_again_does_nothing_and_another_is_refused(photos, tmp_path):
  root, _ = photos
  first = sets.prepare(sets.plan(root), tmp_path / "out")
  again = sets.prepare(sets.plan(root), tmp_path / "out")
  assert again.again and again.splits == first.splits and again.classes == first.classes
  with pytest.raises(InputError, match="there already, prepared from other images or with other"):
    sets.prepare(sets.plan(root, num_shards=2), tmp_path / "out")
  (root / "a" / "new.png").write_bytes((root / "a" / "1.png").read_bytes())
  with pytest.raises(InputError, match="there already"):
    sets.prepare(sets.plan(root), tmp_path / "out")


def test_an_unfinished_preparation_is_not_resumed_with_other_arguments(photos, tmp_path):
  root, _ = photos
  (root / "a" / "0.JPG").write_bytes(b"")
  with pytest.raises(InputError):
    sets.prepare(sets.plan(root), tmp_path / "out")
  with pytest.raises(InputError, match="was begun from other images or with other arguments"):
    sets.prepare(sets.plan(root, num_shards=2), tmp_path / "out")


def test_two_at_once_are_refused(photos, tmp_path):
  root, _ = photos
  with (
    engine._lock(tmp_path / "out" / "mine" / "1.0.0"),
    pytest.raises(InputError, match="another process is preparing"),
  ):
    sets.prepare(sets.plan(root), tmp_path / "out")


def test_output_that_cannot_be_written(photos, tmp_path):
  root, _ = photos
  (tmp_path / "out").write_text("a file")
  with pytest.raises(InputError, match=r"out/mine/1\.0\.0 cannot be written"):
    sets.prepare(sets.plan(root), tmp_path / "out")


def test_a_bucket_is_not_written_to(photos):
  with pytest.raises(InputError, match="gs://bucket is no local directory"):
    sets.prepare(sets.plan(photos[0]), "gs://bucket")


def test_disk_that_is_too_small_is_found_before_and_while_writing(photos, tmp_path, monkeypatch):
  root, _ = photos
  usage = shutil.disk_usage(tmp_path)
  with monkeypatch.context() as patched:
    patched.setattr(engine.shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(InputError, match=r"has room for 0\.0 GB"):
      sets.prepare(sets.plan(root), tmp_path / "out")
  file = f"{next(sets.plan(root).shards()).file}.partial"
  (tmp_path / "out" / "mine" / "1.0.0.incomplete" / file).symlink_to("/dev/full")
  with pytest.raises(InputError, match=r"(?s)could not be written: .*No space left.*same command"):
    sets.prepare(sets.plan(root), tmp_path / "out")


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (lambda root: shutil.rmtree(root), "is not a directory"),
    (lambda root: [shutil.rmtree(d) for d in root.iterdir()], "has no folders"),
    (lambda root: (root / "empty").mkdir(), "class 'empty' has no images"),
    (lambda root: (root / "a" / "loop").symlink_to(root), "is a link to a directory"),
    (lambda root: (root / "linked").symlink_to(root / "a"), "is a link to a directory"),
    (lambda root: [sets.folder(root, {"x": 1}, s) for s in ("train", "val")], "train, val look like splits"),
    (lambda root: sets.folder(root, {"x": 1}, "Test"), "Test look like splits"),
    (lambda root: (root / " x").mkdir(), "class ' x' is empty or has blanks"),
    (lambda root: (root / "x\ny").mkdir(), "line break"),
    (lambda root: os.mkdir(os.fsencode(root) + b"/\xff"), "printable UTF-8"),
  ],
)  # fmt: skip
def test_bad_folders(photos, tmp_path, spoil, message):
  spoil(photos[0])
  with pytest.raises(InputError, match=message):
    sets.plan(photos[0])


def test_bad_splits(tmp_path):
  sets.folder(tmp_path, {"a": 2}, split="train")
  sets.folder(tmp_path, {"a": 2, "new": 1}, split="test")
  with pytest.raises(InputError, match=r"test has class 'new', which .*train lacks"):
    sets.plan(tmp_path)
  shutil.rmtree(tmp_path / "test" / "new")
  with pytest.raises(InputError, match="leaves 2 images to train on and 0 held out"):
    sets.plan(tmp_path, held_out=0.01)
  sets.folder(tmp_path, {"a": 2}, split="validation")
  with pytest.raises(InputError, match="takes the split 'validation' out of 'train'"):
    sets.plan(tmp_path, held_out=0.5)


def test_all_images_of_a_split_bad(tmp_path):
  (tmp_path / "in" / "a").mkdir(parents=True)
  (tmp_path / "in" / "a" / "0.png").write_bytes(b"")
  with pytest.raises(InputError, match="no image of the split 'train' is good"):
    sets.prepare(sets.plan(tmp_path / "in"), tmp_path / "out", skip_bad=True)


def test_a_shard_without_good_images_can_be_read(photos, tmp_path):
  root, files = photos
  third = list(sets.plan(root, num_shards=6).shards())[2]
  for path, _ in third.examples(lambda: None):
    (root / path).write_bytes(b"")
    del files[path]
  prepared = sets.prepare(sets.plan(root, num_shards=6), tmp_path / "out", skip_bad=True)
  assert {e["image"] for e in sets.read(prepared.directory, "train")} == set(files.values())


def test_nested_folders_and_any_file_name(tmp_path):
  deep = tmp_path / "in" / "a" / "images" / "more"
  deep.mkdir(parents=True)
  name = os.fsencode(deep) + b"/\xff\n\t'.jpg"
  with open(name, "wb") as f:
    f.write(sets.jpeg(1))
  prepared = sets.prepare(sets.plan(tmp_path / "in"), tmp_path / "out")
  assert [e["image"] for e in sets.read(prepared.directory, "train")] == [sets.jpeg(1)]
  assert folders.read(str(tmp_path / "in"), "x").splits["train"][0].key.startswith("a/images/more/")


@pytest.mark.parametrize(
  ("number", "bad"), [(errno.EIO, 0), (errno.EACCES, 0), (errno.ENOENT, 1), (errno.ELOOP, 1)]
)
def test_trouble_with_the_storage_is_no_bad_image(photos, tmp_path, monkeypatch, number, bad):
  root, _ = photos
  plan, opened = sets.plan(root), os.open

  def fail(path, *args, **kwargs):
    if str(path).endswith("a/3.png"):
      raise OSError(number, os.strerror(number))
    return opened(path, *args, **kwargs)

  monkeypatch.setattr(os, "open", fail)
  if bad:
    assert sets.prepare(plan, tmp_path / "out", skip_bad=True).num_bad == bad
  else:
    with pytest.raises(InputError, match=f"a/3.png cannot be read.*{os.strerror(number)}"):
      sets.prepare(plan, tmp_path / "out", skip_bad=True)
