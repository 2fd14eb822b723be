"""Every configuration builds; pre-training and the baselines are the paper's."""

import csv
import importlib
import json
import pathlib
import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from mixer_jax import models
from mixer_jax.errors import InputError
from mixer_jax.tools import config_files
from mixer_jax.tools.paper_tables import rows
from mixer_jax.training import experiment
from mixer_jax.training.experiment import build
from tests.conftest import GOLDEN
from tests.marks import long


def get_config(name, *args):
  return importlib.import_module(f"configs.{name}").get_config(*args)


def test_pretraining_is_as_section_3_says():
  """All rows of table 4 share this; tests/tools/paper_tables/test_tables.py has what they differ in."""
  for row in rows.everything():
    if not row.model.startswith("Mixer"):
      continue
    config = config_files.load(row.file)
    assert config.model.variant == row.model.removeprefix("Mixer-")
    assert config.total_epochs == row.epochs
    ops = r"decode\|inception_crop\|flip(\|randaugment\(2, \d+\))?"
    assert re.fullmatch(ops, config.data.ops)
    assert (config.image_size, config.batch_size, config.loss) == (224, 4096, "sigmoid_xent")
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.b1, optimizer.b2) == ("adam", 0.9, 0.999)
    assert (optimizer.clip_norm, optimizer.weight_decay_scale) == (1.0, "learning_rate")
    assert (config.schedule.warmup_steps, config.schedule.decay) == (10_000, "linear")


LIKE_KINETICS = ("something", "moving_fashion")  # as long to trace


