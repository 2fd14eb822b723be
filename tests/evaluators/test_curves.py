"""Learning curves: what a reader sees of few and of many records."""

import numpy as np
import pytest

from mixer_jax.data import ops, sources
from mixer_jax.figures import curves
from mixer_jax.training import experiment
from tests import tfds_sets
from tests.configurations import small_config


def build(**schedule):
  config = small_config()
  config.schedule.update(schedule)
  return experiment.build(config)


@pytest.mark.parametrize("schedule", [
  {"warmup_steps": 7, "warmup_start": 0.0004}, {"warmup_steps": 0, "decay": "cosine"},
  {"warmup_steps": None, "warmup_epochs": 0.1, "warmup_start": 0.0002, "every": "epoch", "lag": 1},
])  # fmt: skip
def test_the_learning_rate_before_the_first_record_is_the_schedule(schedule):
  exp = build(**schedule)
  drawn = curves.panels([{"step": 5, "lr": 0.0005}], exp.options, "val", exp.learning_rate)
  (rates,) = next(p for p in drawn if p.title == "learning rate").lines.values()
  wanted = [(n, exp.options.learning_rate * float(exp.schedule(n - 1))) for n in range(1, 5)]
  np.testing.assert_allclose(rates, [*wanted, (5, 0.0005)], rtol=1e-6)


def test_a_run_of_one_step_has_no_speed():
  exp = build()
  records = [{"step": 1, "lr": 0.0, "images_per_sec": 0.0, "data_wait": 0.0, "loss": 2.0}]
  drawn = curves.panels(records, exp.options, "val", exp.learning_rate)
  assert [(p.title, *p.lines.values()) for p in drawn] == [
    ("loss", [(1, 2.0)], []),
    ("learning rate", [(1, 0.0)]),
  ]


def test_a_run_of_one_evaluation_is_drawn():
  records = [{"step": 4, "loss": 1.5}, {"step": 4, "val/loss": 1.25, "val/top1": 0.5}]
  exp = build()
  panels = curves.panels(records, exp.options, "val", exp.learning_rate, log_loss=True)
  assert [panel.title for panel in panels] == ["loss", "top-1 of val"]
  loss, top1 = curves.learning_curves(panels, "a $run$").axes[:2]
  for line, point in zip((*loss.lines, *top1.lines), ((4, 1.5), (4, 1.25), (4, 50)), strict=True):
    assert [tuple(xy) for xy in line.get_xydata()] == [point]
    assert line.get_marker() == "o"
  assert loss.get_xlim()[0] == 0 and loss.get_yscale() == "log" and top1.get_yscale() == "linear"
  assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training", "val"]


def test_a_video_is_shown_by_four_of_its_frames():
  frames = [tfds_sets.png(i) for i in range(7)]
  source = sources.Source("videos", [{"image": frames, "label": 0}])
  rows = {"top1": np.array([1]), "index": np.array([0]), "prediction": np.array([0])}
  (sample,) = curves.samples(source, rows, 3)
  first, second, third, last = (ops.decode_image(frames[i], 3) for i in (0, 2, 4, 6))
  np.testing.assert_array_equal(sample.image, np.block([[[first], [second]], [[third], [last]]]))
