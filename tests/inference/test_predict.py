"""Predictions for image files against the model applied by hand, and files that are no images."""

import csv
import io
import json
import os
import subprocess

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from benchmarks import moving_fashion
from mixer_jax import inference
from mixer_jax.data import videos
from mixer_jax.data.preprocess import Preprocess
from mixer_jax.errors import BadRecordError, InputError
from mixer_jax.inference import predict
from mixer_jax.tools.preparation import folders
from tests import encoded, marks, tfds_sets
from tests.configurations import of_clips, small_config
from tests.conftest import GOLDEN
from tests.inference.conftest import make_trained
from tests.tools.preparation import preparation_sets as sets

NAMES = [f"name {i}" for i in range(10)]


@pytest.fixture
def folder(tmp_path):
  """Five images in two directories, a JPEG in capitals among them, and a text."""
  (tmp_path / "below").mkdir()
  for i in range(4):
    (tmp_path / f"{i}.png").write_bytes(tfds_sets.png(i))
  (tmp_path / "below" / "LARGE.JPG").write_bytes((GOLDEN / "extra_tiny.jpg").read_bytes())
  (tmp_path / "notes.txt").write_text("no image")
  return tmp_path


def test_files_directories_and_globs_are_found_once(folder):
  every = [str(folder / n) for n in ("0.png", "1.png", "2.png", "3.png", "below/LARGE.JPG")]
  assert predict.find_images([str(folder)]) == every
  assert predict.find_images([f"{folder}/[12].png", every[1], f"{folder}/**/*.JPG"]) == [
    *every[1:3],
    every[4],
  ]
  (folder / "below").rename(folder / "below [1]")
  assert predict.find_images([f"{folder}/below [1]/*.JPG"]) == [f"{folder}/below [1]/LARGE.JPG"]
  (folder / "below [1]").rename(folder / "below")
  assert predict.find_images([f"{folder}/x*.png", "nowhere.jpg"]) == [
    f"{folder}/x*.png",
    "nowhere.jpg",
  ]


def _softmax(x):
  return special.softmax(x, axis=-1)


@pytest.mark.parametrize(
  ("loss", "activation", "num_devices", "batch_size"),
  [("softmax_xent", _softmax, 1, 2), ("sigmoid_xent", special.expit, 4, 3)],
)
def test_predictions_are_those_of_the_model(folder, loss, activation, num_devices, batch_size):
  trained = make_trained(num_devices, loss=loss)
  paths = predict.find_images([str(folder)])
  predictions = list(predict.predict(trained, paths, NAMES, top=5, batch_size=batch_size))
  assert [p["file"] for p in predictions] == paths
  pixels = jnp.stack([predict.load_image(p, inference.preprocess(trained.setup)) for p in paths])
  logits = jax.jit(trained.setup.model.apply)(trained.variables, trained.setup.normalize(pixels))
  probabilities = activation(np.asarray(logits, np.float64))
  for wanted, prediction in zip(probabilities, predictions, strict=True):
    best = np.argsort(-wanted, kind="stable")[:5]
    assert [p["class"] for p in prediction["predictions"]] == best.tolist()
    assert [p["name"] for p in prediction["predictions"]] == [NAMES[i] for i in best]
    have = [p["probability"] for p in prediction["predictions"]]
    np.testing.assert_allclose(have, wanted[best], rtol=1e-5)


def test_a_model_of_clips_names_videos_and_shows_their_frames(tmp_path):
  config = of_clips(small_config(), 4)
  config.model.tubelet = 2
  trained = make_trained(config=config)
  order, rng = moving_fashion.CLASSES[0], np.random.default_rng(0)
  for folder in ("below", "video"):
    (tmp_path / folder).mkdir()
    frames = moving_fashion.clip(rng.integers(0, 256, (28, 28), np.uint8), rng, order)
    (tmp_path / folder / "1.mp4").write_bytes(moving_fashion.encode(frames))
  (tmp_path / "bad.mp4").write_bytes(moving_fashion.encode(frames)[:2000])
  for number, data in enumerate(videos.read(str(tmp_path / "video" / "1.mp4"))):
    (tmp_path / "frames").mkdir(exist_ok=True)
    (tmp_path / "frames" / f"{number}.jpg").write_bytes(data)
  kind = predict.kind_of(trained.setup)
  paths = predict.find_images([str(tmp_path), str(tmp_path / "frames")], kind=kind)
  strips = tmp_path / "strips"
  bad, _, of_folder, good = predict.predict(
    trained, paths, NAMES, top=5, batch_size=2, strips=strips
  )
  assert bad.keys() == {"file", "error"}
  assert "predictions" in of_folder
  for name in ("below/1.mp4", "frames", "video/1.mp4"):
    example = {"image": videos.read(str(tmp_path / name))}
    clip = inference.preprocess(trained.setup)(example, np.random.default_rng(0))["image"]
    strip = cv2.imread(str(strips / f"{name}.png"))[..., ::-1]
    np.testing.assert_array_equal(np.hstack(list(clip)), strip)
  x = trained.setup.normalize(jnp.asarray(clip)[None])
  want = _softmax(np.asarray(trained.setup.model.apply(trained.variables, x))[0])
  assert [p["class"] for p in good["predictions"]] == np.argsort(-want)[:5].tolist()
  with pytest.raises(InputError, match="--strips=x"):
    predict.check_strips("x", make_trained().setup)