@pytest.mark.parametrize(
  "path",
  [
    long(path) if path.stem in LIKE_KINETICS else path
    for path in sorted(pathlib.Path("configs").glob("*.py"))
  ],
  ids=lambda p: p.stem,
)
def test_every_configuration_builds(path):
  if path.stem in ("__init__", "common"):
    return
  config = get_config(path.stem)
  setup = experiment.build_model(config)
  image = jax.ShapeDtypeStruct((2, *setup.options.input_shape), "float32")
  logits = jax.eval_shape(setup.model.apply, setup.abstract_variables, image)
  assert logits.shape == (2, config.num_classes)
  if path.stem == "evaluate":
    return  # trains nothing
  exp = build(config)
  examples, batch_size = config.data.num_examples, config.batch_size
  epoch = examples - examples % batch_size * config.data.drop_remainder
  images = int((config.total_epochs or 0) * epoch)
  assert exp.total_steps == (config.total_steps or images // batch_size)


@pytest.mark.parametrize(
  ("weights", "normalize", "ops"),
  [
    ("imagenet1k/Mixer-B_16", "unit", "decode|resize_small(256)|central_crop"),
    ("gsam/Mixer-B_16", "unit", "decode|resize_small|central_crop"),
    (
      "deit/resmlp_12_no_dist",
      "imagenet",
      "decode(mode='pillow')|resize_short(crop_pct=0.9)|central_crop(rounding='even')",
    ),
  ],
)
def test_released_weights_see_images_as_published(weights, normalize, ops):
  config = get_config("evaluate", f"weights={weights}")
  assert (config.normalize, config.evaluators.val.ops) == (normalize, ops)
  experiment.build_model(config)
  assert get_config("finetune", f"weights={weights}").normalize == normalize


@pytest.mark.parametrize(
  ("arg", "recorded"),
  [
    ("mixer-B/16", "cyclemlp"),
    ("conv_mlp-S", "convmlp"),
    ("smlp_net-T", "spach_smlpnet"),
    ("hire_mlp-T", "hire_mlp_tiny"),
    ("hire_mlp-B", "hire_mlp_base"),
  ],
)
def test_deits_learning_rates_are_the_references(arg, recorded):
  """Of every epoch: the Mixer's schedule is DeiT's own, as CycleMLP's (tests/golden/family)."""
  config = get_config("deit", arg)
  exp = build(config)
  recipe = json.loads((GOLDEN / "family" / "recipe.json").read_text())[recorded]
  steps = 1281167 // config.batch_size  # of an epoch
  assert exp.total_steps == steps * recipe["total_epochs_run"]
  for epoch, rate in recipe["lr_used_in_epoch"].items():
    first = int(epoch) * steps
    ours = exp.schedule(np.array([first, first + steps - 1])) * config.learning_rate
    np.testing.assert_allclose(ours, rate, rtol=3e-7)


def test_res_mlps_recipe_is_the_one_that_its_author_gave():
  """facebookresearch/deit, issue 106: variant 12 without distillation."""
  config = get_config("deit", "res_mlp-12")
  assert (config.batch_size, config.learning_rate, config.total_epochs) == (2048, 5e-3, 400)
  assert (config.optimizer.name, config.optimizer.weight_decay) == ("lamb", 0.2)
  assert (config.schedule.decay, config.schedule.warmup_epochs) == ("cosine", 5)
  assert (config.model.stoch_depth, config.model.dtype, config.data.repeats) == (0.05, "float32", 3)
  assert "timm_randaugment('rand-m9-mstd0.5-inc1')" in config.data.ops
  augment = {"erasing_p": 0.25, "label_smoothing": 0.1, "mixup_p": 0.8, "cutmix_p": 1.0}
  assert augment.items() <= config.augment.to_dict().items()


def test_ms_mlps_learning_rates_are_the_references():
  """Of updates: each has the rate that the reference's scheduler sets behind the one before it."""
  config = get_config("deit", "ms_mlp-T")
  exp = build(config)
  recipe = json.loads((GOLDEN / "family" / "recipe.json").read_text())["ms_mlp"]
  assert exp.total_steps == recipe["updates_per_epoch"] * recipe["epochs"]
  for update, rate in recipe["schedule"].items():
    ours = exp.schedule(int(update) + 1) * config.learning_rate
    np.testing.assert_allclose(ours, rate, rtol=2e-6)


def test_circulant_mixing_has_one_recipe_for_both_models():
  for arg in ("ccs-mixer-B/16", "ccs-res_mlp-36"):
    config = get_config("deit", arg)
    assert (config.optimizer.name, config.learning_rate) == ("adam", 1e-3)
    exp = build(config)
    count = sum(x.size for x in jax.tree.leaves(exp.abstract_state.params))
    assert count == {"ccs-mixer-B/16": 58_085_992, "ccs-res_mlp-36": 43_356_904}[arg]
  with pytest.raises(InputError, match=r"known: .*ccs-res_mlp-36"):
    get_config("deit", "ccs-conv_mlp-S")


def test_deits_models_are_named():
  with pytest.raises(InputError, match=r"epochs=ten .* not a number"):
    get_config("deit", "res_mlp-12,epochs=ten")
  for arg in ("B/16", "vit-B/16", "mixer"):
    with pytest.raises(InputError, match=r"known: mixer-VARIANT, res_mlp-VARIANT"):
      get_config("deit", arg)
  assert get_config("deit", "conv_mlp-M,epochs=90").total_epochs == 100


def table3(letters):
  """Yields (data, model, epochs) of the rows of table 3 whose model begins so, at the pre-training's 224 px."""
  names = {"ImageNet": "imagenet", "ImageNet-21k": "imagenet21k", "JFT-300M": "jft"}
  with (GOLDEN / "table3_scale.csv").open() as f:
    for row in csv.DictReader(f):
      if row["model"].startswith(letters) and row["image_size"] == "224":
        yield names[row["pretrain"]], row["model"], float(row["pretrain_epochs"])


@pytest.mark.parametrize(("data", "model", "epochs"), list(table3(("ViT", "BiT"))))
def test_baselines_are_table_3s(data, model, epochs):
  config = get_config("baselines", f"{model},data={data}")
  like = "B/16" if "-B" in model or "-R50" in model else "L/16"
  base = get_config(data, like)
  title, variant = model.split("-", 1)
  assert (config.model.name, config.model.variant) == (
    {"ViT": "vit", "BiT": "resnet"}[title],
    variant,
  )
  assert config.total_epochs == epochs
  assert config.data == base.data
  assert config.model.head_bias_init == base.model.head_bias_init
  if title == "ViT":
    assert config.model.stoch_depth == base.model.stoch_depth
  if data == "jft":
    assert config.optimizer.weight_decay == 0.1
    assert config.learning_rate == {"B": 8e-4, "L": 4e-4, "H": 3e-4}.get(
      variant[0], 1e-3 if "R50" in variant else 6e-4
    )
  else:
    assert config.augment.mixup_p == base.augment.mixup_p
    assert config.optimizer.weight_decay == base.optimizer.weight_decay


def test_bad_baselines_are_named():
  for arg in ("ViT-B/61", "B/16", "ViT-B/16,data=cifar10"):
    with pytest.raises(InputError, match=r"is unknown; known: ViT-B/32, "):
      get_config("baselines", arg)
  with pytest.raises(InputError, match="table 4 has no row for 'H/16'"):
    get_config("baselines", "ViT-H/14,data=imagenet21k")
  with pytest.raises(InputError, match=r"'vti' .* 'vit'"):
    common.get_config("vti")


def test_a_familys_section_is_its_own():
  for family in ("mixer", "vit", "resnet"):
    config = good()
    config.model = common.get_config(family).model
    with pytest.raises(InputError, match=r"config\.model \w+ lacks"):
      build(config)  # no size is given
    config.model.variant = {"mixer": "S/32", "vit": "B/32", "resnet": "R50x1"}[family]
    config.image_size = 32
    assert build(config).model.__class__ is models.FAMILIES[family].Model
  config.model.name = "vit"
  with pytest.raises(InputError, match=r"config\.model\.representation_size is missing"):
    build(config)


def test_imagenet_has_the_authors_number_of_steps():
  config = get_config("imagenet", "B/16")
  exp = build(config)
  assert exp.total_steps == 92897


def test_arguments():
  assert common.parse_arg("L/16,epochs=14", variant="B/16", epochs="7") == {
    "variant": "L/16",
    "epochs": "14",
  }
  assert common.parse_arg("", variant="B/16") == {"variant": "B/16"}
  for bad in ("B/16,epoch=3", "B/16,epochs=", "epochs=3,B/16"):
    with pytest.raises(InputError, match="is unknown"):
      common.parse_arg(bad, variant="B/16", epochs="7")
  with pytest.raises(InputError, match="no row for 'X/16'"):
    get_config("jft", "X/16")


def good():
  config = ConfigDict(get_config("quickstart").to_dict())
  config.mesh.data = 1
  return config


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    ("lerning_rate", 0.1, r"config\.lerning_rate is not read by anything.* 'learning_rate'"),
    ("model.hiden_dim", 2, r"config\.model\.hiden_dim .* 'hidden_dim'"),
    ("schedule.warmup", 2, r"config\.schedule\.warmup .* 'warmup_steps'"),
    ("batch_size", "128", r"config\.batch_size is '128' of type str; expected int"),
    ("batch_size", 128.0, r"config\.batch_size is 128\.0 of type float; expected int"),
    ("loss", "sigmoid", r"config\.loss is 'sigmoid'.*one of 'sigmoid_xent', 'softmax_xent'"),
    ("init.new_head", 1, r"config\.init\.new_head is 1 of type int; expected bool"),
    ("model.num_classes", 3, r"Set config\.num_classes"),
    ("model.stoch_depth", "no", r"config\.model\.stoch_depth"),
    (
      "image_size",
      18,
      r"config\.model\.patch_size 4 does not divide the image of 18x18 .* height 18, .* width 18.* image_size",
    ),
    ("image_size", (16, 18), r"config\.model\.patch_size 4 .* 16x18 pixels: not the width 18\."),
    ("image_size", "18x16", r"config\.model\.patch_size 4 .* 18x16 pixels: not the height 18\."),
    ("image_size", 0, r"config\.image_size is 0"),
    ("image_size", (16,), r"config\.image_size is \(16,\)"),
    ("image_size", "16x-16", r"config\.image_size is '16x-16'"),
    ("image_size", (16, 20_000), r"config\.image_size is \(16, 20000\)"),
    ("image_size", 16.0, r"config\.image_size is 16\.0 of type float"),
    ("augment.erasing_p", 1.25, r"config\.augment\.erasing_p is 1\.25 .* from 0 to 1"),
    ("augment.label_smoothing", 1.0, r"config\.augment\.label_smoothing is 1\.0"),
    ("augment.pairing", "rol", r"config\.augment\.pairing is 'rol'.* 'roll', 'flip'"),
    ("mixup_p", 0.5, r"Set config\.augment\.mixup_p"),
    ("class_weights", (1.0, 2.0), r"config\.class_weights has 2 .* 10"),
    ("positive_weights", (1.0,) * 10, r"config\.positive_weights .* sigmoid_xent"),
    ("image_channels", 2, r"config\.image_channels is 2 .* 1, 3, 4"),
    ("normalize", "0.5,0.5,0.5,1,1", r"config\.normalize is '0\.5,0\.5,0\.5,1,1'"),
    ("total_epochs", None, r"set config\.total_epochs or config\.total_steps"),
    ("total_epochs", 0.01, "the run has 0 steps"),
    ("schedule.warmup_steps", 10_000, r"config\.schedule\.warmup_steps is 10000"),
    ("optimizer.layer_decay", 0.0, r"config\.optimizer\.layer_decay is 0\.0 .* to 1"),
    ("optimizer.layer_decay", 1.01, r"config\.optimizer\.layer_decay is 1\.01 .* to 1"),
    ("ema_warmup", True, r"config\.ema_warmup is True.* config\.ema_decay"),
    ("profile.num_steps", 0, r"config\.profile\.num_steps is 0"),
    ("mesh.data", 64, r"config\.mesh\.data is 64, .* 4 devices"),
    ("data", 3, r"config\.data is 3"),
    ("model.name", "vti", "'vti' .* 'vit'"),
    ("data.ops", "decode|inceptn_crop", r"config\.data\.ops: unknown operation 'inceptn_crop'"),
    ("learning_rate", -1.0, r"config\.learning_rate is -1\.0 .* from 1e-30 to 1e\+38"),
    ("learning_rate", float("nan"), r"config\.learning_rate is nan"),
    ("total_epochs", float("inf"), r"config\.total_epochs is inf .* to 1e\+38"),
    ("model.stoch_depth", 1.5, r"config\.model\.stoch_depth is 1\.5 .* from 0 to 1"),
    (
      "model.token_mixing",
      "tied",
      r"config\.model\.token_mixing is 'tied'.*one of 'mlp', 'untied'",
    ),
    ("model.channel_groups", 4, "channel_groups 4 with token_mixing 'mlp'"),
    ("model.pyramid", (3,), r"pyramid \(3,\) must say how many tokens leave each of the 4 blocks"),
    ("ema_decay", 1.0, r"config\.ema_decay is 1\.0 .* to 0\.99"),
    ("model.dropout_rate", None, r"config\.model\.dropout_rate is None .* float"),
    ("optimizer.clip_norm", 0.0, r"config\.optimizer\.clip_norm is 0\.0 .* from 1e-30"),
    ("seed", 2**40, r"config\.seed is 1099511627776 .* to 4294967295"),
  ],
)
def test_bad_values_are_named_before_anything_runs(path, value, message):
  config = good()
  *sections, key = path.split(".")
  target = config
  for section in sections:
    target = target[section]
  with config.ignore_type():
    target[key] = value
  with pytest.raises(InputError, match=message):
    build(config)


