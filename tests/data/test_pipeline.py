"""What a batch holds is a function of (seed, step) alone; every example once an epoch."""

import pickle

import numpy as np
import pytest

from mixer_jax.data import ops, pipeline, sources
from mixer_jax.errors import InputError
from tests.tfds_sets import Numbered

SIZE = 8


def spec(num_examples, text="decode|inception_crop(area_min=50)", **changes):
  fields = dict(
    dataset="numbered", data_dir=None, split="train", num_examples=num_examples, num_classes=1000,
    ops=ops.Pipeline(text, SIZE), on_bad_record="stop",
  )  # fmt: skip
  return pipeline.SplitSpec(**{**fields, **changes})


def train_batches(num_examples=50, seed=0, batch_size=12, rows=None, total_steps=100, **changes):
  source = sources.Source("numbered train", Numbered(num_examples), None)
  rows = np.arange(batch_size) if rows is None else np.asarray(rows)
  return pipeline.TrainBatches(
    spec(num_examples, **changes),
    source,
    seed=seed,
    batch_size=batch_size,
    rows=rows,
    total_steps=total_steps,
  )


def labels(batches, steps):
  return np.concatenate([batches[s]["label"] for s in range(steps)])


def assert_same(a, b):
  for key in ("image", "label", "mask"):
    np.testing.assert_array_equal(a[key], b[key])


def test_every_example_once_an_epoch_in_ever_new_order():
  """50 examples in batches of 12: epochs end inside batches."""
  stream = labels(train_batches(), 25)  # 300 images, six epochs
  epochs = stream.reshape(6, 50)
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(50))
  assert len({tuple(e) for e in epochs}) == 6
  assert not np.array_equal(stream, labels(train_batches(seed=1), 25))
  np.testing.assert_array_equal(stream, labels(train_batches(), 25))


def test_shuffle_is_uniform():
  """Over 400 epochs each example comes first about equally often (chi-square, 19 degrees)."""
  order = pipeline.make_order(20, seed=0)
  counts = np.bincount([order[20 * epoch] for epoch in range(400)], minlength=20)
  assert ((counts - 20) ** 2 / 20).sum() < 45


def test_an_examples_randomness_belongs_to_seed_epoch_and_index():
  """The crop of an example changes with epoch and seed, and with nothing else."""
  a, b = train_batches(batch_size=12), train_batches(batch_size=10)

  def crops(batches, steps):
    found = {}
    for step in range(steps):
      for (epoch, index), image in zip(batches.indices(step), batches[step]["image"], strict=True):
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
    tuple(pipeline.example_rng(seed, epoch, index).integers(0, 2**63, 4))
    for seed in (0, 1) for epoch in range(5) for index in range(50)
  }  # fmt: skip
  assert len(draws) == 500
  assert len({d for draw in draws for d in draw}) == 2000


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_processes_split_the_same_batches(processes):
  whole = train_batches()
  parts = [train_batches(rows=r) for r in np.split(np.arange(12), processes)]
  for step in (0, 3, 9):
    together = {k: np.concatenate([p[step][k] for p in parts]) for k in ("image", "label", "mask")}
    assert_same(together, whole[step])


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_loading_is_the_same_with_any_number_of_workers(num_workers):
  batches = train_batches(total_steps=9)
  with pipeline.iterate(batches, start=4, num_workers=num_workers) as loaded:
    got = list(loaded)
  assert len(got) == 5
  for step, batch in zip(range(4, 9), got, strict=True):
    assert_same(batch, batches[step])


def test_seeking_needs_no_state_and_no_table():
  batches = train_batches(num_examples=14_000_000, total_steps=10**9)
  far = batches.indices(10**8)
  assert far == pickle.loads(pickle.dumps(batches)).indices(10**8)
  assert {epoch for epoch, _ in far} == {12 * 10**8 // 14_000_000}


@pytest.mark.parametrize(("batch_size", "padded"), [(7, 8), (50, 52), (64, 64), (1, 4)])
def test_evaluation_sees_every_example_once(batch_size, padded):
  source = sources.Source("numbered train", Numbered(50), None)
  batches = pipeline.EvalBatches(
    spec(50, "decode|resize(8)"), source, batch_size=batch_size, rows=np.arange(padded)
  )
  loaded = [batches[i] for i in range(len(batches))]
  assert all(b["image"].shape[0] == padded for b in loaded)
  real = np.concatenate([b["label"][b["mask"] > 0] for b in loaded])
  np.testing.assert_array_equal(real, np.arange(50))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_record_stops_and_is_named(num_workers):
  source = sources.Source("numbered train", Numbered(20, bad={13: b"\x89PNG nonsense"}), None)
  batches = pipeline.EvalBatches(spec(20), source, batch_size=10, rows=np.arange(10))
  with (
    pipeline.iterate(batches, num_workers=num_workers) as loaded,
    pytest.raises(InputError, match=r"bad record 13 of numbered train: .*on_bad_record=skip"),
  ):
    list(loaded)


def test_bad_records_are_skipped_and_counted_by_choice():
  source = sources.Source("numbered train", Numbered(20, bad={0: b"", 13: b"text"}), None)
  choice = spec(20, on_bad_record="skip")
  batches = pipeline.EvalBatches(choice, source, batch_size=10, rows=np.arange(10))
  loaded = [batches[0], batches[1]]
  masks = np.concatenate([b["mask"] for b in loaded])
  assert masks.sum() == 18
  assert np.flatnonzero(masks == 0).tolist() == [0, 13]
  # A masked row repeats a good one, for its neighbour's mixup.
  np.testing.assert_array_equal(loaded[0]["image"][0], loaded[0]["image"][1])


def test_labels_out_of_range_are_named():
  source = sources.Source("numbered train", Numbered(20), None)
  batches = pipeline.EvalBatches(
    spec(20, num_classes=15), source, batch_size=20, rows=np.arange(20)
  )
  with pytest.raises(
    InputError, match=r"bad record 15 of numbered train: label 15 is not in 0\.\.14"
  ):
    batches[0]
