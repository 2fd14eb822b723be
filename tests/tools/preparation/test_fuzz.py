"""Training meets damaged images of all kinds: no crash, no hang, each is skipped and counted."""

import pytest

from mixer_jax.data import decode
from mixer_jax.errors import BadRecordError
from mixer_jax.training import loop
from tests import encoded, runs
from tests.configurations import small_config
from tests.tools.preparation import preparation_sets as sets


def is_refused(data):
  try:
    decode.decode_image(data)
  except BadRecordError:
    return True
  return False


@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.campaign)])
def test_training_skips_the_images_that_cannot_be_decoded(tmp_path, capsys, count):
  """They are prepared without decoding, so that the loader meets them."""
  for name in ("train/any", "val/any"):
    (tmp_path / "in" / name).mkdir(parents=True)
  refused = 0
  for number, data in enumerate(encoded.damaged(count, seed=count)):
    (tmp_path / "in" / "train" / "any" / f"{number}.jpg").write_bytes(data)
    refused += is_refused(data)
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
  skipped = record["skipped_records"]  # of an epoch: every image once
  # A crop may not reach the damage: TurboJPEG 3 decodes no more than the crop.
  assert count / 4 < skipped <= refused < count
  assert f"skipped {skipped} records" in capsys.readouterr().out