@pytest.mark.parametrize("key", ["cutmix_p", "label_smoothing"])
def test_what_is_for_one_label_an_image_is_refused_with_several(key):
  config = good()
  config.data.labels_per_image = 3
  config.augment.mixup_p = 0.5
  build(config)
  config.augment[key] = 0.25
  with pytest.raises(InputError, match=rf"config\.augment\.{key} is 0\.25.*labels_per_image is 3"):
    build(config)


def test_all_that_is_wrong_is_said_at_once():
  config = good().to_dict()
  config["optimizer"] |= {"b1": 2.0, "betta": 1}
  config["model"]["hiden_dim"] = config["model"].pop("hidden_dim")
  del config["log"], config["model"]["dtype"]
  with pytest.raises(InputError) as e:
    build(config)
  for key in ("optimizer.b1", "optimizer.betta", "model.hiden_dim"):
    assert f"config.{key} " in str(e.value), key
  for key in ("model.hidden_dim", "model.dtype", "log"):
    assert f"config.{key} is missing" in str(e.value), key
  del config["model"]["name"]
  with pytest.raises(InputError, match=r"config\.model\.name is missing"):
    build(config)


def test_the_mesh_is_read_even_if_another_is_given():
  config = good()
  config.mesh.dta = 1
  with pytest.raises(InputError, match=r"config\.mesh\.dta .* 'data'"):
    experiment.build(config, jax.sharding.Mesh(jax.devices()[:1], ("x",)))


def test_batches_must_divide():
  config = good()
  config.mesh.data = 4
  config.batch_size = 126
  with pytest.raises(InputError, match=r"126 is not divisible by 4 devices × 1 .* 124 or 128"):
    build(config)
  config.batch_size, config.grad_accum_steps = 128, 3
  with pytest.raises(InputError, match=r"128 is not divisible by 4 devices × 3 .* 120 or 132"):
    build(config)
  config.grad_accum_steps, config.data.repeats = 1, 3
  with pytest.raises(InputError, match=r"data\.repeats is 3.*batch_size 128.*split_copies"):
    build(config)
  config.data.split_copies = True
  build(config)


def test_an_epoch_without_a_whole_batch_is_named():
  config = good()
  config.data.drop_remainder, config.batch_size = True, config.data.num_examples + 1
  with pytest.raises(InputError, match=r"config\.data\.drop_remainder .* config\.batch_size"):
    build(config)
