"""The schema: read into objects, explained by --help, and translated from earlier versions."""

import json
import sys

import pytest
from absl import flags
from etils import epath
from ml_collections import config_flags

from configs import common
from mixer_jax import configuration, models, schema
from mixer_jax.errors import InputError
from mixer_jax.tools import configuration_help
from mixer_jax.workdir import directory as workdirs
from mixer_jax.workdir import provenance
from tests import runs
from tests.configurations import small_config

# As if today's keys had once had other names, other values and another section.
MOVED = {
  "rate": ("learning_rate", lambda value: value / 1000),
  "model.depth": ("model.num_blocks", lambda value: value),
  "annealing": ("schedule", lambda value: {"warmup_steps": value["steps"]}),
}


def today():
  return json.loads(small_config().to_json())


def earlier():
  """Returns small_config as a version would have saved it that had MOVED's keys and no `profile`."""
  config = today()
  config["rate"] = 1000 * config.pop("learning_rate")
  config["model"]["depth"] = config["model"].pop("num_blocks")
  config["annealing"] = {"steps": config.pop("schedule")["warmup_steps"]}
  del config["profile"], config["optimizer"]["b2"]
  return config


@pytest.fixture
def moved(monkeypatch):
  monkeypatch.setattr(schema, "RENAMED", MOVED)


@pytest.mark.usefixtures("moved")
def test_a_saved_configuration_of_an_earlier_version_is_translated(tmp_path):
  configuration.save(epath.Path(tmp_path) / "config.json", earlier())
  config = workdirs.load_config(epath.Path(tmp_path))
  options = schema.read(config)
  assert options.learning_rate == small_config().learning_rate
  assert options.model["num_blocks"] == 2
  assert options.schedule == schema.Schedule(warmup_steps=2)
  assert (options.optimizer.b2, options.profile) == (0.999, schema.Profile())


def test_the_evaluation_of_earlier_versions_is_an_evaluator(tmp_path):
  config = today()
  for key in ("evaluators", "best"):
    del config[key]
  config["evaluation"] = {"split": "test", "dataset": None}
  config["fewshot"] = {"dataset": None, "test_split": "dev"}
  config["log"]["plots"] = True
  configuration.save(epath.Path(tmp_path) / "config.json", config)
  options = schema.read(workdirs.load_config(epath.Path(tmp_path)))
  assert options.evaluators == {
    "val": schema.Classification(split="test"),
    "fewshot": schema.Fewshot(test_split="dev", every_steps=0),
    "pictures": schema.Pictures(),
  }


def test_the_mixup_of_earlier_versions_is_in_its_section():
  config = today()
  del config["augment"]
  config["mixup_p"] = 0.2
  translated = schema.translated(config)
  assert schema.read(translated).augment == schema.Augment(mixup_p=0.2)


def test_a_key_that_is_there_twice_is_named(tmp_path):
  text = '{"evaluators": {"val": {"type": "fewshot"}, "val": {"type": "classification"}}}'
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(InputError, match="val is there twice"):
    configuration.load(epath.Path(tmp_path) / "config.json")


def test_a_configuration_of_today_is_left_as_it_is():
  config = today()
  assert schema.translated(config) == config


@pytest.mark.usefixtures("moved")
def test_a_run_of_an_earlier_version_goes_on_where_its_keys_mean_the_same(tmp_path):
  def resume(**changes):
    new = provenance.describe(small_config(**changes), {})
    return provenance.resume(new, epath.Path(tmp_path), 0, ())

  configuration.save(epath.Path(tmp_path) / "config.json", earlier())
  resume()
  with pytest.raises(InputError, match=r"learning_rate: 0\.001 -> 0\.5"):
    resume(learning_rate=0.5)
  saved = earlier() | {
    "forgotten": 1,
    "total_epochs": 54.0,
  }  # which counted for nothing beside total_steps
  del saved["ema_decay"]
  configuration.save(epath.Path(tmp_path) / "config.json", saved)
  with pytest.raises(InputError, match=r"ema_decay: 0\.0 -> 0\.9\n  forgotten: 1 -> '\(absent\)'"):
    resume(ema_decay=0.9)


