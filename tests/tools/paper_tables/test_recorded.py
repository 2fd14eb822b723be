"""What evaluations and runs leave behind for the paper's tables and figures."""

import shlex
import sys

import cv2
import jax
import pytest

from mixer_jax import inference
from mixer_jax.errors import InputError
from mixer_jax.figures import hidden_units
from mixer_jax.inference import evaluate
from mixer_jax.tools.paper_tables import results
from mixer_jax.training import loop
from tests import pages, runs
from tests.configurations import small_config
from tests.inference.conftest import make_trained

PANELS = ("loss", "top-1 of val", "learning rate", "throughput", "waiting for data")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A finished run of four steps, evaluated, saved and drawn after two and after four."""
  config, path = small_config(total_steps=4), tmp_path_factory.mktemp("run")
  config.schedule.warmup_steps, config.log.every_steps = 1, 2
  config.evaluators.val.every_steps = 2
  config.evaluators.pictures.every_steps = None
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
  for name, mosaic in (
    ("hidden_units", hidden_units.paired_mosaics(params)[1]),
    ("embedding", hidden_units.filter_mosaic(params)),
  ):
    drawn = cv2.imread(str(workdir / "plots" / f"{name}_step2.png"))[..., ::-1].reshape(-1, 3)
    assert pages.lacking(drawn, mosaic.reshape(-1, 3)) < 2 / 255


def test_a_run_writes_a_page_that_tells_all_of_it(workdir):
  seen = pages.read((workdir / "report.html").read_text())
  panels = [i.alt for i in seen.images if i.alt.endswith("by step")]
  assert panels == [f"{name} by step" for name in PANELS]
  assert len(seen.images) == len(panels) + 48 + 1 + 2  # predictions, confusions, weights
  top1 = next(r["val/top1"] for r in reversed(runs.records(workdir)) if "val/top1" in r)
  assert f"val/top1 {top1:.6g} 4" in seen.text
  for part in (shlex.join(sys.orig_argv), str(workdir), jax.__version__, '"total_steps": 4'):
    assert part in seen.text


@pytest.mark.skipif(not pages.BROWSER, reason="no Chromium is installed")
def test_the_page_fits_a_wide_and_a_narrow_window(workdir, tmp_path):
  text = (workdir / "report.html").read_text()
  for width, found in pages.measure(text, (1280, 400), tmp_path).items():
    assert found["needed"] == width
    assert found["images"] == found["loaded"] == len(pages.read(text).images)
    assert found["smallest"] >= 90  # no image is too small to see


def test_recorded_evaluations_are_found_with_their_step(workdir):
  values = [
    runs.evaluated(workdir=str(workdir), config=None, which=which, record=True)
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
  assert [v for _, v in found.curve("val/top1")] == [v["top1"] for v in values]


def test_only_a_checkpoints_evaluation_is_recorded():
  with pytest.raises(InputError, match="--record needs a checkpoint"):
    evaluate.evaluate(make_trained(), {}, record=True)
