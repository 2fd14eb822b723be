"""The converter: between kinds of files, from a run, to another size; nothing is overwritten."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from etils import epath

from mixer_jax import configuration, models, weights
from mixer_jax.errors import InputError
from mixer_jax.tools import convert
from mixer_jax.training import experiment
from mixer_jax.workdir import checkpoint, provenance
from mixer_jax.workdir import directory as workdirs
from tests import runs
from tests.configurations import small_config
from tests.conftest import GOLDEN
from tests.weights import mixers

RELEASED = GOLDEN / "mixer_tiny_checkpoint.npz"
TIMM = GOLDEN / "mixer_timm.safetensors"


def run(*args):
  """Runs the command in this process; raises what it would report."""
  with flagsaver.flagsaver():
    convert.main(flags.FLAGS(["convert", *map(str, args)]))


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)
  assert jax.tree.structure(a) == jax.tree.structure(b)


def test_there_and_back_is_the_same_to_the_bit(tmp_path, capsys):
  run(GOLDEN / "mixer_tiny_checkpoint_prelinen_opt.npz", tmp_path / "a.safetensors")
  run(tmp_path / "a.safetensors", tmp_path / "b.npz")
  assert_same(weights.load_npz(tmp_path / "b.npz"), weights.load_npz(RELEASED))
  assert "b.npz: Mixer for 16 tokens, patch_size=4 num_blocks=2" in capsys.readouterr().out


def saved_run(workdir, config, scores):
  """Saves a checkpoint of other parameters for each score; returns the parameters by step, and the run's name."""
  exp = experiment.build(config)
  configuration.save(workdirs.path_of(str(workdir)) / "config.json", config)
  origin = provenance.describe(config, {})
  checkpointer = checkpoint.Checkpointer(
    epath.Path(workdir), keep_newest=5, keep_best=1, provenance=origin
  )
  found, first = {}, exp.init_state()
  for step, score in enumerate(scores, start=1):
    params = jax.tree.map(lambda x, s=step: x + s, first.params)
    checkpointer.save(step, first.replace(params=params, step=jnp.int32(step)), score)
    found[step] = {"params": jax.device_get(params)}
  checkpointer.close()
  return found, origin.run


def test_a_run_becomes_a_file(tmp_path, capsys):
  """The checkpoint that is asked for, newest by default."""
  workdir = tmp_path / "run"
  workdir.mkdir()
  variables, name = saved_run(workdir, small_config(), [0.5, 0.25])
  for file, flag, step in (
    ("a", [], 2),
    ("b", ["--checkpoint=best"], 1),
    ("c", ["--checkpoint=1"], 1),
  ):
    run(workdir, tmp_path / f"{file}.npz", *flag)
    assert_same(weights.load_npz(tmp_path / f"{file}.npz"), variables[step])
  assert f"run step 2 of run {name}" in capsys.readouterr().out
  with pytest.raises(InputError, match=r"has no checkpoint 7; there are steps \[1, 2\]"):
    run(workdir, tmp_path / "d.npz", "--checkpoint=7")
  with pytest.raises(InputError, match="--checkpoint is for the workdir of a run"):
    run(RELEASED, tmp_path / "d.npz", "--checkpoint=best")


def test_a_run_of_rectangles_knows_its_sides(tmp_path, capsys):
  """16 tokens are 2 rows of 8, which the weights alone do not tell."""
  workdir = tmp_path / "run"
  workdir.mkdir()
  variables, _ = saved_run(workdir, small_config(image_size="8x32"), [None])
  run(workdir, tmp_path / "square.npz", "--image_size=16")
  assert "from 2x8 to 4x4" in capsys.readouterr().out
  wanted = weights.resize(variables[1], (2, 8), (4, 4), "interpolate")
  assert_same(weights.load_npz(tmp_path / "square.npz"), wanted)


