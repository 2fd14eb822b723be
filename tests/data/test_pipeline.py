"""What a batch holds is a function of (seed, step) alone; every example once an epoch."""

import errno
import hashlib
import json
import pickle

import numpy as np
import pytest

from mixer_jax.data import pipeline, sources, synthetic
from mixer_jax.data.preprocess import Preprocess
from mixer_jax.errors import InputError
from tests.conftest import GOLDEN
from tests.data.batches import SIZE, assert_same, eval_batches, numbered, spec, train_batches
from tests.encoded import encode, smooth
from tests.tfds_sets import Numbered


def labels(batches, steps):
  return np.concatenate([batches[s]["label"] for s in range(steps)])


@pytest.mark.parametrize("batch_size", [12, 150])
def test_every_example_once_an_epoch_in_ever_new_order(batch_size):
  """50 examples in batches of 12 or 150: epochs end inside batches, and batches hold several."""
  made, steps = dict(batch_size=batch_size), 300 // batch_size
  stream = labels(train_batches(**made), steps)
  epochs = stream.reshape(6, 50)
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(50))
  assert len({tuple(e) for e in epochs}) == 6
  assert not np.array_equal(stream, labels(train_batches(**made, seed=1), steps))
  np.testing.assert_array_equal(stream, labels(train_batches(**made), steps))


def test_shuffle_is_uniform():
  """Over 400 epochs each example comes first about equally often (chi-square, 19 degrees)."""
  order = pipeline.Order(spec(20), seed=0)
  counts = np.bincount([order[20 * epoch] for epoch in range(400)], minlength=20)
  assert ((counts - 20) ** 2 / 20).sum() < 45


def test_an_examples_randomness_belongs_to_seed_epoch_and_index():
  """The crop of an example changes with epoch and seed, and with nothing else."""
  a, b = train_batches(batch_size=12), train_batches(batch_size=10)

  def crops(batches, steps):
    found = {}
    for step in range(steps):
      for (epoch, index, _), image in zip(
        batches.indices(step), batches[step]["image"], strict=True
      ):
        found[epoch, index] = image
    return found

  first, second = crops(a, 8), crops(b, 10)
  common = first.keys() & second.keys()
  assert len(common) >= 90
  for key in common:
    np.testing.assert_array_equal(first[key], second[key])
  assert sum(np.array_equal(first[0, i], first[1, i]) for i in range(40) if (1, i) in first) < 10


def test_no_two_examples_share_random_numbers():
  draws = {
    tuple(pipeline.example_rng(seed, epoch, index, copy).integers(0, 2**63, 4))
    for seed in (0, 1) for epoch in range(5) for index in range(50) for copy in range(3)
  }  # fmt: skip
  assert len(draws) == 1500
  assert len({d for draw in draws for d in draw}) == 6000


def test_repeated_augmentation_reads_what_deits_sampler_reads():
  """DeiT's four processes of one epoch, whose rows together are ours (tests/golden/family)."""
  misc = json.loads((GOLDEN / "family" / "aug_misc.json").read_text())
  recorded = misc["repeated_augmentation"][1]
  order, ranks = recorded["permutation"], recorded["per_rank"]
  rows = len(ranks) * ranks[0]["num_selected"]
  batches = train_batches(700, batch_size=rows, repeats=3, drop_remainder=True)
  batches._order = [*order, *reversed(order)]
  read = [index for _, index, _ in batches.indices(0)]
  for rank, theirs in enumerate(ranks):
    ours = np.array(read[rank :: len(ranks)], np.int64)
    assert ours[:40].tolist() == theirs["first40"]
    assert hashlib.sha256(ours.tobytes()).hexdigest() == theirs["sha256"]
  assert batches.indices(1)[:2] == [(1, order[-1], 0), (1, order[-1], 1)]


