"""Clips: which frames, the same draws for all of them, views, and what fits to what."""

import dataclasses
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mixer_jax.data import clips, loading, pipeline
from mixer_jax.data.preprocess import Preprocess
from mixer_jax.errors import BadRecordError, InputError
from tests import tfds_sets
from tests.marks import long

SHAPE = (4, 8, 8, 3)


def video(number, length=9, size=12):
  """Returns the encoded frames of a video; frame i is noise that depends on the number and i."""
  return [tfds_sets.png(100 * number + i, size) for i in range(length)]


def taken(op, length, rng=None, view=(0, 0)):
  """Returns the numbers of the frames that a sampling takes of a video of this length."""
  example = {"image": [*range(length)], "view": view}
  return op(example, rng or np.random.default_rng(0))["image"]


def test_segments_take_a_frame_of_each_part():
  """Against TSN's parts, counted by hand: 16 frames are 4 parts of 4, 10 are 2, 3, 2 and 3 frames."""
  assert taken(clips.segments(4, views=1), 16) == [2, 6, 10, 14]
  assert [taken(clips.segments(4, views=2), 16, view=(v, 0)) for v in (0, 1)] == [
    [1, 5, 9, 13],
    [3, 7, 11, 15],
  ]
  rng, parts = np.random.default_rng(0), ({0, 1}, {2, 3, 4}, {5, 6}, {7, 8, 9})
  seen = np.array([taken(clips.segments(4), 10, rng) for _ in range(200)])
  assert [set(column) for column in seen.T] == [*parts]
  assert taken(clips.segments(4), 2) == [0, 0, 1, 1]
  assert taken(clips.segments(4), 1) == [0, 0, 0, 0]


def test_windows_take_frames_at_a_stride():
  op = clips.window(4, stride=3)
  rng = np.random.default_rng(0)
  seen = {tuple(taken(op, 12, rng)) for _ in range(200)}
  assert seen == {(s, s + 3, s + 6, s + 9) for s in range(3)}
  views = [taken(clips.window(4, 3, views=3), 12, view=(v, 0))[0] for v in range(3)]
  assert views == [0, 1, 2]
  assert taken(clips.window(4, 3, views=1), 16)[0] == 3
  assert taken(op, 5) == [0, 3, 1, 4]  # from the start again


@pytest.mark.parametrize("crop", ["inception_crop|flip|color_jitter", "random_resized_crop|flip"])
def test_all_frames_are_processed_alike(crop):
  """As images: each frame gives what its image gives with a generator in the state after the sampling."""
  example = {"image": video(0), "label": 2}
  got = Preprocess(f"segments|decode|{crop}", SHAPE)(example, pipeline.example_rng(5, 1, 3, 1))
  rng = pipeline.example_rng(5, 1, 3, 1)
  indices = taken(clips.segments(4), 9, rng)
  state = rng.bit_generator.state
  images = Preprocess(f"decode|{crop}", SHAPE[1:])
  for frame, i in zip(got["image"], indices, strict=True):
    rng.bit_generator.state = state
    wanted = images({"image": example["image"][i], "label": 2}, rng)
    np.testing.assert_array_equal(frame, wanted["image"])
    assert got["drawn"] == (("segments", tuple(indices)), *wanted["drawn"])
  again = pickle.loads(pickle.dumps(Preprocess(f"segments|decode|{crop}", SHAPE)))
  np.testing.assert_array_equal(
    again(example, pipeline.example_rng(5, 1, 3, 1))["image"], got["image"]
  )


def test_three_crops_lie_along_the_longer_side():
  pixels = np.arange(10 * 6 * 3, dtype=np.uint8).reshape(10, 6, 3)
  op, rng = clips.three_crops((6, 4)), np.random.default_rng(0)
  for image, cut in (
    (pixels, lambda a, v: a[2 * v : 2 * v + 6, 1:5]),
    (pixels.transpose(1, 0, 2), lambda a, v: a[:, 3 * v : 3 * v + 4]),
  ):
    for view in range(3):
      got = op({"image": image, "view": (0, view)}, rng)["image"]
      np.testing.assert_array_equal(got, cut(image, view))


