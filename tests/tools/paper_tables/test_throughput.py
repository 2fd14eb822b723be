"""The sweep over batch sizes takes the best, and ends where it gets slower or memory ends."""

import itertools

import jax
import pytest

from mixer_jax.errors import InputError
from mixer_jax.tools import throughput
from mixer_jax.training import experiment
from tests.configurations import small_config


def sweep(monkeypatch, seconds):
  """Runs a sweep in which batch sizes 8, 16, … take these seconds; an error is raised instead."""
  times = iter(seconds)

  def fake(call):
    del call
    value = next(times)
    if isinstance(value, Exception):
      raise value
    return value

  monkeypatch.setattr(throughput, "_seconds", fake)
  monkeypatch.setattr(throughput, "num_cores", lambda _: 2)
  return throughput.measure(small_config())


def test_the_best_batch_size_counts_per_core(monkeypatch):
  # 8, 16, 8 and 12.8 images a second on two cores; after two slower sizes no other is tried.
  result = sweep(monkeypatch, [1.0, 1.0, 4.0, 5.0])
  assert result == throughput.Throughput(8.0, 16, {8: 4.0, 16: 8.0, 32: 4.0, 64: 6.4})


def test_the_sweep_ends_where_memory_does(monkeypatch):
  full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
  result = sweep(monkeypatch, [1.0, 1.0, full])
  assert (result.batch_size, sorted(result.by_batch_size)) == (16, [8, 16])
  with pytest.raises(InputError, match="does not fit"):
    sweep(monkeypatch, [full])
  with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
    sweep(monkeypatch, [1.0, jax.errors.JaxRuntimeError("INTERNAL: something else")])


def test_batches_are_those_that_the_parts_divide(monkeypatch):
  monkeypatch.setattr(
    throughput, "_seconds", lambda call: jax.block_until_ready(call()) is not None
  )
  config = small_config(grad_accum_steps=3)
  with pytest.raises(InputError, match=r"batch size 8 .* grad_accum_steps=3 .* multiples of 3"):
    throughput.measure(config, [6, 8], "training")
  assert list(throughput.measure(config, [6], "training").by_batch_size) == [6]
  result = throughput.measure(config, [8])  # inference has no parts
  assert list(result.by_batch_size) == [8] and result.images_per_sec_per_core > 0


def test_a_call_is_timed_after_its_compilation(monkeypatch):
  """By a clock that the calls themselves move: the first takes 100 s, later ones 0.1 s."""
  clock, cost = [0.0], itertools.chain([100.0], itertools.repeat(0.1))
  monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock[0])

  def call():
    clock[0] += next(cost)

  assert throughput._seconds(call) == pytest.approx(0.1)


def test_what_is_timed_in_training_is_the_experiments_step():
  """Call by call it returns the metrics of a state that is handed on."""
  config = small_config()
  exp = experiment.build(config)
  batch, call = throughput.make_batch(exp, 4), throughput.make_train_call(exp)
  state = exp.init_state()
  for _ in range(3):
    state, metrics = exp.train_step(state, batch)
    assert jax.device_get(call(batch)) == jax.device_get(metrics)


def test_so_many_workers_feed_a_device(monkeypatch):
  monkeypatch.setattr(throughput, "_INPUT_SECS", 0.1)
  training = throughput.Throughput(100.0, 8, {8: 100.0})
  config = small_config()
  config.mesh.data = 1000  # devices of a cluster
  found = throughput.measure_input(config, training)
  fed = 100.0 * throughput.num_cores(jax.devices()[0])
  assert found.workers_per_device == pytest.approx(fed / found.images_per_sec_per_worker)
  assert f"{found.workers_per_device:.2f} workers feed" in found.render("images")
