"""Values that no key should have: an InputError when the run is built, or an experiment."""

import random

import jax
import pytest

from mixer_jax import schema
from mixer_jax.errors import InputError
from mixer_jax.training import experiment
from tests import marks
from tests.configurations import small_config

VALUES = [
  0, 1, -1, 2, 3, 7, 0.5, -0.5, 1e-30, 1e-38, 1e-45, 1 - 1e-8, 1 - 1e-30, 1e30, 1e38, float("inf"), float("nan"), 10**400, True, None,
  "", "x", "\0", "1x1", "a" * 300, (), (0,), (1, 2), (1e38,) * 10, (10**400,) * 10, [1], {"a": 1}, b"x", "constant", "(.*a)*b=1",
  (".*=1",), (".*=1e39",), ("(a|a)*=1",),
]  # fmt: skip


def keys(fields, above=()):
  for key, field in fields.items():
    yield from keys(field, (*above, key)) if hasattr(field, "items") else [((*above, key), field)]


def is_built(key, value):
  config = small_config().to_dict()
  section = config
  for name in key[:-1]:
    section = section[name]
  section[key[-1]] = value
  try:
    experiment.build(config, experiment.make_mesh(config, jax.devices()[:1]))
  except InputError:
    return False
  return True


@pytest.mark.parametrize(("count", "seed"), [(20, 0), marks.long(3000, 1)])
def test_values_are_refused_or_make_an_experiment(count, seed, capsys):
  known, rng, faults, built = (list(keys(schema.tree(small_config()))), random.Random(seed), [], 0)
  for _ in range(count):
    key, field = rng.choice(known)
    number = field.limits is not None and rng.random() < 0.8
    value = rng.choice([v for v in VALUES if isinstance(v, int | float)] if number else VALUES)
    try:
      built += is_built(key, value)
    except Exception as e:
      faults.append((".".join(key), repr(value)[:80], repr(e)[:200]))
  with capsys.disabled():
    print(f"\nconfiguration: {count} values, {built} built, {len(faults)} faults, seed {seed}")
  assert not faults and built


@pytest.mark.parametrize(
  ("key", "value"),
  [("optimizer.b1", 1 - 1e-8), ("ema_decay", 1 - 1e-30), ("normalize", (10**400,) * 6), ("data.subset_percent", 1e-30)],
)  # fmt: skip
def test_numbers_that_are_none_in_float32_are_refused(key, value):
  assert not is_built(tuple(key.split(".")), value)
