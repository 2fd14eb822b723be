"""Where fine-tuning starts: the weights' own model, enlarged, with a new head; what does not fit is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import finetune as finetune_config
from mixer_jax import inference, weights
from mixer_jax.errors import InputError
from mixer_jax.training import init_from, loop
from mixer_jax.training.experiment import build
from tests import families, runs
from tests.configurations import small_config, small_weights
from tests.families import RESNET, VIT
from tests.training.steps import batches


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return small_weights(tmp_path_factory)


def initial_params(exp):
  variables, line = init_from.initial_variables(exp)
  return variables["params"], line


def by_name(tree):
  """Returns the arrays by their names in runs.final_state."""
  return {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(tree)}


def tuning(source, size, **changes):
  config = finetune_config.get_config(f"weights={source},dataset=digits_5_9,size={size},steps=4")
  config.batch_size, config.mesh.data, config.evaluators.pictures.every_steps = 16, 1, 0
  config.schedule.warmup_steps = 0
  for key, value in changes.items():
    config[key] = value
  return config


def pre_logits(exp, params, image):
  _, sown = exp.model.apply({"params": params}, image, mutable=["intermediates"])
  return sown["intermediates"]["pre_logits"][0]


def test_twice_as_large_it_starts_as_the_mean_over_tiles(source):
  exp = build(tuning(source, 32))
  params, line = initial_params(exp)
  assert "from 4x4 to 8x8 tokens as in appendix C, with a new head" in line
  assert exp.model.tokens_mlp_dim == 4 * 8
  image = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (3, 32, 32, 3)), jnp.float32)
  small = build(small_config())
  old = weights.load(source)["params"]
  tiles = [
    pre_logits(small, old, image[:, y : y + 16, x : x + 16]) for y in (0, 16) for x in (0, 16)
  ]
  np.testing.assert_allclose(pre_logits(exp, params, image), np.mean(tiles, axis=0), atol=1e-5)
  assert (exp.model.apply({"params": params}, image) == 0).all()


def test_other_sizes_are_interpolated_and_said_to_be(source):
  exp = build(tuning(source, 24))
  params, line = initial_params(exp)
  assert "from 4x4 to 6x6 tokens by interpolation" in line
  wanted = weights.resize(weights.load(source), (4, 4), (6, 6), "interpolate")["params"]
  for name in ("stem", "MixerBlock_0", "MixerBlock_1", "pre_head_layer_norm"):
    jax.tree.map(np.testing.assert_array_equal, params[name], wanted[name])


def test_a_run_starts_from_another_run_and_resumes_without_it(tmp_path):
  """Its newest checkpoint; once begun, the weights are not read again."""
  loop.train(small_config(total_steps=3), str(tmp_path / "first"))
  config = tuning(tmp_path / "first", 16)
  config.num_classes, config.init.new_head = 10, False
  config.data.dataset, config.data.num_examples = "digits", 1437
  config.evaluators.val.num_examples = 360
  exp = build(config)
  params, line = initial_params(exp)
  assert "new head" not in line
  saved = runs.final_state(tmp_path / "first", 3)
  found = {k: v for k, v in saved.items() if k.startswith("['params']")}
  runs.assert_same_state(by_name({"params": params}), found)
  results = loop.train(config, str(tmp_path / "second"))
  (tmp_path / "first").rename(tmp_path / "gone")
  assert loop.train(config, str(tmp_path / "second")) == results


def test_frozen_parameters_do_not_move_and_cost_nothing(source, tmp_path):
  config = tuning(source, 16)
  config.optimizer.lr_multipliers = ("head/.*=1", ".*=0")
  config.checkpoint.every_steps = 2
  loop.train(config, str(tmp_path))
  old, state = by_name(weights.load(source)), runs.final_state(tmp_path, 4)
  same = {name for name, value in old.items() if np.array_equal(state[name], value)}
  assert same == {name for name in old if not name.startswith("['params']['head']")}
  momenta = [k for k in state if "opt_state" in k and "trace" in k]
  assert len(momenta) == 2, momenta  # the head's kernel and bias
  # The backward pass stops at the head: fewer products than with all parameters.
  counts = []
  for rules in ((), ("head/.*=1", ".*=0")):
    config.optimizer.lr_multipliers = rules
    exp = build(config)
    text = exp.train_step.lower(exp.abstract_state, next(batches(1))).compile().as_text()
    counts.append(text.count(" dot("))
  assert counts[1] < counts[0] / 2


def test_weights_of_another_model_are_listed(source):
  config = tuning(source, 16)
  config.model.hidden_dim = 32
  with pytest.raises(InputError, match=r"(?s)shape: MixerBlock_0/LayerNorm_0/bias is \(16,\)"):
    initial_params(build(config))
  config = tuning(source, 32)
  config.model.tokens_mlp_dim = 8
  with pytest.raises(InputError, match="token_mixing/Dense_0"):
    initial_params(build(config))


BASELINES = {"vit": VIT, "resnet": RESNET}


def baseline(family, directory):
  """Returns the file of a small model at 16 px, no parameter of which is zero, and its parameters."""
  _, params = families.random_params(family, 16, 16, **BASELINES[family])
  weights.save_npz(directory / f"{family}.npz", {"params": params})
  return str(directory / f"{family}.npz"), params


def test_a_vision_transformer_is_tuned_at_another_size(tmp_path):
  file, params = baseline("vit", tmp_path)
  exp = build(tuning(file, 24))
  got, line = initial_params(exp)
  assert "from 4x4 to 6x6 tokens by interpolation, with a new head" in line
  wanted = weights.resize({"params": params}, (4, 4), (6, 6))["params"]
  jax.tree.map(np.testing.assert_array_equal, got["Transformer"], wanted["Transformer"])
  assert not any(np.any(x) for x in jax.tree.leaves(got["head"]))
  with pytest.raises(InputError, match="'paper'"):
    finetune_config.get_config(f"weights={file},dataset=digits_5_9,size=32,resize=paper")


def test_a_resnet_is_tuned_at_any_size(tmp_path):
  file, params = baseline("resnet", tmp_path)
  config = tuning(file, 21)
  with pytest.raises(InputError, match="num_groups 32 does not divide width 8"):
    build(config)  # the file does not tell
  config.model.num_groups = 4
  got, line = initial_params(build(config))
  assert line == f"parameters of {file}, with a new head, taken as trained with num_groups=4"
  jax.tree.map(np.testing.assert_array_equal, got["resnet"]["block1"], params["resnet"]["block1"])


def test_weights_of_another_family_are_named(source, tmp_path):
  file, _ = baseline("vit", tmp_path)
  for config, other in ((tuning(source, 16), file), (tuning(file, 16), source)):
    config.init.weights = other
    with pytest.raises(InputError, match=r"holds a .*'s parameters .* but a .* are wanted"):
      initial_params(build(config))


@pytest.mark.campaign
def test_an_ablated_mixer_is_tuned_at_its_own_size(tmp_path):
  config = small_config(total_steps=3)
  config.model.token_mixing, config.model.channel_groups, config.model.pyramid = "views", 4, (16, 8)
  loop.train(config, str(tmp_path))
  config = tuning(tmp_path, 16)
  assert (config.model.token_mixing, tuple(config.model.pyramid)) == ("views", (16, 8))
  _, line = initial_params(build(config))
  assert line == f"parameters of {tmp_path}, with a new head"
  with pytest.raises(InputError, match="token_mixing 'views'"):
    initial_params(build(tuning(tmp_path, 24)))


def test_the_average_starts_at_the_weights_and_is_what_is_used(source, tmp_path):
  config = tuning(source, 16)
  config.total_steps, config.init.new_head, config.num_classes = 1, False, 10
  config.data.dataset, config.evaluators.val.num_examples = "digits", 360
  config.data.num_examples = 1437
  config.ema_decay = 0.75
  results = loop.train(config, str(tmp_path))
  state = runs.final_state(tmp_path, 1)
  used = by_name(inference.load(workdir=str(tmp_path), config=None).variables)
  moved = 0.0
  for name, value in by_name(weights.load(source)).items():
    new, average = state[name], state[f"['ema']{name}"]
    np.testing.assert_allclose(average, 0.75 * value + 0.25 * new, atol=1e-6, rtol=0)
    np.testing.assert_array_equal(used[name], average)
    moved = max(moved, np.abs(new - average).max())
  assert moved > 1e-4
  again = runs.evaluated(workdir=str(tmp_path), config=None)
  np.testing.assert_allclose(again["loss"], results["loss"], rtol=1e-5)


def test_what_did_not_help_in_fine_tuning():
  """Appendix A: mixup, Polyak averaging, Inception crop."""
  arg = "model=B/16,dataset=cifar10,mixup=0.2,polyak=0.9999,crop=inception"
  config = finetune_config.get_config(arg)
  assert (config.augment.mixup_p, config.ema_decay) == (0.2, 0.9999)
  assert config.data.ops == "decode|inception_crop|flip"
  assert config.evaluators.val.ops == "decode|resize|central_crop"
  build(config)
  plain = finetune_config.get_config("model=B/16,dataset=cifar10")
  assert (plain.augment.mixup_p, plain.ema_decay) == (0.0, 0.0)
  assert plain.data.ops == "decode|resize|random_crop|flip"


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    ("weights=/nowhere/x.npz,dataset=digits_5_9", "neither a file that can be read"),
    ("model=B/16,weights=x.npz", "give model=… or weights=…"),
    ("model=S/32,dataset=cifar10", "nor a released model"),
    ("model=B/16,dataset=imagenet_v2,eval_split=dev", "has no split 'tune'"),
    ("model=B/16,dataset=cifar10,eval_split=both", "neither test nor dev"),
    ("model=B/16,dataset=cifar10,size=450", "does not divide"),
    ("model=B/16,dataset=cifar10,crop=central", "crop=central is neither random nor inception"),
    ("modle=B/16", "'modle=B/16' in the configuration's argument is unknown"),
  ],
)
def test_bad_arguments_are_named(arg, message):
  with pytest.raises(InputError, match=message):
    finetune_config.get_config(arg)


def test_the_papers_settings():
  config = finetune_config.get_config("model=B/16,dataset=cifar10,size=448,lr=0.06,eval_split=dev")
  assert (config.batch_size, config.total_steps, config.schedule.warmup_steps) == (512, 10_000, 500)
  assert (config.optimizer.name, config.optimizer.momentum, config.optimizer.clip_norm) == (
    "momentum", 0.9, 1.0,
  )  # fmt: skip
  assert config.optimizer.weight_decay == config.augment.mixup_p == config.model.stoch_depth == 0
  assert (config.schedule.decay, config.loss, config.learning_rate) == (
    "cosine", "softmax_xent", 0.06,
  )  # fmt: skip
  assert (config.data.num_examples, config.evaluators.val.num_examples) == (49_000, 1000)
  assert config.model.tokens_mlp_dim == 4 * 384
  assert build(config).total_steps == 10_000
  flowers = finetune_config.get_config("model=L/16,dataset=oxford_flowers102")
  assert (flowers.image_size, flowers.total_steps, flowers.schedule.warmup_steps) == (224, 500, 100)
  vtab = finetune_config.get_config("model=B/16,dataset=vtab/clevr_count")
  assert (vtab.total_steps, vtab.num_classes, vtab.data.num_examples) == (2500, 8, 1000)
  assert vtab.data.ops == vtab.evaluators.val.ops == "decode|resize(224)"


def test_a_run_on_rectangles_is_enlarged_by_its_own_grid(tmp_path):
  """Twice as high and wide is appendix C's; the workdir says the grid, which the parameters do not."""
  first = small_config(total_steps=3, image_size="8x16", image_channels=1)
  first.evaluators.val.ops = "decode|resize|central_crop"
  loop.train(first, str(tmp_path))
  config = finetune_config.get_config(f"weights={tmp_path},dataset=digits,size=16x32")
  assert (config.image_size, config.image_channels) == ("16x32", 1)
  config.batch_size = 16
  exp = build(config)
  variables, line = init_from.initial_variables(exp)
  assert "from 2x4 to 4x8 tokens as in appendix C" in line
  old = init_from.load(str(tmp_path))
  wanted = weights.resize(old, (2, 4), (4, 8), "paper")["params"]["MixerBlock_0"]
  jax.tree.map(np.testing.assert_array_equal, variables["params"]["MixerBlock_0"], wanted)
  same = finetune_config.get_config(f"weights={tmp_path},dataset=digits")
  assert same.image_size == "8x16"


