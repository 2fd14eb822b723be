"""Classes go by their names: from the data to the run, its weights files, and whatever is scored with them."""

import dataclasses

import pytest
import tensorflow_datasets as tfds

from mixer_jax import evaluators, inference, weights
from mixer_jax.errors import InputError
from mixer_jax.training import loop
from mixer_jax.workdir import directory as workdirs
from mixer_jax.workdir import provenance
from tests import runs, tfds_sets
from tests.configurations import small_config
from tests.tools import test_convert

FRUITS = ["apple", "banana", "cherry", "date"]
OTHER_ORDER = ["date", "cherry", "banana", "apple"]
TWO = ["banana", "date"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
  """Directories of data sets with the same pictures of each fruit, numbered differently."""
  return {
    name: _prepared(tmp_path_factory.mktemp(name), name, classes)
    for name, classes in (
      ("Fruits", FRUITS), ("Turned", OTHER_ORDER), ("Two", TWO), ("Nuts", ["hazel", "walnut"]),
    )
  }  # fmt: skip


def _prepared(directory, name, classes):
  features = {
    "image": tfds.features.Image(shape=(None, None, 3)),
    "label": tfds.features.ClassLabel(names=classes),
  }
  examples = [
    (i, {"image": tfds_sets.png(i, 16), "label": label}) for i, label in enumerate(_named(classes))
  ]
  return tfds_sets.prepare(directory, name, features, {"train": examples, "test": examples})


def _named(classes):
  """Returns the class of each picture."""
  known = sorted(classes)
  return [known[i % len(known)] for i in range(16)]


def _config(directory, **changes):
  config = small_config(total_steps=2, num_classes=4, **changes)
  config.data.dataset, config.data.num_examples = directory, 16
  config.evaluators.val.num_examples = 16
  config.schedule.warmup_steps = 0
  return config


@pytest.fixture(scope="module")
def run(sets, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  loop.train(_config(sets["Fruits"]), str(workdir))
  return str(workdir)


def _labels(trained, directory):
  """Returns picture -> label, as an evaluator has them of the data set's test split."""
  section = dataclasses.replace(trained.setup.options.evaluators["val"], dataset=directory)
  one = evaluators.build(trained.setup, {"val": section}, None, trained.class_names)["val"]
  assert one.source.class_names == FRUITS
  return {one.source[i]["image"]: int(one.source[i]["label"]) for i in range(16)}


@pytest.mark.parametrize("kind", ["checkpoint", "safetensors", "npz"])
def test_data_are_numbered_as_the_model(run, sets, tmp_path, kind):
  weights_file = None
  if kind != "checkpoint":
    weights_file = str(tmp_path / f"weights.{kind}")
    test_convert.run(run, weights_file)
  trained = inference.load(workdir=run, config=None, weights_file=weights_file)
  assert inference.class_names(trained) == FRUITS
  for name, classes in (("Fruits", FRUITS), ("Turned", OTHER_ORDER), ("Two", TWO)):
    numbers = [FRUITS.index(c) for c in _named(classes)]
    assert _labels(trained, sets[name]) == {
      tfds_sets.png(i, 16): number for i, number in enumerate(numbers)
    }


def test_a_new_head_has_no_names(run, tmp_path):
  test_convert.run(run, tmp_path / "new.npz", "--num_classes=7")
  assert weights.class_names(tmp_path / "new.npz") == ()


def test_other_classes_are_refused_with_both_lists(run, sets, tmp_path):
  wanted = "hazel, walnut; the model's are apple, banana, cherry, date"
  with pytest.raises(InputError, match=wanted):
    _labels(inference.load(workdir=run, config=None), sets["Nuts"])
  config = _config(sets["Nuts"])
  config.init.weights, config.init.new_head = run, False
  with pytest.raises(InputError, match=wanted):
    loop.train(config, str(tmp_path))


@pytest.mark.campaign
def test_a_kept_head_keeps_its_numbers(run, sets, tmp_path):
  """Trained on the same pictures in another order of the classes, the parameters are the same."""
  for name in ("Fruits", "Turned"):
    config = _config(sets[name])
    config.init.weights, config.init.new_head = run, False
    loop.train(config, str(tmp_path / name))
  runs.assert_same_state(*(runs.final_state(tmp_path / name, 2) for name in ("Fruits", "Turned")))
  origin = provenance.read(workdirs.path_of(str(tmp_path / "Turned")), 2)
  assert origin is not None and origin.class_names == (*FRUITS,)