@pytest.mark.parametrize(
  ("args", "grid", "method", "tokens_mlp_dim"),
  [
    (["--image_size=32"], (8, 8), "paper", 48),
    (["--image_size=32", "--method=interpolate"], (8, 8), "interpolate", 12),
    (["--image_size=24x16", "--from_image_size=16x16"], (6, 4), "interpolate", 12),
  ],
)
def test_another_size_and_a_new_head(tmp_path, args, grid, method, tokens_mlp_dim):
  run(RELEASED, tmp_path / "a.npz", "--num_classes=3", *args)
  variables = weights.load(tmp_path / "a.npz")
  origin = weights.describe(variables)
  assert (origin.fields["tokens_mlp_dim"], origin.fields["num_classes"]) == (tokens_mlp_dim, 3)
  model = models.build("mixer", **origin.fields)
  wanted = models.abstract_variables(model, (4 * grid[0], 4 * grid[1], 3))
  weights.check_match(variables, wanted, "a.npz")
  want = weights.resize(weights.load(RELEASED), (4, 4), grid, method)
  assert_same(variables, weights.replace_head(want, wanted))


@pytest.mark.parametrize(
  ("args", "message"),
  [
    ([RELEASED], "give two arguments"),
    ([RELEASED, "x.bin"], r"x\.bin must end in \.npz or \.safetensors"),
    ([RELEASED, "old.npz"], r"old\.npz exists"),
    ([RELEASED, "x.npz", "--image_size=30"], "4 does not divide the image of 30x30"),
    ([RELEASED, "x.npz", "--image_size=2x2x2"], "--image_size: .*'2x2x2'"),
    ([RELEASED, "x.npz", "--image_size=24", "--method=paper"], "6x6 tokens are no whole multiple of 4x4"),
    ([RELEASED, "x.npz", "--image_size=24", "--from_image_size=20"], "16 tokens, not for a grid of 5x5"),
    ([RELEASED, "x.npz", "--method=paper"], "need --image_size"),
    (["oblong.npz", "x.npz", "--image_size=24"], "--from_image_size"),
    (["half.npz", "x.npz", "--image_channels=1"], r"half\.npz .* any model:\n  values: stem/kernel"),
    (["sam/Mixer-B16", "x.npz"], "Did you mean 'sam/Mixer-B_16'"),
    ([".", "x.npz"], "is not the workdir of a run"),
  ],
)  # fmt: skip
def test_what_cannot_be_done_is_named_and_writes_nothing(tmp_path, monkeypatch, args, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "old.npz").write_bytes(b"mine")
  weights.save_npz("oblong.npz", mixers.random_variables(8, 12, **mixers.TINY))
  # The sum over three channels is beyond its type.
  weights.save_npz(
    "half.npz", jax.tree.map(lambda x: np.full(x.shape, 4e4, np.float16), weights.load(RELEASED))
  )
  with pytest.raises(InputError, match=message):
    run(*args)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["half.npz", "oblong.npz", "old.npz"]
  assert (tmp_path / "old.npz").read_bytes() == b"mine"


def test_the_command_reports_without_a_traceback(tmp_path):
  status, output, errors = runs.tool("convert", TIMM, tmp_path / "a.npz")
  assert status == 0, errors
  assert "a.npz: Mixer for 16 tokens, patch_size=8" in output
  (tmp_path / "page.npz").write_text("<html></html>")
  status, _, errors = runs.tool("convert", tmp_path / "page.npz", tmp_path / "b.npz")
  assert status == 2
  assert errors.startswith("error: ")
  assert "is a web page" in errors


def test_the_stem_for_another_number_of_channels(tmp_path, capsys):
  run(RELEASED, tmp_path / "grey.npz", "--image_channels=1")
  assert "the stem of 1 channel summed over its 3" in capsys.readouterr().out
  want = weights.replace_channels(weights.load_npz(RELEASED), 1)
  assert_same(weights.load_npz(tmp_path / "grey.npz"), want)
  with pytest.raises(InputError, match=r"images of 1 channels, not 4"):
    run(tmp_path / "grey.npz", tmp_path / "x.npz", "--image_channels=4")
