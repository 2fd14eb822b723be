"""The published model that the step is timed beside computes what ours does, forwards and in training."""

import argparse
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import family, gpu, published, step, step_profile, turns
from mixer_jax import models
from mixer_jax.losses import sigmoid_xent
from mixer_jax.training import normalization

SIZES = dict(patch_size=4, num_blocks=2, hidden_dim=16, tokens_mlp_dim=12, channels_mlp_dim=24)


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  image = jnp.asarray(rng.integers(0, 256, (3, 16, 16, 3), np.uint8))
  return image, jnp.asarray([0, 4, 2])


def random_params(model, image):
  params = jax.jit(model.init)(jax.random.key(0), published.normalize(image))["params"]
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  return tree.unflatten(
    [0.3 * jax.random.normal(k, p.shape) for k, p in zip(keys, leaves, strict=True)]
  )


@pytest.mark.campaign
def test_the_published_model_is_ours(batch):
  image, label = batch
  theirs = published.MlpMixer(num_classes=5, **SIZES)
  ours = models.build("mixer", num_classes=5, **SIZES)
  params = random_params(theirs, image)

  @jax.jit
  def loss(params):
    logits = ours.apply({"params": params}, normalization.unit(image), train=True)
    return jnp.mean(sigmoid_xent(logits, jax.nn.one_hot(label, 5)))

  logits = published.make_predict_step(theirs)(params, image)
  np.testing.assert_allclose(
    logits, jax.jit(ours.apply)({"params": params}, normalization.unit(image)), atol=2e-6
  )
  tx = published.make_optimizer(1e-3, 0.1)
  value, grads = jax.value_and_grad(loss)(params)
  updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
  wanted = jax.tree.map(jnp.add, params, updates)
  copy = jax.tree.map(jnp.copy, params)
  new, _, theirs_loss = published.make_train_step(theirs, tx)(copy, tx.init(params), image, label)
  assert float(theirs_loss) == pytest.approx(float(value), abs=2e-6)
  for tree in (new, wanted):
    for block in ("MixerBlock_0", "MixerBlock_1"):
      # A true gradient of zero, whose rounding Adam turns into motion.
      del tree[block]["token_mixing"]["Dense_1"]["bias"]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), new, wanted)


def test_flops_are_those_of_the_products_that_run():
  """By hand for S/32: 49 tokens, 8 blocks."""
  stem = 2 * 49 * 512 * 3 * 32**2
  forward = stem + 8 * 4 * 49 * 512 * (256 + 2048) + 2 * 512 * 1000
  case = step.Case({"name": "mixer", "variant": "S/32"}, 224, None)
  assert step.model_flops(case, "inference") == forward
  assert step.model_flops(case, "training") == 3 * forward


CHILD = """
import sys, time
from benchmarks import turns
def prepare(work, size):
  print("chatter")
  def run(calls):
    if work == "end": sys.exit("no such work")
    time.sleep(0.01 * size * calls)
  return run
turns.serve(lambda: prepare)
"""


def test_a_turn_lasts_as_long_as_wanted_and_a_lost_child_is_named(tmp_path):
  log = tmp_path / "child.log"
  command = [sys.executable, "-c", CHILD]
  with turns.Contestant("child", command, {"PYTHONPATH": str(step.ROOT)}, log) as child:
    answer = child.measure("sleep", 2, 0.2)
    assert answer["wall_s"] >= 0.02 > answer["cpu_s"]
    assert answer["wall_s"] * answer["calls"] >= 0.15
    with pytest.raises(RuntimeError, match=r"child ended at .*'end'.*; see .*child\.log"):
      child.measure("end", 1, 0.1)
  assert "chatter" in log.read_text() and "no such work" in log.read_text()


def test_what_cannot_run_beside_a_family_says_why(tmp_path):
  (tmp_path / "CycleMLP").mkdir()
  args = argparse.Namespace(tiny=True, rival_python=pathlib.Path("python"), authors=tmp_path)
  timed = {
    case.model["name"]: why for case, why in (family.make_case(args, f) for f in family.FAMILIES)
  }
  assert {*timed} == {*models.FAMILIES} - {"vit", "resnet", "mlp3d"}
  assert timed["res_mlp"] is timed["cycle_mlp"] is None
  assert timed["s2_mlp"] == "neither timm nor the authors have code"
  assert timed["ms_mlp"] == f"no MS-MLP in --authors={tmp_path}"
  args.rival_python = None
  assert family.make_case(args, "res_mlp-12")[1] == "no --rival_python"