def test_copies_are_processed_anew_and_epochs_keep_their_length():
  """50 images, 12 a batch: 48 rows are an epoch, of 16 images three times."""
  batches = train_batches(repeats=3, drop_remainder=True)
  stream = labels(batches, 8).reshape(2, 16, 3)
  np.testing.assert_array_equal(stream, stream[..., :1].repeat(3, axis=-1))
  assert all(len(set(epoch)) == 16 for epoch in stream[..., 0])
  images = batches[0]["image"]
  assert not any(np.array_equal(images[i], images[i + 1]) for i in (0, 1, 3, 4))
  parts = [
    train_batches(repeats=3, drop_remainder=True, rows=r) for r in np.array_split(np.arange(12), 5)
  ]
  assert_same({k: np.concatenate([p[5][k] for p in parts]) for k in batches[5]}, batches[5])


@pytest.mark.parametrize("processes", [2, 3, 4, 8])
def test_processes_split_the_same_batches(processes):
  """50 examples and a batch of 12: neither divides by 8 processes."""
  whole = train_batches()
  parts = [train_batches(rows=r) for r in np.array_split(np.arange(12), processes)]
  for step in (0, 3, 9):
    together = {k: np.concatenate([p[step][k] for p in parts]) for k in ("image", "label", "mask")}
    assert_same(together, whole[step])


class Photos(Numbered):
  """JPEG images, each of its own size; says how often one was read."""

  reads = 0

  def __getitem__(self, i):
    self.reads += 1
    return {"image": encode(".jpg", smooth(20 + i, 40 - i)), "label": i}


@pytest.mark.parametrize("decode", ["decode", "decode(mode='pillow')"])
@pytest.mark.parametrize(
  "text",
  [
    "inception_crop(area_min=50)", "random_resized_crop", "resize_small(9)|central_crop",
    "resize_short|resize(4)|pad", "resize(8)|random_crop", "resize(8)|flip", "randaugment(3, 15)|resize(8)",
    "timm_randaugment('rand-m9-n4')|resize(8)", "color_jitter|resize(8)", "resize(8)|permute_patches(4)",
    "resize(8)|permute_pixels",
  ],
)  # fmt: skip
def test_examples_are_decoded_once_and_their_batches_stay_the_same(monkeypatch, text, decode):
  """Six epochs, of which only the first reads; no operation writes into the pixels that are kept."""
  kept, reads = six_epochs(f"{decode}|{text}")
  assert reads <= 12 + 1  # the first tells their size
  monkeypatch.setattr(sources, "KEPT_BYTES", 0)
  read, reads = six_epochs(f"{decode}|{text}")
  assert reads >= 72
  for a, b in zip(kept, read, strict=True):
    assert_same(a, b)


def six_epochs(text):
  """Returns the batches of 12 photos, and how often a photo was read for them."""
  photos = Photos(12)
  batches = train_batches(12, sources.Source("photos", photos), batch_size=8, text=text)
  return [batches[step] for step in range(9)], photos.reads


def test_pixels_that_are_kept_get_the_models_numbers_of_classes(monkeypatch):
  """And leave room for all of them again."""
  photos = Photos(3)
  source = sources.Source("photos", photos, class_names=["a", "b", "c"])
  decode = Preprocess("decode|resize(8)", (SIZE, SIZE, 3)).decode
  monkeypatch.setattr(sources, "KEPT_BYTES", 3 * 30 * 40 * 3)
  assert [int(source.decoded(i, decode)["label"]) for i in range(3)] == [0, 1, 2]
  source.number_classes_as(["c", "b", "a"])
  assert [int(source.decoded(i % 3, decode)["label"]) for i in range(6)] == [2, 1, 0] * 2
  assert photos.reads == 6


@pytest.mark.parametrize(("batch_size", "padded"), [(7, 8), (50, 52), (64, 64), (1, 4)])
def test_evaluation_sees_every_example_once(batch_size, padded):
  batches = eval_batches(numbered(50), batch_size, padded, text="decode|resize(8)")
  loaded = [batches[i] for i in range(len(batches))]
  assert all(b["image"].shape[0] == padded for b in loaded)
  real = np.concatenate([b["label"][b["mask"] > 0] for b in loaded])
  np.testing.assert_array_equal(real, np.arange(50))


def test_bad_records_are_skipped_and_counted_by_choice():
  batches = eval_batches(numbered(20, {0: b"", 13: b"text"}), 10, on_bad_record="skip")
  loaded = [batches[0], batches[1]]
  masks = np.concatenate([b["mask"] for b in loaded])
  assert masks.sum() == 18
  assert np.flatnonzero(masks == 0).tolist() == [0, 13]
  # A masked row repeats a good one, for its neighbour's mixup.
  np.testing.assert_array_equal(loaded[0]["image"][0], loaded[0]["image"][1])