@pytest.mark.usefixtures("moved")
def test_an_old_key_is_an_error_that_names_the_new_one():
  with pytest.raises(InputError) as e:
    schema.read(earlier())
  for old, (new, _) in MOVED.items():
    assert f"config.{old} is not read by anything. Set config.{new}." in str(e.value)


@pytest.mark.parametrize(
  ("line", "argument"), [("config.model.depth = 2", ""), ("", "--config.model.depth=2")]
)
def test_an_old_key_in_a_file_or_a_flag_names_the_new_one(tmp_path, line, argument):
  (tmp_path / "own.py").write_text(
    "from mixer_jax import schema\nfrom mixer_jax.configs import common\n\n"
    'schema.RENAMED = {"model.depth": ("model.num_blocks", lambda value: value)}\n\n'
    f"def get_config():\n  config = common.get_config()\n  {line}\n  return config\n"
  )
  arguments = [f"--config={tmp_path}/own.py", f"--workdir={tmp_path}/run", argument]
  status, output = runs.run([sys.executable, "train.py", *filter(None, arguments)])
  assert status == 2
  assert "'depth'" in output
  assert "config.model.num_blocks" in output
  assert len(output.strip().splitlines()) == 1


def test_help_has_every_key_with_its_default():
  for family in models.FAMILIES:
    config = common.get_config(family)
    text = configuration_help.text(config)
    for key, value in configuration.flatten(config).items():
      value = tuple(value) if isinstance(value, list) else value
      assert f"\n  config.{key}={value!r}  (" in text or key.endswith(".type"), key
  text = configuration_help.text(common.get_config("spach"))
  assert "Instead of" in next(x for x in text.splitlines() if "config.total_steps=" in x)
  assert "global norm" in next(x for x in text.splitlines() if "optimizer.clip_norm" in x)
  assert "channels of the first stage" in next(x for x in text.splitlines() if "hidden_dim" in x)


def test_a_variant_in_a_configuration_is_the_published_one():
  for family, module in models.FAMILIES.items():
    fields = common.get_config(family).model
    for variant in module.VARIANTS:
      fields.variant = variant
      assert models.build(**fields) == models.build(family, variant=variant)


def test_a_variant_beside_all_sizes_is_refused():
  config = small_config()
  config.model.variant = "B/16"
  with pytest.raises(InputError, match=r"variant 'B/16' .*hidden_dim 16 \(B/16: 768\)"):
    models.build(**schema.read(config).model)


@pytest.mark.parametrize(
  ("given", "size", "shape"),
  [
    ("", 224, (224, 224, 3)), ("--c.image_size=32", 32, (32, 32, 3)),
    ("--c.image_size=16x24", "16x24", (16, 24, 3)), ("--c.image_size=16,24", "16x24", (16, 24, 3)),
  ],
)  # fmt: skip
def test_image_size_on_the_command_line(monkeypatch, given, size, shape):
  monkeypatch.setattr(sys, "argv", ["train.py", *given.split()])  # where ml_collections looks
  values = flags.FlagValues()
  config_flags.DEFINE_config_dict("c", common.get_config(), flag_values=values)
  values(sys.argv)
  options = schema.read(values["c"].value)
  assert (options.size, options.input_shape) == (size, shape)
  assert schema.sides(options.size) == shape[:2]


def test_image_size_in_a_file():
  config = common.get_config()
  for given in (24, "24x24", (24, 24)):
    config.image_size = given
    saved = json.loads(config.to_json())
    assert schema.read(saved).input_shape == (24, 24, 3)


def test_relative_directories_of_data_hold_from_another_directory(tmp_path, monkeypatch):
  (tmp_path / "mine/1.0.0").mkdir(parents=True)
  monkeypatch.chdir(tmp_path)
  config = today()
  config["data"] |= {"dataset": "mine/1.0.0", "data_dir": "tfds"}
  config["evaluators"]["val"]["dataset"] = "./other"
  found = schema.completed(config)
  assert found["data"]["dataset"] == f"{tmp_path}/mine/1.0.0"
  assert found["data"]["data_dir"] == f"{tmp_path}/tfds"
  assert found["evaluators"]["val"]["dataset"] == f"{tmp_path}/other"
  for name in ("digits", "mnist/3.0.1", "gs://bucket/mine", "~/mine"):
    config["data"]["dataset"] = name
    assert schema.completed(config)["data"]["dataset"] == name
