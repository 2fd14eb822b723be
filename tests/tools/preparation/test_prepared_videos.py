"""Videos from folders and tables to a data set: the frames of each file, the bad files counted and listed."""

import json

import numpy as np
import pytest

from mixer_jax.data import pipeline, videos
from mixer_jax.data.preprocess import Preprocess
from mixer_jax.errors import InputError
from mixer_jax.tools.preparation import catalogue, folders, images, tables
from tests import tfds_sets, video_files
from tests.tools.preparation import preparation_sets as sets

ALL = catalogue.Videos(short_side=256, fps=None)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """Six videos of two classes, three of them bad, and a text."""
  root = tmp_path_factory.mktemp("set")
  for name, seed in (("jump/a.mp4", 0), ("jump/b.gif", 1), ("run/deep/c.webm", 2)):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    video_files.write(root / name, video_files.moving(9 + seed, seed=seed))
  video_files.write(root / "run/sound.mp4", (), audio=True)
  (root / "run/empty.avi").write_bytes(b"")
  (root / "run/cut.mp4").write_bytes((root / "jump/a.mp4").read_bytes()[:900])
  (root / "run/notes.txt").write_bytes(b"none")
  return root


def plan(root, videos=ALL, **arguments):
  return images.plan(folders.read(str(root), "mine", videos), **arguments)


def test_a_folder_becomes_a_data_set_of_clips(root, tmp_path):
  with pytest.raises(InputError, match=r"3 of 6 videos.*\n  run/cut\.mp4: no whole"):
    sets.prepare(plan(root), tmp_path)
  prepared = sets.prepare(plan(root), tmp_path, skip_bad=True)
  assert prepared.classes == {"train": {"jump": 2, "run": 1}}
  assert (prepared.num_bad, prepared.num_ignored) == (3, 1)
  lines = (prepared.directory / "quarantine.jsonl").read_text().splitlines()
  assert {json.loads(line).get("record") for line in lines} == {
    "run/cut.mp4", "run/empty.avi", "run/sound.mp4", None,
  }  # fmt: skip
  source = sets.opened(prepared)
  got = sorted((int(source[i]["label"]), source[i]["image"]) for i in range(3))
  names = ("jump/a.mp4", "jump/b.gif", "run/deep/c.webm")
  wanted = [(int(n.startswith("run")), videos.read(str(root / n))) for n in names]
  assert got == sorted(wanted)
  ops = Preprocess("window(2)|decode|inception_crop|flip", (4, 32, 32, 3))
  spec = tfds_sets.split_of(prepared.directory, ops, num_examples=3, num_classes=2)
  batches = pipeline.TrainBatches(
    spec, spec.open(), seed=0, batch_size=3, rows=np.arange(3), total_steps=1
  )
  assert batches[0]["image"].shape == (3, 4, 32, 32, 3)


def test_what_decides_the_frames_belongs_to_the_plan(root, tmp_path):
  sets.prepare(plan(root), tmp_path, skip_bad=True)
  for other in (catalogue.Videos(128, None), catalogue.Videos(256, 10.0)):
    with pytest.raises(InputError, match="from other videos or with other arguments"):
      sets.prepare(plan(root, other), tmp_path, skip_bad=True)
  assert sets.prepare(plan(root), tmp_path, skip_bad=True).again
  whole = sets.prepare(plan(root, num_shards=3), tmp_path / "b", skip_bad=True, num_workers=0)
  assert whole.splits == {"train": 3}


def test_folders_of_frames_are_videos(root, tmp_path):
  """Their frames are encoded anew; those with a gap are bad."""
  for name in ("jump/a", "run/b", "run/gap"):
    (tmp_path / "set" / name).mkdir(parents=True)
    for number, data in enumerate(videos.read(str(root / "jump" / "a.mp4"))):
      (tmp_path / "set" / name / f"{number:05}.jpg").write_bytes(data)
  (tmp_path / "set" / "run" / "gap" / "00003.jpg").unlink()
  with pytest.raises(InputError, match=r"1 of 3 videos.*\n  run/gap: .* frame 3 "):
    sets.prepare(plan(tmp_path / "set"), tmp_path)
  (tmp_path / "set" / "list.tsv").write_text("jump/a/\tup\nrun/b\talong\n")
  listed = images.plan(tables.read(str(tmp_path / "set" / "list.tsv"), "listed", videos=ALL))
  for found, classes in (
    (plan(tmp_path / "set"), {"jump": 1, "run": 1}),
    (listed, {"along": 1, "up": 1}),
  ):
    prepared = sets.prepare(found, tmp_path, skip_bad=True)
    assert prepared.classes == {"train": classes}
    source = sets.opened(prepared)
    assert source[0]["image"] == source[1]["image"] == videos.read(str(tmp_path / "set/run/b"))


def test_a_table_of_videos(root, tmp_path):
  (root / "list.tsv").write_text("jump/a.mp4\tup\nrun/deep/c.webm\talong\n")
  small = catalogue.Videos(short_side=24, fps=10.0)
  collection = tables.read(str(root / "list.tsv"), "listed", videos=small)
  prepared = sets.prepare(images.plan(collection), tmp_path)
  assert prepared.classes == {"train": {"along": 1, "up": 1}}
  source = sets.opened(prepared)
  by_label = {int(source[i]["label"]): source[i]["image"] for i in range(2)}
  for label, name in enumerate(("run/deep/c.webm", "jump/a.mp4")):
    assert by_label[label] == videos.read(str(root / name), short_side=24, fps=10.0)
  (root / "list.tsv").write_text("jump/lost.mp4\tup\n")
  with pytest.raises(InputError, match="none of 1 videos"):
    images.plan(tables.read(str(root / "list.tsv"), "listed", videos=small))
