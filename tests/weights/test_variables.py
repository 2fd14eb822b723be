"""What model parameters belong to, and a new head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer_jax import models, weights
from mixer_jax.errors import InputError
from mixer_jax.models.mixer import VARIANTS
from tests.weights import mixers


@pytest.mark.parametrize(
  ("variant", "num_classes"), [("S/32", None), ("B/16", 1000), ("H/14", 21843)]
)
def test_fields_are_those_the_model_was_built_with(variant, num_classes):
  fields = {**VARIANTS[variant], "num_classes": num_classes}
  model = models.build("mixer", **fields)
  shapes = models.abstract_variables(model, (224, 224, 4))
  assert weights.describe(shapes) == ("mixer", fields, (224, 224, 4))


def test_what_makes_it_no_mixer_is_listed():
  variables = mixers.random_variables(8, 12, **mixers.TINY)
  params = variables["params"]
  params["MixerBlock_3"] = params.pop("MixerBlock_1")
  params["head"]["kernel"] = params["head"]["kernel"].T
  with pytest.raises(InputError) as error:
    weights.describe(variables, "file.npz")
  for line in (
    "missing: MixerBlock_1/LayerNorm_0/scale (16,)",
    "not in the model: MixerBlock_3/token_mixing/Dense_1/kernel (12, 6)",
    "shape: head/kernel is (5, 16), the model's is (16, 16)",
  ):
    assert line in str(error.value)
  with pytest.raises(InputError, match=r"x\.npz holds none of Mixer's, .* it begins with conv/ker"):
    weights.describe({"params": {"conv": {"kernel": np.zeros(3)}}}, "x.npz")


def test_bfloat16_values_are_numbers():
  params = mixers.random_variables(8, 12, **mixers.TINY)
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  weights.check_match(params, params, "file.npz")
