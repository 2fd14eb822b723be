"""What model parameters belong to, and a new head."""

import numpy as np
import pytest

import mixer_jax
from mixer_jax import models, weights
from mixer_jax.errors import InputError
from tests import families
from tests.marks import long
from tests.weights import mixers


def test_what_is_no_model_is_named():
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
