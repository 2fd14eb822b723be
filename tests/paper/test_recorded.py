"""What evaluations and runs leave behind for the paper's tables and figures."""

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from mixer_jax import checkpoint, configuration, evaluation, experiment, pictures, plots
from mixer_jax.errors import InputError
from mixer_jax.paper import results
from tests.configurations import small_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Returns (workdir, initial state) of a run with checkpoints of the steps 10 and 20."""
  config, workdir = small_config(), epath.Path(tmp_path_factory.mktemp("run"))
  exp = experiment.build(config, experiment.make_mesh(config))
  state = exp.init_state()
  configuration.save(workdir / "config.json", config)
  saver = checkpoint.Checkpointer(workdir, keep_newest=2, keep_best=0)
  for step in (10, 20):
    saver.save(step, state.replace(step=step), None)
  saver.wait()
  saver.close()
  return workdir, state


def test_recorded_evaluations_are_found_with_their_step(run):
  workdir, _ = run
  values = [
    evaluation.evaluate(workdir=str(workdir), config=None, which=which, record=True)
    for which in (10, "newest")
  ]
  (found,) = results.scan(workdir).runs
  assert [(e["step"], e["dataset"], e["split"]) for e in found.evaluations] == [
    (10, "digits", "test"),
    (20, "digits", "test"),
  ]
  assert [e["top1"] for e in found.evaluations] == [v["top1"] for v in values]
  assert found.evaluations[0]["ops"] == "decode|resize(16)"
  assert found.evaluations[0]["count"] == 360


def test_only_a_checkpoints_evaluation_is_recorded(run):
  with pytest.raises(InputError, match="--record needs a checkpoint"):
    evaluation.evaluate(workdir=None, config=small_config(), weights_file="x.npz", record=True)


def test_a_run_draws_its_weights(run, tmp_path):
  _, state = run
  paths = plots.save_weights(epath.Path(tmp_path), state.params, 7)
  assert [p.name for p in paths] == ["hidden_units_step7.png", "embedding_step7.png"]
  for path, mosaics in zip(
    paths,
    (pictures.paired_mosaics(state.params), [pictures.filter_mosaic(state.params)]),
    strict=True,
  ):
    wanted = cv2.imdecode(np.frombuffer(pictures.encode_png(mosaics), np.uint8), 1)
    np.testing.assert_array_equal(cv2.imread(str(path)), wanted)


def test_other_models_draw_nothing(tmp_path):
  params = {"embedding": {"kernel": jnp.zeros((4, 4, 3, 8))}}
  assert plots.save_weights(epath.Path(tmp_path), params, 7) == []
  assert not (tmp_path / "plots").exists()