def test_subsets_are_random_nested_and_independent_of_the_run():
  def subset(percent, seed=0, subset_seed=0):
    batches = train_batches(
      num_examples=200, batch_size=10, seed=seed, subset_percent=percent, subset_seed=subset_seed
    )
    count = 2 * percent // 10
    first, second = (
      {int(i) for s in steps for i in batches[s]["label"]}
      for steps in (range(count), range(count, 2 * count))
    )
    assert first == second  # two epochs of the subset
    assert len(first) == 2 * percent
    return first

  ten, thirty = subset(10), subset(30)
  assert ten < thirty
  assert subset(10, seed=5) == ten
  assert subset(10, subset_seed=1) != ten
  assert not ten <= set(range(40))


def multi_label(labels, **changes):
  class Lists(Numbered):
    def __getitem__(self, i):
      return {**super().__getitem__(i), "label": np.array(labels[i], np.int64)}

  source = sources.Source("lists train", Lists(len(labels)))
  return eval_batches(source, 4, num_classes=9, **changes)


def test_several_labels_are_padded():
  batch = multi_label([[3], [1, 8, 2], [], [5, 5]], labels_per_image=3)[0]
  np.testing.assert_array_equal(batch["label"], [[3, -1, -1], [1, 8, 2], [-1, -1, -1], [5, 5, -1]])
  assert batch["mask"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
  ("labels", "most", "message"),
  [
    ([[1], [2, 3]], 1, "has 2 labels; labels_per_image says at most 1"),
    ([[1], []], 1, "has no label"),
    ([1, 9], 1, r"label 9 is not in 0\.\.8"),
    ([[1], [2, 9]], 2, r"label 9 is not in 0\.\.8"),
  ],
)
def test_labels_that_do_not_fit_are_named(labels, most, message):
  with pytest.raises(InputError, match=f"bad record 1 of lists train: {message}"):
    multi_label(labels, labels_per_image=most)[0]


def test_a_data_set_of_three_billion_is_permuted_without_a_table():
  """Far away in the run, a batch holds indices of the whole range; there is no state to get there."""
  batches = train_batches(num_examples=3 * 10**9, batch_size=4096, total_steps=10**9)
  far = np.array(batches.indices(10**7))
  assert set(far[:, 0]) == {13}
  np.testing.assert_array_equal(pickle.loads(pickle.dumps(batches)).indices(10**7), far)
  assert len(np.unique(far[:, 1])) == 4096
  counts, _ = np.histogram(far[:, 1], bins=8, range=(0, 3 * 10**9))
  assert ((counts - 512) ** 2 / 512).sum() < 24.3  # exceeded with probability 0.001


def test_synthetic_photos_decode_and_belong_to_their_index():
  choice = dict(dataset="synthetic", text="decode|resize(8)", labels_per_image=3)
  source = spec(10**9, **choice).open()
  assert (len(source), source.num_classes) == (10**9, 1000)
  batches = train_batches(10**9, source, batch_size=4, **choice)
  assert_same(batches[3], pickle.loads(pickle.dumps(batches))[3])
  assert np.any(batches[3]["label"] != batches[4]["label"])
  assert 60_000 < np.mean([len(source[i]["image"]) for i in range(8)]) < 90_000
  video = synthetic.open_source(3, 10, 1, videos=True)[2]["image"]
  assert (len(video), video[0]) == (64, source[2]["image"])


@pytest.mark.parametrize(
  "error",
  [
    OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale file handle"),
    RuntimeError("open() failed: Too many open files; opening /data/x"),
  ],
)  # fmt: skip
def test_trouble_with_the_storage_is_no_bad_record(error):
  class Failing(Numbered):
    def __getitem__(self, i):
      raise error

  source = sources.Source("numbered train", Failing(20))
  for read in (lambda: eval_batches(source, 20, on_bad_record="skip")[0], source.fingerprint):
    with pytest.raises(InputError, match="numbered train cannot be read, for the storage fails"):
      read()