def test_tokens_of_an_unknown_rectangle_are_taken_as_they_are_or_refused(tmp_path):
  config = small_config(image_size=(8, 16))
  exp = build(config)
  weights.save_npz(tmp_path / "oblong.npz", jax.device_get(exp.init_state().variables()))
  config.init.weights, config.init.new_head = str(tmp_path / "oblong.npz"), False
  variables, line = init_from.initial_variables(build(config))
  jax.tree.map(np.testing.assert_array_equal, variables["params"], exp.init_state().params)
  assert " to " not in line
  config.image_size = 16
  with pytest.raises(InputError, match="8 tokens are no square"):
    init_from.initial_variables(build(config))
  with pytest.raises(InputError, match="8 tokens are no square"):
    finetune_config.get_config(f"weights={tmp_path}/oblong.npz,dataset=digits")


def test_weights_for_rgb_start_a_model_of_other_channels(source, tmp_path):
  """One channel gets the sum, four get the first one again and three quarters; nothing else changes."""
  old = weights.load(source)["params"]
  kernel = old["stem"]["kernel"]
  for channels, want, said in (
    (1, kernel.sum(axis=2, keepdims=True), "1 channel summed over its 3"),
    (4, kernel[:, :, [0, 1, 2, 0]] * 0.75, "4 channels repeated and multiplied by 3/4 from its 3"),
  ):
    config = tuning(source, 32)
    config.image_channels = channels
    params, line = initial_params(build(config))
    assert f"with the stem of {said}, from 4x4 to 8x8 tokens" in line
    np.testing.assert_allclose(params["stem"]["kernel"], want, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(params["stem"]["bias"], old["stem"]["bias"])
  weights.save_npz(tmp_path / "grey.npz", weights.replace_channels({"params": old}, 1))
  config = tuning(tmp_path / "grey.npz", 16)
  config.image_channels = 3
  with pytest.raises(InputError, match=r"1 channels, not 3.*Set image_channels to 1"):
    initial_params(build(config))
