"""Several labels an image against the authors' recorded evaluation, and single ones against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer_jax import labels, losses
from tests.conftest import GOLDEN


@pytest.fixture(scope="module")
def golden():
  return dict(np.load(GOLDEN / "real_labels.npz"))


def test_multi_hot_labels_are_the_authors(golden):
  for ids, wanted in zip(golden["label_lists_padded_minus1"], golden["labels"], strict=True):
    np.testing.assert_array_equal(labels.multi_hot(jnp.asarray(ids), 10), wanted)


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_real_accuracy_and_losses_are_the_authors(golden, name):
  score = jax.jit(lambda *args: labels.score(*args, losses.LOSSES[name]))
  right = seen = total = 0.0
  for i in range(2):
    mask = jnp.asarray(golden["mask"][i], jnp.float32)
    rows = score(golden["logits"][i], golden["label_lists_padded_minus1"][i], mask)
    counted = np.asarray(rows["mask"]) > 0
    assert counted.sum() == golden["batch_nseen"][i]
    assert np.asarray(rows["top1"])[counted].sum() == golden["batch_ncorrect"][i]
    batch_loss = np.asarray(rows["loss"], np.float64)[counted].sum()
    np.testing.assert_allclose(batch_loss, golden[f"{name}/batch_loss_sum"][i], rtol=1e-6)
    right += np.asarray(rows["top1"])[counted].sum()
    seen, total = seen + counted.sum(), total + batch_loss
  np.testing.assert_allclose(right / seen, golden["prec@1"], rtol=1e-6)
  np.testing.assert_allclose(total / seen, golden[f"{name}/loss"], rtol=1e-6)


@pytest.mark.parametrize("several", [False, True])
def test_places_match_a_stable_sort(several):
  """Logits with many ties, against NumPy's stable sort; NaN comes last."""
  rng = np.random.default_rng(0)
  logits = rng.integers(0, 4, (64, 12)).astype(np.float32)
  logits[5, 3] = np.nan
  ids = rng.integers(-1 if several else 0, 12, (64, 3 if several else 1)).astype(np.int32)
  order = np.argsort(-logits, axis=1, kind="stable")  # NumPy, too, puts NaN last
  rows = labels.score(
    jnp.asarray(logits),
    jnp.asarray(ids if several else ids[:, 0]),
    jnp.ones(64),
    losses.softmax_xent,
  )
  for i in range(64):
    wanted = set(ids[i].tolist()) - {-1}
    assert bool(rows["mask"][i]) == bool(wanted)
    assert bool(rows["top1"][i]) == (int(order[i, 0]) in wanted)
    assert bool(rows["top5"][i]) == bool(wanted & set(order[i, :5].tolist()))
