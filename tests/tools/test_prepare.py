"""The command as users give it: what it prints, exits with, and leaves behind when it is killed."""

import os
import pathlib
import re
import signal
import sys
import time

import pytest
from absl import flags
from absl.testing import flagsaver

from mixer_jax.data.preprocess import Preprocess
from mixer_jax.errors import InputError
from mixer_jax.tools import prepare
from tests import runs, tfds_sets
from tests.conftest import GOLDEN
from tests.tools.preparation import preparation_sets as sets

COMMAND = [sys.executable, "-m", "mixer_jax.tools.prepare"]


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
  """240 photos that take a second or two: links to three files."""
  root = tmp_path_factory.mktemp("slow")
  for label in ("a", "b"):
    (root / label).mkdir()
    for i in range(120):
      names = ("photo_astronaut.jpg", "photo_china.jpg", "photo_coffee.jpg")
      (root / label / f"{i}.jpg").symlink_to(GOLDEN / names[i % 3])
  return root


def shards_done(out):
  return len(list(pathlib.Path(out).glob("*/*.incomplete/finished/*.json")))


def start_and_wait_for_shards(args, out, count):
  process = runs.start(args)
  deadline = time.monotonic() + 60
  while shards_done(out) < count and process.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.005)
  return process


def contents(directory):
  return {p.name: p.read_bytes() for p in pathlib.Path(directory).iterdir()}


def test_killed_and_interrupted_it_goes_on_and_ends_the_same(slow, tmp_path):
  args = [*COMMAND, f"--from_folder={slow}", "--num_workers=2", "--num_shards=24"]
  out, again = tmp_path / "out", [*args, "--name=mine", f"--data_dir={tmp_path}/out"]
  whole = sets.prepare(sets.plan(slow, num_shards=24), tmp_path / "whole").directory
  for number, expected in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
    before = shards_done(out)
    process = start_and_wait_for_shards(again, out, before + 3)
    runs.kill(process, number)
    printed, _ = process.communicate(timeout=60)
    assert runs.left_behind(process) == []
    if finished := process.returncode == 0:
      break  # on a busy machine the signal may come after the end
    assert process.returncode == expected, printed
    assert not (out / "mine" / "1.0.0").exists() and "Traceback" not in printed
    assert shards_done(out) >= before + 3
  status, output = runs.run(again)
  assert status == 0, output
  assert finished or re.search(r"resuming: \d+ shards with \d+ images are done", output)
  assert contents(out / "mine" / "1.0.0") == contents(whole)
  assert os.listdir(out / "mine") in (["1.0.0", ".1.0.0.lock"], [".1.0.0.lock", "1.0.0"])


def call(*args, **values):
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(num_workers=0, **values):
    prepare.main(["prepare", *args])


def test_the_table_s_names_are_prepared_by_their_builders(monkeypatch, capsys):
  monkeypatch.setattr(prepare.builders, "prepare", lambda name, data_dir: f"{data_dir}/{name}")
  call("vtab/dmlab", data_dir="/data")
  assert "/data/dmlab" in capsys.readouterr().out


def test_prints_the_flags_that_train_on_it(tmp_path, capsys):
  sets.folder(tmp_path / "My photos!", {"cat": 20, "dog": 30})
  (tmp_path / "My photos!" / "cat" / "notes.txt").write_text("x")
  call(from_folder=str(tmp_path / "My photos!"), held_out="10%", data_dir=str(tmp_path / "out"))
  printed = capsys.readouterr().out
  assert "found 50 images of 2 classes" in printed
  assert "train: 45 images; cat 18, dog 27\nvalidation: 5 images; cat 2, dog 3\n" in printed
  assert "left out: 0 bad images, 1 other files" in printed
  found = dict(re.findall(r"--config\.([a-z_.]+)=(\S+)", printed))
  assert found["data.dataset"] == str(tmp_path / "out" / "my_photos" / "1.0.0")
  for place in ("data", "evaluators.val"):
    spec = tfds_sets.split_of(
      found["data.dataset"], Preprocess("decode|resize(8)", (8, 8, 3)), split=found[f"{place}.split"],
      num_examples=int(found[f"{place}.num_examples"]), num_classes=int(found["num_classes"]),
    )  # fmt: skip
    assert len(spec.open()) == spec.num_examples


def test_many_classes_are_summed_up(tmp_path, capsys):
  lines = [f"{i}_{n}.png\t{i}" for i in range(30) for n in range(1 + (i == 7))]
  for line in lines:
    (tmp_path / line.split("\t")[0]).write_bytes(sets.tfds_sets.png(1))
  (tmp_path / "t.tsv").write_text("\n".join(lines))
  call(from_tsv=str(tmp_path / "t.tsv"), data_dir=str(tmp_path / "out"))
  printed = capsys.readouterr().out
  assert "train: 31 images; 30 classes, from 0 1 to 7 2" in printed
  assert "evaluate on what is trained on. --held_out=10%" in printed


@pytest.mark.parametrize(
  ("args", "values", "message"),
  [
    ((), {}, "give one of --from_folder"),
    (("digits",), {"from_folder": "x"}, "give one of --from_folder"),
    ((), {"from_folder": "x", "from_tsv": "y"}, "give one of --from_folder"),
    ((), {"from_folder": "x", "names": "y"}, "--names goes with --from_tsv"),
    ((), {"from_folder": "/tmp/1"}, "'1' cannot be the name"),
    ((), {"from_folder": "x", "name": "a/b"}, "'a/b' cannot be the name"),
    ((), {"from_tfds": "x", "held_out": "10%"}, "keeps names, splits and shards"),
    ((), {"from_tfds": "x"}, "is not the directory of a prepared TFDS data set"),
    ((), {"from_imagenet": "x", "name": "y"}, "no --name"),
    ((), {"from_imagenet": "x"}, "ILSVRC2012_img_train.tar is missing"),
    ((), {"from_folder": "x", "fps": 5.0}, "--fps goes with --from_videos"),
    ((), {"from_videos": "x", "from_folder": "x"}, "give one of --from_folder"),
    ((), {"from_videos": "x", "names": "y"}, "--names goes with"),
    ((), {"from_videos": "x", "verify": False}, "--noverify is for images"),
    ((), {"from_videos": "x"}, "x is not a directory|need PyAV"),
    (("imagenet2013",), {}, "Did you mean 'imagenet2012'"),
  ],
)
def test_bad_arguments(args, values, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError, match=message):
    call(*args, **values)


@pytest.mark.parametrize("share", ["0", "100%", "ten", "nan", ""])
def test_bad_shares(tmp_path, share):
  sets.folder(tmp_path / "in", {"a": 2})
  with pytest.raises(InputError, match="--held_out="):
    call(from_folder=str(tmp_path / "in"), held_out=share, data_dir=str(tmp_path))


@pytest.mark.parametrize(
  ("name", "error", "named"),
  [
    ("imagenet2012", AssertionError("Manual directory d is empty, see:\nlines"), "--from_imagenet=DIR"),
    ("imagenet2012", ModuleNotFoundError("x", name="tensorflow"), "--from_imagenet=DIR.* pip install"),
    ("mnist", ConnectionError("no such host"), "no such host. Two ways out: .*--from_folder"),
  ],
)  # fmt: skip
def test_a_builder_that_lacks_something_ends_with_the_ways_out(monkeypatch, name, error, named):
  def fail(*_):
    raise error

  monkeypatch.setattr(prepare.builders, "prepare", fail)
  with pytest.raises(InputError, match=named):
    call(name)
