"""What model parameters belong to, and a new head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mixer_jax
from mixer_jax import models, weights
from mixer_jax.errors import InputError
from mixer_jax.models.mixer import VARIANTS
from tests import families
from tests.marks import long
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
  params["pre_head"] = params.pop("pre_head_layer_norm")
  params["head"]["kernel"] = params["head"]["kernel"].T
  with pytest.raises(InputError) as error:
    weights.describe(variables, "file.npz")
  for line in (
    "missing: pre_head_layer_norm/scale (16,)",
    "not in the model: pre_head/bias (16,)",
    "shape: head/kernel is (5, 16), the model's is (16, 16)",
  ):
    assert line in str(error.value)
  with pytest.raises(InputError, match=r"x\.npz holds none of Mixer's, .* it begins with conv/ker"):
    weights.describe({"params": {"conv": {"kernel": np.zeros(3)}}}, "x.npz")


PAIRS = [
  ("mixer", "S/32", "S/16"), ("res_mlp", "12", "24"), ("conv_mlp", "S", "M"), ("cycle_mlp", "B2", "B1"),
  ("s2_mlp", "wide", "deep"), ("smlp_net", "T*", "T"), ("spach", "XXS/conv", "XS/conv"), ("hire_mlp", "T", "S"),
  ("ms_mlp", "T", "S"), ("vit", "B/32", "B/16"), ("resnet", "R50x1", "R101x1"),
]  # fmt: skip


@pytest.mark.parametrize(
  ("family", "have", "want"),
  [row if row[0] == "cycle_mlp" else long(*row) for row in PAIRS],
)
def test_another_variant_is_named_in_a_line(family, have, want):
  file, wanted = (
    models.abstract_variables(models.build(family, variant=v), (224, 224, 3)) for v in (have, want)
  )
  with pytest.raises(InputError) as error:
    weights.check_match(file, wanted, "x.npz")
  first, *others = str(error.value).splitlines()
  for text in ("x.npz", f"a {models.FAMILIES[family].TITLE} {have}'s", f"the model is a {want}"):
    assert text in first
  assert len(others) <= 11


def test_other_sizes_are_named_in_a_line():
  have = mixers.random_variables(8, 12, **mixers.TINY)
  want = mixers.random_variables(8, 12, **{**mixers.TINY, "num_blocks": 3, "num_classes": 7})
  line = r"they are a Mixer's with num_blocks=2 num_classes=5, the model has num_blocks=3 num_classes=7:\n"
  with pytest.raises(InputError, match=line):
    weights.check_match(have, want, "x.npz")
  want = mixers.random_variables(12, 12, **mixers.TINY)
  with pytest.raises(InputError, match=r"they are for images .*; mixer_jax\.weights\.resize makes"):
    weights.check_match(mixers.random_variables(8, 8, **mixers.TINY), want, "x.npz")


def test_what_shapes_do_not_tell_is_said(tmp_path, capsys):
  """Parameters of CycleMLP T tell that its step is 7, those of no published size do not."""
  fields = dict(num_blocks=(1, 1, 1, 1), widths=(4, 4, 4, 4), mlp_ratios=(1, 1, 1, 1), step=7)
  _, variables = families.random_variables("cycle_mlp", 32, 32, **fields)
  weights.save_npz(tmp_path / "x.npz", variables)
  assert mixer_jax.load(tmp_path / "x.npz").module.step == 3
  assert "x.npz: parameters do not tell gelu='erf' step=3" in capsys.readouterr().err
  assert mixer_jax.load(tmp_path / "x.npz", step=7, gelu="erf").module.step == 7
  assert capsys.readouterr().err == ""


def test_bfloat16_values_are_numbers():
  params = mixers.random_variables(8, 12, **mixers.TINY)
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  weights.check_match(params, params, "file.npz")
