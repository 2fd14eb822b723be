"""Gradients of the global batch on 1 and 4 devices, whole and in parts, of whole and of cut parameters."""

import functools

import jax
import pytest

from tests.configurations import random_variables
from tests.marks import long
from tests.training.steps import MESHES, SGD, assert_same_gradients, batches, build, flat, put


@functools.cache
def gradients(num_devices, fsdp, accum, masked):
  """Returns the gradients of a step from random parameters, by momentum SGD's trace."""
  exp = build(num_devices, fsdp, SGD, grad_accum_steps=accum)
  state = exp.first_state(jax.device_put(random_variables(exp), exp.shardings.variables))
  state, _ = exp.train_step(state, put(exp, next(batches(1, masked=masked))))
  return flat(state.opt_state[1].trace)


@pytest.mark.parametrize("masked", [long(()), (0, 5, 15)])
@pytest.mark.parametrize(("num_devices", "fsdp", "accum"), MESHES)
def test_gradients_of_one_step_are_the_same(num_devices, fsdp, accum, masked):
  assert_same_gradients(gradients(num_devices, fsdp, accum, masked), gradients(1, 1, 1, masked))


def test_accumulation_reduces_over_devices_once_and_never_gathers_the_batch():
  exp = build(4, grad_accum_steps=4)
  text = exp.train_step.lower(exp.abstract_state, next(batches(1))).compile().as_text()
  body = text[: text.index("ENTRY")]
  loops = [
    c for c in body.split("\n\n") if "while" in c.split("\n")[0] or "region" in c.split("\n")[0]
  ]
  assert loops, "the accumulation must be a loop for this test to see into it"
  collectives = ("all-reduce(", "all-gather(", "all-to-all(", "collective-permute(")
  assert not [c for c in collectives if any(c in loop for loop in loops)]
  assert "all-gather(" not in text and "all-to-all(" not in text
