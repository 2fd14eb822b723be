"""Few-shot on a real data set: only the drawn images are computed, the result is that of all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer_jax import schema
from mixer_jax.data import sources
from mixer_jax.errors import BadRecordError, InputError
from mixer_jax.evaluators import fewshot, fewshot_task
from tests import tfds_sets
from tests.inference.conftest import make_trained


def make(trained, **section):
  return fewshot_task.Fewshot(trained.setup, schema.Fewshot(**section), "")


def _features(trained, split, source):
  """Pre-logits and labels of all images, by the model itself and without batches."""
  examples = [split.ops(source[i], np.random.default_rng(0)) for i in range(len(source))]
  images = trained.setup.normalize(jnp.stack([e["image"] for e in examples]))
  headless = trained.setup.model.clone(num_classes=None)
  features = jax.jit(headless.apply)(trained.variables, images)
  return np.asarray(features), np.array([e["label"] for e in examples])


@pytest.mark.parametrize("num_devices", [1, 4])
def test_the_accuracies_are_those_of_all_features(num_devices):
  trained = make_trained(num_devices)
  # Not a multiple of the drawn images, or of the test images.
  task = make(trained, batch_size=250)
  train = sources.open_source(dataset="digits", data_dir=None, split="train", label=None)
  x, y = _features(trained, task.train[0], train)
  x_test, y_test = _features(trained, *task.test)
  values = dict(task(trained.variables, 0))
  drawn = fewshot.draw(y, num_classes=10)
  assert len(task.drawn.rows) < len(train)
  for (seed, shots), chosen in drawn.chosen.items():
    predictions = fewshot.fit(x[chosen], y[chosen], num_classes=10).predict(x_test)
    # An image that is a close call may fall to the other side: rounding depends on the batch.
    assert abs(values[f"{shots}shot_seed{seed}"] - np.mean(predictions == y_test)) <= 1.01 / 360


def test_bad_training_records_stop_or_are_never_drawn(tmp_path):
  directory = tfds_sets.damaged(tmp_path)
  drawn = make(make_trained(), dataset=directory, test_split="train").drawn
  assert drawn.rows.tolist() == list(range(40))

  class Unreadable(tfds_sets.Numbered):
    name = "numbered"

    def __getitem__(self, i):
      if i == 2:
        raise BadRecordError("damaged")
      return super().__getitem__(i)

  assert fewshot_task.read_labels(Unreadable(4), on_bad_record="skip").tolist() == [0, 1, -1, 3]
  with pytest.raises(InputError, match="bad record 2 of numbered"):
    fewshot_task.read_labels(Unreadable(4), on_bad_record="stop")


def test_several_labels_are_refused():
  class Several(tfds_sets.Numbered):
    name = "several"

    def __getitem__(self, i):
      return super().__getitem__(i) | {"label": np.array([i, -1], np.int32)}

  with pytest.raises(InputError, match="several has several"):
    fewshot_task.read_labels(Several(4), on_bad_record="stop")