@pytest.mark.campaign
def test_a_family_is_timed_beside_a_rival_that_ends(tmp_path, monkeypatch):
  flags = ["--tiny", "--contestant", "ours", "eager", "--families", "res_mlp-12"]
  rival = f"--rival_python={sys.executable}"  # which has no PyTorch
  output = tmp_path / "families.json"
  monkeypatch.setattr(
    sys, "argv", ["family", *flags, rival, f"--workdir={tmp_path}", f"--json={output}"]
  )
  family.main()
  rows = json.loads(output.read_text())["rows"]
  assert [row.get("work", "not run") for row in rows] == [*step.WORKS, "not run"]
  assert all(0 < row["mfu"] < 1.5 for row in rows if "mfu" in row)
  assert "eager ended at" in rows[-1]["not_run"] and ".log" in rows[-1]["not_run"]
  assert output.with_suffix(".md").read_text().count("not run") == 1


ROW = '{"rows": [{"contestant": "ours", "not_run": "no memory"}]}'


def test_the_clock_ends_a_part_and_its_children_and_the_report_lists_it(tmp_path, monkeypatch):
  sleep = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD_OF_PART!r}])"

  def command_of(args, part):
    write = f"open({str(gpu.json_of(args, part))!r}, 'w').write({ROW!r})"
    more = {"slow": f"; {sleep}", "bad": "; raise SystemExit(3)"}.get(part.name, "")
    return [sys.executable, "-c", write + more]

  parts = [gpu.Part(name, "step", "") for name in ("good", "bad", "slow", "late")]
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(gpu, "PARTS", parts)
  monkeypatch.setattr(gpu, "LEAST", 0.5)
  monkeypatch.setattr(gpu, "ROOT", tmp_path)
  monkeypatch.setattr(gpu, "command_of", command_of)
  monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--minutes=0.05", f"--workdir={tmp_path}"])
  gpu.main()
  report = json.loads((tmp_path / "gpu.json").read_text())
  assert {*report["left_out"]} == {"bad", "slow", "late"}
  assert "status 3" in report["left_out"]["bad"] and report["left_out"]["late"] == "no time"
  assert [len(report["parts"][name]) for name in ("good", "slow", "late")] == [1, 1, 0]
  assert "no memory" in (tmp_path / "gpu.md").read_text()
  child = int((tmp_path / "child").read_text())
  assert not pathlib.Path(f"/proc/{child}").exists() or "Z" in status_of(child)


CHILD_OF_PART = "import os, time; open('child', 'w').write(str(os.getpid())); time.sleep(100)"


def status_of(process):
  return pathlib.Path(f"/proc/{process}/stat").read_text().split()[2]


def test_operations_are_grouped_by_the_layer_that_the_program_names():
  path = "jit(train_step)/jvp(Model)"
  hlo = f"""
  %dot.1 = f32[2,3]{{1,0}} dot(%a, %b), metadata={{op_name="{path}/MixerBlock_0/token_mixing/Dense_0/dot_general" stack_frame_id=1}}
  ROOT %fusion.2 = f32[] fusion(%dot.1), calls=%f, metadata={{op_name="{path}/MixerBlock_0/LayerNorm_1/add"}}
  gelu = f32[] fusion(%dot.1), metadata={{op_name="{path}/MixerBlock_0/token_mixing/tanh"}}
  """
  names = step_profile.op_names(hlo)
  times = {"dot.1": 3.0, "fusion.2": 2.0, "gelu": 1.0, "memset": 0.5}
  assert step_profile.grouped(times, names)["groups_ms"] == {
    "token mixing: products": 3.0,
    "norms and residuals": 2.0,
    "token mixing": 1.0,
    step_profile.REST: 0.5,
  }


@pytest.mark.campaign
def test_all_that_is_measured_on_a_gpu_runs_on_a_cpu(tmp_path, monkeypatch):
  flags = ["--tiny", "--minutes=60", f"--workdir={tmp_path}", f"--rival_python={sys.executable}"]
  monkeypatch.setattr(sys, "argv", ["gpu", *flags])
  gpu.main()
  report = json.loads((tmp_path / "gpu.json").read_text())
  assert not report["left_out"]
  for rows in report["parts"].values():  # all but PyTorch's, which this Python does not have
    assert {row["contestant"] for row in rows if "not_run" in row} <= {"eager", "compiled", "tuned"}
  (resumed,) = report["parts"]["resumed"]
  assert resumed["losses_identical"] and resumed["weights_identical"]
