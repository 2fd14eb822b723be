"""Other families than Mixer in the training step and the loop: the same on several devices, resumed, put to use."""

import jax
import numpy as np
import pytest

from mixer_jax import inference, weights
from mixer_jax.errors import InputError
from mixer_jax.inference import export
from mixer_jax.training import experiment, loop
from mixer_jax.weights import torch_layout
from mixer_jax.workdir import directory, restore
from tests import families, runs
from tests.configurations import of_clips, small_config, with_family
from tests.marks import long
from tests.training.steps import batches, put
from tests.training.test_recipe import recipe

FIELDS = {
  "vit": dict(patch_size=8, num_blocks=2, hidden_dim=16, mlp_dim=24, num_heads=2, stoch_depth=0.5),
  "resnet": dict(num_units=(1,), width=8, num_groups=4),
  "res_mlp": dict(patch_size=8, num_blocks=2, hidden_dim=16, mlp_dim=24, stoch_depth=0.5),
  "conv_mlp": dict(
    stem_channels=8, num_conv_blocks=1, num_blocks=(1, 1, 1), widths=(8, 8, 12), mlp_ratios=(2, 1, 1),
    stoch_depth=0.5,
  ),
  "cycle_mlp": dict(
    num_blocks=(1, 1, 1, 1), widths=(8, 8, 12, 12), mlp_ratios=(2, 1, 1, 1), stoch_depth=0.5
  ),
  "s2_mlp": dict(patch_size=8, num_blocks=2, hidden_dim=16, mlp_dim=24, stoch_depth=0.5),
  "smlp_net": dict(patch_size=4, hidden_dim=8, num_blocks=(1, 2), mlp_ratio=2, stoch_depth=0.5),
  "spach": dict(
    patch_size=4, hidden_dim=8, stages=("conv1", "attn1+mlp1"), mlp_ratio=2, stoch_depth=0.5
  ),
  "hire_mlp": dict(
    num_blocks=(1, 1, 2, 1), widths=(8, 8, 12, 12), mlp_ratios=(2, 1, 1, 1), region_sizes=(2, 3, 2, 1),
    stoch_depth=0.5,
  ),
  "mlp3d": dict(
    arrangement=("short1", "token4", "window2", "long2"), widths=(8, 8, 12, 12), mlp_ratios=(2, 1, 1, 1),
    stoch_depth=0.5,
  ),
  "ms_mlp": dict(
    patch_size=2, width=9, num_blocks=(1, 1, 1, 1), mlp_ratio=1, mix_sizes=((1, 1, 1, 3, 3),) * 4,
    layer_scale_init=0.1, stoch_depth=0.5,
  ),
}  # fmt: skip
WITH_BATCH_NORM = ("conv_mlp", "hire_mlp", "smlp_net")


def grads_loss_and_statistics(family, *, devices, parts, masked=0):
  """Returns the moments after one step, which are the gradients, the loss, and the batch statistics.

  The first `masked` images are padding.
  """
  config = with_family(small_config(grad_accum_steps=parts), family, FIELDS[family])
  config.mesh.data = devices
  config.optimizer.clip_norm = None
  shape = families.shape(family, 16, 16, 3)
  config = of_clips(config, shape[0]) if len(shape) == 4 else config
  exp = experiment.build(config)
  # A head of zeros would keep the gradients from the body.
  variables = families.random_variables(family, 16, 16, num_classes=10, **FIELDS[family])[1]
  state = exp.first_state(jax.device_put(variables, exp.shardings.variables))
  batch = next(batches(1, masked=range(masked), shape=shape))
  state, metrics = exp.train_step(state, put(exp, batch))
  return jax.device_get((state.opt_state[1].mu, metrics["loss"], state.batch_stats))


# One of each kind; the others take longer than they tell.
SHORT = ("res_mlp", "conv_mlp")


