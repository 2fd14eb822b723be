"""Evaluation by several views: the mean of their probabilities, against NumPy in float64."""

import jax
import numpy as np
import pytest

from mixer_jax import evaluators
from mixer_jax.evaluators import rows, views
from mixer_jax.training import experiment
from tests.configurations import small_config

EXAMPLES, VIEWS, CLASSES = 40, 3, 7


def probabilities(loss):
  """Returns float32 probabilities (examples · views, classes)."""
  x = np.random.default_rng(0).normal(scale=2, size=(EXAMPLES * VIEWS, CLASSES))
  p = 1 / (1 + np.exp(-x)) if loss == "sigmoid_xent" else np.exp(x) / np.exp(x).sum(1)[:, None]
  return p.astype(np.float32)


def parts(p, label, size, missing=()):
  """Yields what `rows.fetched` does, in batches of `size` rows, without the rows `missing`."""
  for start in range(0, len(p), size):
    index = np.setdiff1d(np.arange(start, min(start + size, len(p))), missing)
    yield {"probabilities": p[index], "label": label[index // VIEWS], "index": index}


@pytest.mark.parametrize("loss", ["softmax_xent", "sigmoid_xent"])
def test_probabilities_are_averaged_over_views(loss):
  p, label = probabilities(loss), np.arange(EXAMPLES, dtype=np.int32) % CLASSES
  given = dict(num_examples=EXAMPLES, views=VIEWS, loss=loss)
  got = views.score(parts(p, label, 16), **given)
  mean = p.astype(np.float64).reshape(EXAMPLES, VIEWS, CLASSES).mean(1)
  order, own = np.argsort(-mean, axis=1), np.arange(CLASSES) == label[:, None]
  np.testing.assert_array_equal(got["top1"], order[:, 0] == label)
  np.testing.assert_array_equal(got["top5"], (order[:, :5] == label[:, None]).any(1))
  others = 1 if loss == "softmax_xent" else 1 - mean
  np.testing.assert_allclose(got["loss"], -np.log(np.where(own, mean, others)).sum(1), rtol=1e-5)
  np.testing.assert_array_equal(got["index"], np.arange(EXAMPLES))
  for size, missing in ((7, []), (1000, []), (16, [5, 99])):
    again = views.score(parts(p, label, size, missing), **given)
    kept = np.setdiff1d(np.arange(EXAMPLES), np.array(missing, int) // VIEWS)
    for key, value in again.items():
      np.testing.assert_array_equal(value, got[key][kept])


def test_an_evaluator_averages_the_views_of_its_operations():
  config = small_config()
  del config.evaluators["pictures"]
  config.evaluators.val.ops = "decode|resize_small(20)|three_crops"
  setup = experiment.build_model(config)
  variables = jax.tree.map(
    lambda x: x + 0.3 * np.sin(np.arange(x.size)).reshape(x.shape), setup.init_variables()
  )
  val = evaluators.build(setup, setup.options.evaluators, None)["val"]
  values, step = dict(val(variables, 0)), setup.make_probabilities_step()
  batches = rows.device_batches(setup, val.split, val.source, val._section)
  each = rows.collect(lambda b: step(variables, b), batches, batch_size=val._section.batch_size)
  p = each["probabilities"].astype(np.float64).reshape(360, 3, -1)
  assert values["count"] == 360
  assert values["top1"] == np.mean(p.mean(1).argmax(1) == each["label"][::3])
  assert p.std(1).max() > 1e-3
