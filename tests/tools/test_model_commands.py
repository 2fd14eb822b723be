"""The commands for trained models as a user gives them, on a recorded weights file."""

import csv

import jax.numpy as jnp
import numpy as np
import pytest

from mixer_jax import models, weights
from mixer_jax.data.preprocess import Preprocess
from mixer_jax.inference import predict
from mixer_jax.training import normalization
from tests import runs, tfds_sets
from tests.conftest import GOLDEN

MODEL = [
  "--config=configs/quickstart.py",
  f"--weights={GOLDEN / 'mixer_tiny_checkpoint.npz'}",
  "--config.num_classes=5",
  "--config.model.num_blocks=2",
  "--config.model.hidden_dim=16",
  "--config.model.tokens_mlp_dim=12",
  "--config.model.channels_mlp_dim=24",
]


def test_predict_names_bad_images_and_predicts_the_others(tmp_path):
  for i in range(2):
    (tmp_path / f"{i}.png").write_bytes(tfds_sets.png(i))
  output = tmp_path / "out.csv"
  status, stdout, stderr = runs.tool("predict", *MODEL, str(tmp_path), f"--output={output}")
  assert status == 0, stderr
  lines = list(csv.DictReader(output.open()))
  assert [line["rank"] for line in lines] == list("12345") * 2
  assert abs(sum(float(line["probability"]) for line in lines) - 2) < 1e-5
  assert f"{tmp_path}/0.png\n  {float(lines[0]['probability']):.4f}  {lines[0]['name']}" in stdout
  (tmp_path / "0.png").write_text("<html>")
  status, again, stderr = runs.tool("predict", *MODEL, f"{tmp_path}/*.png", "--top=1")
  assert status == 1
  assert f"bad image {tmp_path}/0.png: not a JPEG, PNG or WebP" in stderr
  assert "1 of 2 images predicted, 1 bad" in again
  assert f"{tmp_path}/1.png\n  {float(lines[5]['probability']):.4f}" in again


def test_features_writes_the_maps_of_every_image_that_it_can_read(tmp_path):
  """Of a weights file alone, which needs no configuration."""
  for i in range(3):
    (tmp_path / f"{i}.png").write_bytes(tfds_sets.png(i))
  (tmp_path / "1.png").write_text("<html>")
  output = tmp_path / "maps.npz"
  status, stdout, stderr = runs.tool("features", MODEL[1], str(tmp_path), f"--output={output}")
  assert status == 1
  assert f"bad image {tmp_path}/1.png: not a JPEG, PNG or WebP" in stderr
  assert f"{output}: 2 of 3 images, stage_1 4x4x16" in stdout
  found = np.load(output)
  assert found["files"].tolist() == [f"{tmp_path}/{i}.png" for i in (0, 2)]
  variables = weights.load(GOLDEN / "mixer_tiny_checkpoint.npz")
  model = models.build("mixer", **weights.describe(variables).fields)
  pipeline = Preprocess("decode|resize_small|central_crop", (16, 16, 3), "ops")
  pixels = jnp.stack([predict.load_image(name, pipeline) for name in found["files"]])
  seen = models.features(model, variables, normalization.unit(pixels))
  np.testing.assert_allclose(found["stage_1"], seen["stage_1"], atol=1e-5, rtol=0)


FEWSHOT = "{'type': 'fewshot', 'test_split': 'test[:300]', 'every_steps': 1}"


@pytest.mark.parametrize(
  ("flags", "split"),
  [
    ([], "test"),
    ([f"--config.evaluators.fewshot={FEWSHOT}", "--config.best=fewshot/5shot"], "test[:300]"),
  ],
)
def test_fewshot_prints_its_table(flags, split):
  """It tests on the split of the evaluator that config.best names."""
  status, stdout, stderr = runs.tool("fewshot", *MODEL, *flags)
  assert status == 0, stderr
  assert (
    f"few-shot on digits train (627 of 1437 images drawn), tested on digits {split} (" in stdout
  )
  table = [line.split() for line in stdout.splitlines()[2:]]
  assert [line[0] for line in table] == ["1", "5", "10", "25"]
  for line in table:
    draws = [float(x) for x in line[1:4]]
    assert abs(float(line[4]) - sum(draws) / 3) < 1e-4
  assert float(table[3][4]) > float(table[0][4]) > 0.2  # random features tell digits apart


def test_export_prints_its_parity(tmp_path):
  output = tmp_path / "model.stablehlo"
  status, stdout, stderr = runs.tool("export", *MODEL, f"--output={output}")
  assert status == 0, stderr
  assert "largest difference of a logit from Flax in float32: 0.0e+00 (batch 1)" in stdout
  assert sorted(p.name for p in tmp_path.iterdir()) == ["model.stablehlo", "model.stablehlo.json"]
