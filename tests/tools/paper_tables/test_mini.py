"""The miniature: its verdicts, its runs and its report."""

import html
import shlex

import pytest
from etils import epath

from mixer_jax.errors import InputError
from mixer_jax.tools.paper_tables import mini, mini_report, verdicts
from mixer_jax.tools.paper_tables.mini import Pretrain, Setting, Transfer
from mixer_jax.training import experiment
from mixer_jax.workdir import checkpoint
from tests import pages
from tests.tools.paper_tables import made

SETTING = Setting("digits_0_4", "digits_5_9", (10.0, 100.0), 40, sizes=("S", "M"))


def everything(top1, count=2000):
  """Returns what was seen, with these accuracies and otherwise 50 %."""
  return {
    k: mini.Outcome(top1.get(k, 50.0), count, 40.0, speed=150.0 if k.model == "mixer" else 100.0)
    for k in mini.runs_of(SETTING)
  }


def verdict_of(seen, text):
  (claim,) = [c for c in verdicts.check_claims(seen, SETTING) if text in c.claim]
  return claim.verdict


def test_noise_is_the_binomial_standard_error():
  assert verdicts.noise(50.0, 2500) == pytest.approx(1.0)
  assert 0 < verdicts.noise(100.0, 2500) < verdicts.noise(99.0, 2500)


@pytest.mark.parametrize(
  ("differences", "expected"),
  [
    ([(3.0, 1.0), (2.1, 1.0)], "holds"),
    ([(3.0, 1.0), (1.9, 1.0)], "within noise"),
    ([(3.0, 1.0), (-1.9, 1.0)], "within noise"),
    ([(3.0, 1.0), (-2.1, 1.0)], "does not hold"),
  ],
)
def test_verdicts(differences, expected):
  assert verdicts.verdict(differences) == expected


def pre(model, percent, order="", size="M"):
  return Pretrain(model, size, percent, order)


@pytest.mark.parametrize(
  ("claim", "top1", "expected"),
  [
    ("Larger", {pre("mixer", 100): 60.0}, "holds"),
    ("Larger", {pre("mixer", 100): 40.0}, "does not hold"),
    ("few images", {pre("mixer", 10, size="S"): 60.0}, "holds"),
    ("gains more", {pre("mixer", 10): 30.0}, "holds"),
    ("gains more", {pre("vit", 10): 30.0}, "does not hold"),
    ("ViT of the same", {pre("vit", 100): 60.0}, "holds"),
    ("twice the res", {Transfer("mixer", 56, seed): 60.0 for seed in mini.SEEDS}, "holds"),
    (
      "All pixels",
      {pre("mixer", 100, "pixels"): 40.0, pre("resnet", 100, "pixels"): 20.0},
      "holds",
    ),
    ("Patches", {pre("resnet", 100, "patches"): 30.0}, "holds"),
    ("Patches", {pre(m, 100, "patches"): 30.0 for m in mini.PERMUTED}, "does not hold"),
  ],
)
def test_verdicts_come_from_the_right_runs(claim, top1, expected):
  assert verdict_of(everything(top1), claim) == expected


def test_without_differences_nothing_holds_but_the_speed():
  found = {c.claim: c.verdict for c in verdicts.check_claims(everything({}), SETTING)}
  assert found.pop("Mixer is faster than ViT.") == "holds"
  assert set(found.values()) == {"within noise"}


def test_a_claim_whose_runs_are_missing_says_so():
  seen = everything({})
  del seen[Pretrain("vit", "M", 100.0)]
  assert verdict_of(seen, "ViT of the same") == "not run"
  assert verdict_of(seen, "Larger") != "not run"


def write_run(directory, key, top1):
  """Writes a finished run of the miniature by hand."""
  config = mini.config_of(key, SETTING, directory)
  records = [
    {"step": config.total_steps, "loss": 1.0, "images_per_sec": 1000.0, "core_hours": 0.01},
    {"step": config.total_steps, "val/top1": top1, "val/count": 181},
    {"step": config.total_steps, "fewshot/5shot": top1 / 2},
  ]
  made.run(directory / key.name, config, records)
  return config


PRETRAININGS = [k for k in mini.runs_of(SETTING) if isinstance(k, Pretrain)]


@pytest.fixture(scope="module")
def story(tmp_path_factory):
  """Returns (directory, report) of hand-made results, with one real checkpoint."""
  directory = tmp_path_factory.mktemp("mini")
  for i, key in enumerate(PRETRAININGS):
    config = write_run(directory, key, 0.5 + i / 100)
    if key == Pretrain("mixer", "M", 100.0):
      exp = experiment.build(config)
      saver = checkpoint.Checkpointer(epath.Path(directory / key.name), keep_newest=1, keep_best=0)
      saver.save(config.total_steps, exp.init_state().replace(step=config.total_steps), None)
      saver.wait()
      saver.close()
  write_run(directory, Transfer("mixer", 28, 0), 0.9)
  return directory, mini_report.write(directory, SETTING).read_text()


def test_the_report_shows_what_runs_left_and_what_was_not_run(story):
  directory, text = story
  seen = mini.read(directory, SETTING)
  assert len(seen) == len(PRETRAININGS) + 1
  for key in PRETRAININGS:
    assert f"<td>{seen[key].top1:.1f}</td>" in text
    assert html.escape(mini.command_of(key, SETTING, directory)) in text
  assert "– (90.0)" in text  # one of two seeds: no mean
  assert text.count(f"<td>{verdicts.NOT_RUN}</td>") == 1  # fine-tuning alone is missing
  assert len(pages.read(text).images) == 6


def test_the_printed_command_makes_the_configuration(tmp_path):
  config_file, *changes = shlex.split(mini.command_of(Transfer("mixer", 28, 1), SETTING, tmp_path))[
    2:-1
  ]
  assert config_file.startswith("--config=configs/finetune.py:")
  assert "--config.seed=1" in changes and "--config.evaluators.pictures.every_steps=0" in changes


def test_only_a_whole_run_of_the_same_configuration_is_finished(tmp_path):
  key = Pretrain("mixer", "S", 10.0)
  config = write_run(tmp_path, key, 0.5)
  assert mini.finished(tmp_path / key.name, config) is not None
  made.run(tmp_path / "half", config, [{"step": 20, "val/top1": 0.5}])
  assert mini.finished(tmp_path / "half", config) is None
  config.learning_rate = 0.1
  with pytest.raises(InputError, match="learning_rate"):
    mini.finished(tmp_path / key.name, config)
