"""Released checkpoint files of both layouts, and files that are none."""

import io
import pickle

import numpy as np
import pytest
from flax import traverse_util

from mixer_jax import models, weights
from mixer_jax.errors import InputError
from tests.conftest import GOLDEN, subtree

FILES = [
  "mixer_tiny_checkpoint",
  "mixer_tiny_checkpoint_prelinen",
  "mixer_tiny_checkpoint_prelinen_opt",
]


@pytest.mark.parametrize("name", FILES)
def test_checkpoints_load_bit_exactly(mixer_tiny, name):
  have = traverse_util.flatten_dict(weights.load_npz(GOLDEN / f"{name}.npz"), sep="/")
  want = traverse_util.flatten_dict(subtree(mixer_tiny, "params/"), sep="/")
  assert have.keys() == want.keys()
  for key in want:
    np.testing.assert_array_equal(have[key], want[key], err_msg=key)


def test_loaded_weights_give_the_authors_logits(mixer_tiny):
  params = weights.load_npz(GOLDEN / "mixer_tiny_checkpoint_prelinen_opt.npz")
  model = models.build(
    "mixer", num_classes=5, patch_size=4, num_blocks=2, hidden_dim=16, tokens_mlp_dim=12,
    channels_mlp_dim=24,
  )  # fmt: skip
  logits = model.apply({"params": params}, mixer_tiny["image"])
  np.testing.assert_allclose(logits, mixer_tiny["logits"], atol=2e-6, rtol=0)


def test_mismatches_are_listed_all():
  params = weights.load_npz(GOLDEN / "mixer_tiny_checkpoint.npz")
  other = dict(
    params, extra={"kernel": np.zeros(3)}, head={"kernel": np.zeros((16, 7)), "bias": np.zeros(7)}
  )
  del other["stem"]
  with pytest.raises(InputError) as error:
    weights.check_match(other, params, "file.npz")
  message = str(error.value)
  for line in (
    "missing: stem/bias (16,)", "missing: stem/kernel (4, 4, 3, 16)",
    "not in the model: extra/kernel (3,)", "shape: head/kernel is (16, 7), the model's is (16, 5)",
    "shape: head/bias is (7,), the model's is (5,)",
  ):  # fmt: skip
    assert line in message


def _npy():
  buffer = io.BytesIO()
  np.save(buffer, np.zeros(3))
  return buffer.getvalue()


def _object_array():
  buffer = io.BytesIO()
  np.savez(buffer, **{"head/kernel": np.array([{"a": 1}], dtype=object)})
  return buffer.getvalue()


@pytest.mark.parametrize(
  "content",
  [
    b"", b"<!DOCTYPE html><html></html>", (GOLDEN / "mixer_tiny_checkpoint.npz").read_bytes()[:9000],
    pickle.dumps({"a": 1}), _object_array(),
  ],
  ids=["empty", "html", "truncated", "pickle", "object array"],
)  # fmt: skip
def test_files_that_are_no_checkpoint_are_refused(tmp_path, content):
  path = tmp_path / "weights.npz"
  path.write_bytes(content)
  with pytest.raises(InputError, match=r"weights\.npz is not a whole \.npz file"):
    weights.load_npz(path)


def test_values_that_are_no_finite_numbers_are_listed():
  params = weights.load_npz(GOLDEN / "mixer_tiny_checkpoint.npz")
  wrong = {
    **params,
    "head": {"kernel": params["head"]["kernel"] * np.nan, "bias": np.zeros(5, int)},
  }
  with pytest.raises(
    InputError, match=r"(?s)values: head/bias has int64.*values: head/kernel has float32"
  ):
    weights.check_match(wrong, params, "file.npz")


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(InputError, match=r"nowhere\.npz does not exist"):
    weights.load_npz(tmp_path / "nowhere.npz")