@pytest.mark.parametrize(
  ("text", "shape", "message"),
  [
    ("decode|resize(8)", SHAPE, "must start with a sampling"),
    ("segments|resize(8)", SHAPE, "go on with 'decode'"),
    ("segments|decode|segments", SHAPE, "'segments' twice"),
    ("segments|decode|inception_crop", SHAPE[1:], "takes images"),
    ("window|decode|inception_crop", SHAPE, "stride"),
    ("window(0)|decode|inception_crop", SHAPE, "stride"),
    ("segments(views=0)|decode|inception_crop", SHAPE, "views"),
    ("segments(frames=9)|decode|inception_crop", SHAPE, "frames"),
  ],
)
def test_texts_that_do_not_fit_are_named(text, shape, message):
  with pytest.raises(InputError, match=message):
    Preprocess(text, shape, "config.data.ops")


def test_what_is_no_video_or_a_bad_one_is_named():
  rng = np.random.default_rng(0)
  of_clips = Preprocess("segments(views=1)|decode|inception_crop", SHAPE)
  with pytest.raises(InputError, match="data are images"):
    of_clips({"image": tfds_sets.png(0)}, rng)
  with pytest.raises(InputError, match="data are videos"):
    Preprocess("decode|inception_crop", SHAPE[1:])({"image": video(0)}, rng)
  with pytest.raises(BadRecordError, match="without frames"):
    of_clips({"image": []}, rng)
  bad = video(0)
  bad[5] = bad[5][:60]
  with pytest.raises(BadRecordError, match="frame 5: "):
    of_clips({"image": bad}, rng)
  with pytest.raises(BadRecordError, match="several sizes"):
    of_clips({"image": [*video(0, 4, 12), *video(1, 5, 40)]}, rng)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  """A data set of 10 videos of 3 to 12 frames; frame i of video n is noise that depends on both."""
  features = {
    "video": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3))),
    "label": tfds.features.ClassLabel(num_classes=10),
  }
  examples = [(n, {"video": video(n, 3 + n), "label": n}) for n in range(10)]
  return tfds_sets.prepare(tmp_path_factory.mktemp("tfds"), "Videos", features, {"train": examples})


def split(directory, text):
  return tfds_sets.split_of(directory, Preprocess(text, SHAPE), num_examples=10)


def test_a_video_is_the_list_of_its_encoded_frames(directory):
  spec = split(directory, "segments|decode|inception_crop")
  source = spec.open()
  for i in range(10):
    n = int(source[i]["label"])
    assert source[i]["image"] == video(n, 3 + n)
  assert len(set(source.fingerprint())) > 1
  with pytest.raises(InputError, match="data are videos"):
    dataclasses.replace(spec, ops=Preprocess("decode|resize(8)", SHAPE[1:])).open()


@pytest.mark.parametrize("num_workers", [0, long(2)])
def test_batches_of_clips_are_the_same_in_processes_and_after_a_restart(directory, num_workers):
  spec = split(directory, "window(2)|decode|inception_crop|flip")
  batches = pipeline.TrainBatches(
    spec, spec.open(), seed=3, batch_size=8, rows=np.arange(8), total_steps=5
  )
  with loading.iterate(batches, start=1, num_workers=num_workers) as loaded:
    found = list(loaded)
  assert found[0]["image"].shape == (8, *SHAPE)
  for step, batch in enumerate(found, 1):
    np.testing.assert_array_equal(batch["image"], batches[step]["image"])
    np.testing.assert_array_equal(batch["label"], batches[step]["label"])


@pytest.mark.parametrize("batch_size", [7, 64])
def test_every_view_of_every_video_is_a_row(directory, batch_size):
  spec = split(directory, "segments(views=2)|decode|resize_small(10)|three_crops")
  assert spec.ops.views == 6
  source = spec.open()
  batches = pipeline.EvalBatches(spec, source, batch_size=batch_size, rows=np.arange(64))
  rows = [batch for i in range(len(batches)) for batch in [batches[i]]]
  mask = np.concatenate([r["mask"] for r in rows]) > 0
  images, label = (np.concatenate([r[k] for r in rows])[mask] for k in ("image", "label"))
  assert label.tolist() == [int(source[i]["label"]) for i in range(10) for _ in range(6)]
  for n in (0, 10, 23):
    wanted = spec.ops(source[n // 6], np.random.default_rng(0), n % 6)["image"]
    np.testing.assert_array_equal(images[n], wanted)
