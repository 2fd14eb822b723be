"""Losses against float64 NumPy, at extreme logits too, and against torch's; their weights."""

import jax.numpy as jnp
import numpy as np
import pytest

from mixer_jax import labels, losses
from mixer_jax.errors import InputError
from tests.conftest import GOLDEN


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_losses_match_numpy(scale):
  rng = np.random.default_rng(0)
  logits = (rng.normal(size=(6, 9)) * scale).astype(np.float32)
  labels = rng.uniform(size=(6, 9)).astype(np.float32)
  x, y = logits.astype(np.float64), labels.astype(np.float64)
  log_p, log_not_p = -np.logaddexp(0, -x), -np.logaddexp(0, x)
  sigmoid = -(y * log_p + (1 - y) * log_not_p).sum(-1)
  np.testing.assert_allclose(
    losses.sigmoid_xent(jnp.asarray(logits), jnp.asarray(labels)), sigmoid, rtol=1e-5
  )
  log_softmax = (
    x
    - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
    - x.max(-1, keepdims=True)
  )
  np.testing.assert_allclose(
    losses.softmax_xent(jnp.asarray(logits), jnp.asarray(labels)),
    -(y * log_softmax).sum(-1),
    rtol=1e-5,
  )


@pytest.fixture(scope="module")
def recorded():
  return {k: jnp.asarray(v) for k, v in np.load(GOLDEN / "family/aug_mixup_losses.npz").items()}


def test_soft_and_smoothed_targets_cost_what_they_cost_in_timm(recorded):
  logits = recorded["loss/logits"]
  smoothed = labels.targets(recorded["loss/labels"], 5, 0.1)
  np.testing.assert_allclose(smoothed, recorded["loss/smoothed_target"], atol=1e-7)
  for target, name in (
    (recorded["loss/soft_target"], "soft_target_xent"),
    (smoothed, "smoothed_target_xent"),
    (smoothed, "label_smoothing_0.1"),
  ):
    got = losses.softmax_xent(logits, target).mean()
    np.testing.assert_allclose(got, recorded[f"loss/{name}"], rtol=1e-6)


W, P = (0.5, 2, 1, 1, 1.5), (3, 1, 0.25, 2, 0)


@pytest.mark.parametrize(
  ("loss", "weights", "wanted"),
  [
    ("softmax_xent", {"class_weights": W}, 2.6886631386543716),
    ("sigmoid_xent", {}, 0.9533923268222224),
    ("sigmoid_xent", {"class_weights": W}, 1.2040320323758613),
    ("sigmoid_xent", {"positive_weights": P}, 0.9368747632295028),
    ("sigmoid_xent", {"class_weights": W, "positive_weights": P}, 1.1350340506479104),
  ],
)
def test_weights_are_torchs(recorded, loss, weights, wanted):
  """Of torch 2.13, in double precision, with its means: over the batch, and of the sigmoid over classes, too."""
  function = losses.make_loss(loss, 5, **weights)
  got = function(recorded["loss/logits"], recorded["loss/soft_target"]).mean()
  np.testing.assert_allclose(got / (5 if loss == "sigmoid_xent" else 1), wanted, rtol=1e-6)


@pytest.mark.parametrize(
  ("loss", "weights", "named"),
  [
    ("softmax_xent", {"class_weights": (1, 2)}, ("class_weights", "2", "5")),
    ("sigmoid_xent", {"positive_weights": (1,) * 6}, ("positive_weights", "6", "5")),
    ("sigmoid_xent", {"class_weights": (1, 1, -3, 1, 1)}, ("class_weights", "-3")),
    ("sigmoid_xent", {"positive_weights": (1, 1, 1, 1, float("nan"))}, ("positive_weights", "nan")),
    ("softmax_xent", {"positive_weights": P}, ("positive_weights", "sigmoid_xent")),
  ],
)
def test_weights_that_cannot_be_are_named(loss, weights, named):
  with pytest.raises(InputError) as error:
    losses.make_loss(loss, 5, **weights)
  assert str(error.value).startswith(named[0])
  assert all(word in str(error.value) for word in named)
