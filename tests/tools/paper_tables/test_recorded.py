"""What evaluations and runs leave behind for the paper's tables and figures."""

import jax.numpy as jnp
import pytest
from etils import epath

from mixer_jax import inference
from mixer_jax.errors import InputError
from mixer_jax.figures import curves, hidden_units
from mixer_jax.inference import evaluate
from mixer_jax.tools.paper_tables import results
from mixer_jax.training import loop
from tests.configurations import small_config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A finished run of four steps, evaluated, saved and drawn after two and after four."""
  config, path = small_config(total_steps=4), tmp_path_factory.mktemp("run")
  config.schedule.warmup_steps = 1
  config.evaluation.every_steps = 2
  config.log.plots = True
  loop.train(config, str(path))
  return path


def params_of(workdir, step):
  return inference.load(workdir=str(workdir), config=None, which=step).variables["params"]


def test_a_run_draws_its_weights_at_every_evaluation(workdir):
  found = {p.name for p in (workdir / "plots").iterdir()}
  assert found == {"learning_curves.png", "predictions.png"} | {
    f"{name}_step{step}.png" for name in ("hidden_units", "embedding") for step in (2, 4)
  }
  params = params_of(workdir, 2)
  for name, mosaics in (
    ("hidden_units", hidden_units.paired_mosaics(params)),
    ("embedding", [hidden_units.filter_mosaic(params)]),
  ):
    drawn = (workdir / "plots" / f"{name}_step2.png").read_bytes()
    assert drawn == hidden_units.encode_png(mosaics)


def test_recorded_evaluations_are_found_with_their_step(workdir):
  values = [
    evaluate.evaluate(workdir=str(workdir), config=None, which=which, record=True)
    for which in (2, "newest")
  ]
  (found,) = results.scan(workdir).runs
  assert [(e["step"], e["dataset"], e["split"]) for e in found.evaluations] == [
    (2, "digits", "test"),
    (4, "digits", "test"),
  ]
  assert [e["top1"] for e in found.evaluations] == [v["top1"] for v in values]
  assert found.evaluations[0]["ops"] == "decode|resize(16)"
  assert found.evaluations[0]["count"] == 360
  assert [v for _, v in found.curve("evaluation/top1")] == [v["top1"] for v in values]


def test_only_a_checkpoints_evaluation_is_recorded():
  with pytest.raises(InputError, match="--record needs a checkpoint"):
    evaluate.evaluate(workdir=None, config=small_config(), weights_file="x.npz", record=True)


def test_other_models_draw_nothing(tmp_path):
  params = {"embedding": {"kernel": jnp.zeros((4, 4, 3, 8))}}
  assert curves.save_weights(epath.Path(tmp_path), params, 7, (16, 16)) == []
  assert not (tmp_path / "plots").exists()