def test_one_program_serves_all_batches(folder, trained, monkeypatch):
  """Five files in batches of two: the last is filled up, bad ones keep their places."""
  made = []
  make = predict.make_top_step
  monkeypatch.setattr(predict, "make_top_step", lambda *args: made.append(make(*args)) or made[-1])
  paths = predict.find_images([str(folder)])
  list(predict.predict(trained, [*paths, "bad", *paths], NAMES, top=3, batch_size=2))
  assert [step._cache_size() for step in made] == [1]


BAD = {
  "empty.png": (b"", "not a JPEG, PNG or WebP, but 0 bytes"),
  "page.jpg": (b"<!DOCTYPE html>", "not a JPEG, PNG or WebP, but HTML"),
  "cut.png": (tfds_sets.png(0)[:60], "truncated PNG"),
  "cut.jpg": ((GOLDEN / "extra_tiny.jpg").read_bytes()[:300], "truncated JPEG"),
  "bomb.png": (encoded.png(60_000, 60_000), "PNG of 60000×60000 pixels; 100000000 at most"),
  "bomb.jpg": (
    encoded.resized_jpeg(65_000, 65_000),
    "JPEG of 65000×65000 pixels; 100000000 at most",
  ),
  "line.png": (encoded.png(60_000, 2), "sides differ by more than 100 times"),
}


def test_bad_files_are_named_and_the_others_predicted(folder, trained):
  for name, (content, _) in BAD.items():
    (folder / name).write_bytes(content)
  (folder / "nothing").mkdir()
  paths = [*predict.find_images([str(folder)]), str(folder / "nothing"), str(folder / "gone.jpg")]
  predictions = {
    os.path.basename(p["file"]): p
    for p in predict.predict(trained, paths, NAMES, top=5, batch_size=4)
  }
  reasons = {name: reason for name, (_, reason) in BAD.items()}
  reasons |= {"nothing": "no image (.jpg, .jpeg,", "gone.jpg": "no such file"}
  for name, reason in reasons.items():
    assert reason in predictions[name]["error"], name
  good = predict.find_images([f"{folder}/[0-3].png"])
  alone = list(predict.predict(trained, good, NAMES, top=5, batch_size=4))
  assert [predictions[os.path.basename(p)]["predictions"] for p in good] == [
    p["predictions"] for p in alone
  ]


def test_a_huge_file_is_not_read(tmp_path, trained):
  path = tmp_path / "huge.jpg"
  with path.open("wb") as f:
    f.truncate(predict.MAX_FILE_BYTES + 1)  # a hole: it takes no space
  with pytest.raises(BadRecordError, match="larger than 256 MiB"):
    predict.load_image(str(path), inference.preprocess(trained.setup))


def test_an_image_too_small_for_the_crop_is_a_bad_image(tmp_path):
  crop = Preprocess("decode|central_crop", (16, 16, 3), "config.evaluators.val.ops")
  cv2.imwrite(str(tmp_path / "small.png"), np.zeros((8, 30, 3), np.uint8))
  with pytest.raises(BadRecordError, match=r"config\.evaluators\.val\.ops .*: an image of 8x30"):
    predict.load_image(str(tmp_path / "small.png"), crop)


