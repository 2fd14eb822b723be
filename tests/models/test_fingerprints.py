"""Every published variant at full size, filled by a rule, against the logits that the reference gives for it.

The rule of the data's README makes weights and image from integers, so the data hold a few numbers for each variant. The
first variant of a family is taken in the normal run, the others by `make campaign`.
"""

import gzip
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer_jax import models, weights
from mixer_jax.weights import torch_layout
from tests.conftest import GOLDEN
from tests.marks import long

FINGERPRINTS = json.loads((GOLDEN / "family/fingerprints.json").read_text())
TABLES = json.loads(gzip.decompress((GOLDEN / "family/param_tables.json.gz").read_bytes()))
SIZES = {"tiny": "T", "small": "S", "base": "B", "large": "L"}
PREFIXES = {
  "convmlp_": "conv_mlp", "cyclemlp_": "cycle_mlp", "s2mlp_": "s2_mlp", "hire_mlp_": "hire_mlp",
  "ms_mlp_": "ms_mlp", "smlpnet_": "smlp_net", "spach_": "spach",
}  # fmt: skip


_CIRCULANT = dict(token_mixing="circulant", channel_groups=8)
CIRCULANT = {
  "ccs_mixer_b16_g8": ("mixer", dict(variant="B/16", gelu="erf", **_CIRCULANT)),
  "ccs_resmlp_36_g8": ("res_mlp", dict(variant="36", **_CIRCULANT)),
}


def model_of(recorded):
  """Returns (family, its fields) of a recorded name; None if no published variant is meant."""
  prefix = next((p for p in PREFIXES if recorded.startswith(p)), None)
  if prefix is None or "jittor" in recorded:
    return CIRCULANT.get(recorded)
  family, size = PREFIXES[prefix], recorded.removeprefix(prefix)
  if family == "spach":  # "ms_s_patch4_224_hybrid_plus" is MS-S+/hybrid
    size, kind = re.split(r"_patch\d+_224_", size)
    size, kind = size.upper().replace("_", "-"), kind.replace("_", "-")
    plus = kind.endswith("-plus")
    return family, dict(variant=f"{size}{'+' * plus}/{kind.removesuffix('-plus')}")
  return family, dict(variant=size if family == "s2_mlp" else SIZES.get(size, size.upper()))


def _cases():
  found = {name: model for name in TABLES if (model := model_of(name))}
  families = {family for family, _ in CIRCULANT.values()} | {
    "ms_mlp"
  }  # which takes long to compile
  for name, (family, fields) in sorted(found.items(), key=lambda x: TABLES[x[0]]["params"]):
    if family in models.FAMILIES:
      case = (name, family, fields)
      yield long(*case) if family in families else case
      families.add(family)


def sines(number, flat):
  """Returns sin(((k + 1)·(k + 3q + 7)) mod 65521) of entry q at the flat positions k."""
  return np.sin((flat + 1) * (flat + 3 * number + 7) % 65521)


def fill(recorded):
  """Returns torch's state by the rule. What blocks share is listed below each, and has the values of the last name."""
  gain, filled, last = FINGERPRINTS[recorded]["weight_gain"], {}, {}
  for number, (name, shape, _) in enumerate(TABLES[recorded]["state"]):
    z = sines(number, np.arange(np.prod(shape, dtype=np.int64))).reshape(shape)
    filled[name] = _values(name, z, gain).astype(np.float32)
    last[_whose(name, recorded)] = filled[name]
  whole = {name: last[_whose(name, recorded)] for name in filled}
  if recorded.startswith("ccs_resmlp"):  # which timm keeps as (1, 1, c)
    return {k: v[None, None] if k.endswith(("alpha", "beta")) else v for k, v in whole.items()}
  return whole


def _values(name, z, gain):
  if name.endswith(("num_batches_tracked", "offset")):  # which are no weights
    return np.zeros_like(z)
  if name.endswith("running_var"):
    return 1 + 0.2 * z
  if name.endswith(("gamma", "gamma_1", "ls1", "ls2")):
    return 0.5 + 0.1 * z
  if name.endswith(("running_mean", "bias", "beta")):
    return 0.1 * z
  return 1 + 0.1 * z if z.ndim == 1 else gain * np.sqrt(2 / np.prod(z.shape[1:])) * z


def _whose(name, recorded):
  """Returns the name without the block's number where all blocks, of a stage, have one spatial function."""
  return re.sub(r"\.\d+\.spatial", ".spatial", name) if "shared" in recorded else name


def image():
  """Returns the rule's image (1, 224, 224, 3)."""
  c, h, w = np.arange(3), np.arange(224)[:, None, None], np.arange(224)[:, None]
  waves = np.sin(0.5 + 0.03 * h + 0.07 * w + 1.1 * c)
  return jnp.asarray((waves + 0.5 * sines(-1, (c * 224 + h) * 224 + w))[None], jnp.float32)


@pytest.mark.parametrize(("recorded", "family", "fields"), [*_cases()])
def test_published_variant_has_the_recorded_logits(recorded, family, fields):
  want = FINGERPRINTS[recorded]
  variables = torch_layout.from_torch(fill(recorded))
  model = models.build(family, **fields)
  wanted = models.abstract_variables(model, (224, 224, 3))
  weights.check_match(variables, wanted, recorded)
  logits = np.asarray(jax.jit(model.apply)(variables, image()), np.float64)[0]
  tolerance = 3e-6 * max(1, want["max_abs"])
  np.testing.assert_allclose(logits[:8], want["logits8"], atol=tolerance, rtol=0)
  np.testing.assert_allclose(logits.mean(), want["sum"] / 1000, atol=tolerance, rtol=0)
  assert logits.argmax() == want["argmax"]
