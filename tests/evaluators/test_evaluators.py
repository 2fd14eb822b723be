"""Evaluators of the configuration: as many as one likes, chosen by name, and none where there cannot be one."""

import numpy as np
import pytest

from mixer_jax import evaluators, inference
from mixer_jax.errors import InputError
from mixer_jax.inference import evaluate
from mixer_jax.training import loop
from tests import runs
from tests.configurations import small_config
from tests.inference.conftest import make_trained

SEEN = {
  "type": "classification", "split": "train", "num_examples": 1437, "ops": "decode|resize(16)",
  "every_steps": 4,
}  # fmt: skip
FEWSHOT = {"type": "fewshot", "ops": "decode|resize(16)"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """The workdir of a run with two evaluators that classify, and few-shot, which chooses the best."""
  config, path = small_config(total_steps=10, best="fewshot/5shot"), tmp_path_factory.mktemp("run")
  config.evaluators.seen, config.evaluators.fewshot = SEEN, {**FEWSHOT, "every_steps": 7}
  config.checkpoint.every_steps = 100
  return path, loop.train(config, str(path)), config


def test_each_has_its_own_steps_and_names_its_metrics(finished):
  path, results, _ = finished
  logged = runs.records(path)
  steps = {
    name: [r["step"] for r in logged if name in r]
    for name in ("seen/top1", "val/top1", "fewshot/5shot")
  }
  assert steps == {"seen/top1": [4, 8, 10], "val/top1": [10], "fewshot/5shot": [7, 10]}
  assert results["5shot"] == next(
    r["fewshot/5shot"] for r in logged if "fewshot/5shot" in r and r["step"] == 10
  )


def test_only_the_one_that_chooses_the_best_asks_for_a_checkpoint(finished):
  assert sorted(int(p.name) for p in (finished[0] / "checkpoints").iterdir()) == [7, 10]


def test_training_does_not_depend_on_them(finished, tmp_path):
  loop.train(small_config(total_steps=10), str(tmp_path))
  runs.assert_same_state(runs.final_state(tmp_path, 10), runs.final_state(finished[0], 10))


def test_eval_runs_those_that_classify_or_those_asked_for(finished):
  trained = inference.load(workdir=str(finished[0]), config=None)
  options = trained.setup.options
  assert set(evaluate.choose(options)) == {"seen", "val"}
  with pytest.raises(InputError, match=r"'seem'.* 'seen'"):
    evaluate.choose(options, evaluators=["seem"])
  found = evaluate.evaluate(trained, evaluate.choose(options, evaluators=["fewshot", "seen"]))
  logged = runs.records(finished[0])
  for name in ("seen/top1", "seen/count", "fewshot/5shot"):
    evaluator, _, metric = name.partition("/")
    last = next(r[name] for r in reversed(logged) if name in r)
    np.testing.assert_allclose(found[evaluator][metric], last, atol=1 / 360)
  with pytest.raises(InputError, match="--details needs one"):
    evaluate.evaluate(trained, evaluate.choose(options), details="details")


def test_they_may_come_and_go_when_a_run_is_resumed(finished):
  path, results, config = finished
  config = config.copy_and_resolve_references()
  config.evaluators.later = {**SEEN, "split": "test", "num_examples": 360}
  del config.evaluators["seen"]
  assert loop.train(config, str(path)) == results
  assert runs.records(path)[-1]["later/count"] == 360
  config.evaluators.val.ops = "decode|resize|central_crop"
  with pytest.raises(InputError, match=r"evaluators\.val\.ops: "):
    loop.train(config, str(path))


@pytest.mark.parametrize(
  ("name", "section", "message"),
  [
    ("real", {"type": "clasification"}, r"config\.evaluators\.real\.type .* 'classification'"),
    ("real", {}, r"config\.evaluators\.real\.type is missing"),
    ("real", {"type": "fewshot", "split": "test"}, r"config\.evaluators\.real\.split .* 'test_split'"),
    ("real", {"type": "fewshot", "batch_size": 0}, r"config\.evaluators\.real\.batch_size is 0"),
    ("val", {"type": "classification", "every_steps": 0}, r"config\.best is 'val/top1'"),
    ("a/b", {"type": "fewshot"}, r"config\.evaluators\.a/b: a name"),
    ("pictures", {"type": "pictures", "of": "vall"}, r"config\.evaluators\.pictures\.of .* 'val'"),
    ("real", {"type": "classification", "split": "trian"}, r"split 'trian' .* 'train'"),
    ("few", {"type": "fewshot", "ops": "decode|resise"}, r"config\.evaluators\.few\.ops.* 'resize'"),
  ],
)  # fmt: skip
def test_what_is_wrong_is_named_before_training(tmp_path, name, section, message):
  config = small_config().to_dict()
  config["evaluators"][name] = section
  with pytest.raises(InputError, match=message):
    loop.train(config, str(tmp_path / "run"))


def test_pictures_need_a_run():
  setup = make_trained().setup
  with pytest.raises(InputError, match=r"config\.evaluators\.pictures needs a run"):
    evaluators.build(setup, setup.options.evaluators, None)
