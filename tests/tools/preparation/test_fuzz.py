"""Training meets damaged images of all kinds: no crash, no hang, each is skipped and counted."""

import numpy as np
import pytest

from mixer_jax.training import loop
from tests import runs, tfds_sets
from tests.configurations import small_config
from tests.tools.preparation import preparation_sets as sets

PHOTOS = ("photo_china.jpg", "extra_cmyk.jpg", "extra_gray.jpg", "extra_exif6.jpg")
KINDS = 6


def damaged(number):
  """Returns (bytes, whether they can be an image at all), by kind: number % KINDS."""
  rng = np.random.default_rng(number)
  whole = (sets.GOLDEN / PHOTOS[number // KINDS % len(PHOTOS)]).read_bytes()
  if number // KINDS % 2:
    whole = tfds_sets.png(number, 40)
  kind = number % KINDS
  if kind == 0:  # truncated
    return whole[: int(rng.integers(0, len(whole) - 20))], False
  if kind == 1:  # bits flipped anywhere
    data = bytearray(whole)
    for at in rng.integers(0, len(data), rng.integers(1, 20)):
      data[at] ^= 1 << int(rng.integers(8))
    return bytes(data), True
  if kind == 2:  # bytes of another kind, with an image's first bytes or not
    start = (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\1\0WEBPVP8 ", b"GIF89a", b"BM")
    return start[number // KINDS % len(start)] + rng.bytes(int(rng.integers(0, 3000))), False
  if kind == 3:  # claims to be huge
    side = int(rng.integers(20_000, 65_000))
    return (sets.jpeg_bomb, sets.png_bomb)[number // KINDS % 2](side), False
  if kind == 4:  # the header damaged
    data = bytearray(whole)
    data[int(rng.integers(0, 40))] = int(rng.integers(256))
    return bytes(data), True
  swapped = bytearray(whole)  # a piece moved
  a, b, size = (int(n) for n in rng.integers(0, len(whole) // 2, 3))
  swapped[a : a + size] = whole[b : b + size]
  return bytes(swapped), True


def check_training(tmp_path, capsys, count):
  """They are prepared without decoding, so that the loader meets them."""
  for name in ("train/any", "val/any"):
    (tmp_path / "in" / name).mkdir(parents=True)
  hopeless = 0
  for number in range(count):
    data, possible = damaged(number)
    (tmp_path / "in" / "train" / "any" / f"{number}.jpg").write_bytes(data)
    hopeless += not possible
  (tmp_path / "in" / "val" / "any" / "good.jpg").write_bytes(sets.jpeg(0))
  prepared = sets.prepare(sets.plan(tmp_path / "in"), tmp_path / "out", verify=False)
  assert prepared.splits["train"] == count
  config = small_config(total_steps=count // 10)
  config.batch_size, config.data.num_workers = 10, 1
  config.data.dataset, config.data.num_examples = str(prepared.directory), count
  config.data.on_bad_record, config.data.ops = "skip", "decode|inception_crop"
  config.evaluators.val.split, config.evaluators.val.num_examples = "val", 1
  config.log.every_steps = config.total_steps
  config.evaluators.val.every_steps = config.checkpoint.every_steps = config.total_steps
  loop.train(config, str(tmp_path / "run"))
  (record,) = [r for r in runs.records(tmp_path / "run") if "loss" in r]
  assert hopeless <= record["skipped_records"] < count  # an epoch: every image once
  assert f"skipped {record['skipped_records']} records" in capsys.readouterr().out
  print(f"{count} damaged images trained on: {record['skipped_records']} skipped")


def test_training_meets_damaged_images(tmp_path, capsys):
  check_training(tmp_path, capsys, 150)


@pytest.mark.campaign
def test_training_meets_1000_damaged_images(tmp_path, capsys):
  check_training(tmp_path, capsys, 1000)