def test_csv_and_json_say_the_same(folder, trained):
  paths = [*predict.find_images([str(folder)]), "gone, really.jpg"]
  predictions = list(predict.predict(trained, paths, ["a, b", *NAMES[1:]], top=2, batch_size=8))
  for suffix in (".csv", ".json"):
    output = predict.check_output(str(folder / f"out{suffix}"))
    predict.save(output, predictions, paths)
  read = json.loads((folder / "out.json").read_text())
  assert read == predictions
  assert read[-1] == {"file": "gone, really.jpg", "error": "no such file"}
  lines = list(csv.DictReader(io.StringIO((folder / "out.csv").read_text())))
  assert len(lines) == 2 * 5
  for line, wanted in zip(lines, [p for one in read[:-1] for p in one["predictions"]], strict=True):
    assert (int(line["class"]), line["name"]) == (wanted["class"], wanted["name"])
    assert float(line["probability"]) == wanted["probability"]


def test_names_that_no_terminal_takes_are_escaped(tmp_path, trained):
  path = os.fsdecode(bytes(tmp_path) + b"/\x1b[2Jna\xefve\xc3\xa9.png")
  with open(path, "wb") as f:
    f.write(tfds_sets.png(0))
  (one,) = predict.predict(
    trained, predict.find_images([str(tmp_path)]), NAMES, top=1, batch_size=1
  )
  assert one["file"].endswith("/\\x1b[2Jna\\xefveé.png")
  assert "predictions" in one


def test_class_names_from_a_file(tmp_path):
  path = tmp_path / "names.txt"
  path.write_text("Katze\nHund\n")
  assert predict.read_class_names(str(path), 2) == ["Katze", "Hund"]
  with pytest.raises(InputError, match="has 2 lines; the model has 3 classes"):
    predict.read_class_names(str(path), 3)
  path.write_bytes(b"\xff\xfe")
  with pytest.raises(InputError, match="cannot be read"):
    predict.read_class_names(str(path), 1)


@pytest.mark.parametrize("path", ["predictions.txt", "nowhere/predictions.csv"])
def test_an_output_that_cannot_be_is_refused_first(tmp_path, path):
  with pytest.raises(InputError, match="--output"):
    predict.check_output(str(tmp_path / path))


@pytest.mark.parametrize(
  ("channels", "bad"), [(1, {"alpha"}), (3, {"alpha"}), (4, {"grey", "rgb"})]
)
def test_files_whose_channels_do_not_fit_are_named(tmp_path, channels, bad):
  image = np.random.default_rng(0).integers(0, 255, (20, 30, 4), np.uint8)
  for name, part in (("grey", image[..., 0]), ("rgb", image[..., :3]), ("alpha", image)):
    cv2.imwrite(str(tmp_path / f"{name}.png"), part)
  val = {"type": "classification", "ops": "decode|resize(8, 16)"}
  trained = make_trained(image_size=(8, 16), image_channels=channels, evaluators={"val": val})
  paths = predict.find_images([str(tmp_path)])
  for one in predict.predict(trained, paths, NAMES, top=1, batch_size=2):
    assert ("error" in one) == (os.path.basename(one["file"])[:-4] in bad)
    assert str(channels) in one.get("error", str(channels))


@pytest.mark.parametrize("depth", [3, marks.long(1100)])
def test_prepare_and_predict_take_the_same_photos(tmp_path, depth):
  """What other programs leave is ignored and counted; a class may be called "train"; folders go deep."""
  sets.folder(tmp_path, {"a": 2, "train": 1})
  deep = tmp_path / "a"
  for _ in range(depth):
    deep /= "d"
    deep.mkdir()
  others = [".DS_Store", "a/.DS_Store", "a/._0.JPG", "a/.hidden.png", "train/Thumbs.db"]
  others += [
    "train/notes.txt",
    "@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg",
    "a/@eaDir/0.JPG/SYNOPHOTO_THUMB_M.jpg",
  ]
  for name in (deep / "x.jpg", *others):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"")
  ignored = []
  found = predict.find_images([str(tmp_path)], ignored)
  prepared = folders.read(str(tmp_path), "mine")
  # Python's own way goes as deep as the folders.
  subprocess.run(["rm", "-r", str(tmp_path / "a")], check=True)
  train = prepared.splits["train"]
  assert [str(tmp_path / train[i].key) for i in range(len(train))] == found
  assert [os.path.basename(path) for path in found] == ["0.JPG", "1.png", "x.jpg", "0.JPG"]
  assert len(ignored) == len(others) and sorted(ignored) == sorted(prepared.ignored)