@pytest.mark.parametrize("family", [f if f in SHORT else long(f) for f in FIELDS])
def test_devices_and_parts_change_nothing(family):
  """BatchNorm takes the statistics of the global batch, so its parts cannot be taken one by one."""
  parts = 1 if family in WITH_BATCH_NORM else 2
  grads, loss, statistics = grads_loss_and_statistics(family, devices=1, parts=1, masked=3)
  others, other_loss, other_statistics = grads_loss_and_statistics(
    family, devices=4, parts=parts, masked=3
  )
  np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
  scale = max(np.abs(g).max() for g in jax.tree.leaves(grads))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), others, grads)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), other_statistics, statistics
  )
  assert bool(statistics) == (family in WITH_BATCH_NORM)


def test_batch_statistics_and_accumulation_exclude_each_other():
  with pytest.raises(InputError, match="grad_accum_steps"):
    grads_loss_and_statistics("conv_mlp", devices=1, parts=2)


LAST = 11  # the recipe's last step


def stop_and_resume(config, directory):
  """Trains for 3 steps with two loader workers, and then to the end with none."""
  config.data.num_workers = 2
  with pytest.raises(SystemExit):
    loop.train(config, str(directory), runs.StopAfter(3))
  config.data.num_workers = 0
  loop.train(config, str(directory))


@pytest.fixture(scope="module", params=["res_mlp", long("conv_mlp")])
def run(request, tmp_path_factory):
  """A family, the directories of a run under all of DeiT's recipe and of one that was stopped and resumed."""
  config = with_family(recipe(), request.param, FIELDS[request.param])
  config.model.stoch_depth = 0.2
  undisturbed, resumed = (tmp_path_factory.mktemp(name) for name in ("undisturbed", "resumed"))
  loop.train(config, str(undisturbed))
  stop_and_resume(config, resumed)
  return request.param, undisturbed, resumed


def test_resume_equals_an_uninterrupted_run(run):
  _, undisturbed, resumed = run
  runs.assert_same_run(resumed, undisturbed, LAST)


@pytest.mark.campaign
def test_a_run_of_clips_resumes_to_the_bit_and_is_exported(tmp_path, capsys):
  """With all that changes a batch, several views in evaluation, pictures, and workers."""
  config = of_clips(with_family(small_config(total_steps=5), "mlp3d", FIELDS["mlp3d"]), 16)
  config.augment.update({"erasing_p": 0.5, "mixup_p": 0.5, "cutmix_p": 1.0})
  config.data.update(
    {"dataset": "synthetic", "num_examples": 40, "ops": "window(2)|decode|inception_crop|flip"}
  )
  val = {
    "num_examples": 10,
    "ops": "window(2, views=2)|decode|resize(18)|three_crops",
    "batch_size": 16,
  }
  config.evaluators.val.update({**val, "every_steps": 2})
  config.evaluators.pictures.every_steps = 2
  config.checkpoint.every_steps = 2
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  loop.train(config, str(whole))
  log = capsys.readouterr()
  assert "images" not in log.out + log.err
  stop_and_resume(config, parts)
  runs.assert_same_run(parts, whole, 5)
  assert {p.name for p in (whole / "plots").iterdir()} == {"learning_curves.png", "predictions.png"}
  trained = inference.load(workdir=str(whole), config=None)
  differences = export.save(trained, tmp_path / "x.stablehlo", input_type="uint8", tolerance=1e-5)
  assert max(differences.values()) <= 1e-5


def test_what_was_trained_is_put_to_use(run, tmp_path):
  """The checkpoint, its .npz and its state dictionaries evaluate alike; the export gives the same logits."""
  family, workdir, _ = run
  variables = restore.load_variables(workdir, LAST)
  weights.save_npz(tmp_path / "x.npz", variables)
  from_run = inference.load(workdir=str(workdir), config=None)
  config = directory.load_config(workdir)
  for layout in ("authors", "timm") if family == "res_mlp" else ("authors",):
    file = tmp_path / f"{layout}.safetensors"
    torch_layout.save_safetensors(file, torch_layout.to_torch(variables, layout))
    loaded = inference.load(workdir=None, config=config, weights_file=str(file))
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, from_run.variables)
  loaded = inference.load(workdir=None, config=config, weights_file=str(tmp_path / "x.npz"))
  jax.tree.map(np.testing.assert_array_equal, loaded.variables, from_run.variables)
  differences = export.save(from_run, tmp_path / "x.stablehlo", input_type="uint8", tolerance=1e-5)
  assert max(differences.values()) <= 1e-5
