"""Tables: equal to the paper where they are computed; means of what runs left, and nothing else."""

import csv
import io
import json

import pytest

from configs import finetune, finetune_table3, imagenet, jft, quickstart
from mixer_jax.errors import InputError
from mixer_jax.tools import config_files, paper_numbers, throughput
from mixer_jax.tools.paper_tables import comparison, results, rows, tables
from mixer_jax.tools.paper_tables.comparison import Comparison
from tests.conftest import GOLDEN
from tests.tools.paper_tables import made

GRID = {0.003: 0.7, 0.01: 0.8, 0.03: 0.75, 0.06: 0.1}
B16 = "imagenet21k/Mixer-B_16"


def compared(table):
  return [cell for row in table.rows for cell in row if isinstance(cell, Comparison)]


def cell(table, row, column):
  (line,) = [r for r in table.rows if [str(c) for c in r[: len(row)]] == list(row)]
  return line[list(table.header).index(column)]


def test_the_shipped_numbers_are_the_papers():
  for name in ("table1_architectures", "table4_pretraining"):
    with (GOLDEN / f"{name}.csv").open() as f:
      assert list(paper_numbers.rows(name)) == list(csv.DictReader(f))
  counts = {"table2_transfer": 10, "table3_scale": 26}
  assert {name: len(paper_numbers.rows(name)) for name in counts} == counts


def test_table1_equals_the_paper_to_the_digit():
  cells = compared(tables.table1())
  assert len(cells) == 7 * 8
  assert all(c.paper == c.ours and c.difference == 0 for c in cells)


def test_table4_equals_the_paper():
  cells = compared(tables.table4())
  assert len(cells) == 8 * 8
  assert all(c.texts()[2] == "equal" for c in cells), [c.texts() for c in cells]


def test_table4_shows_a_configuration_that_differs():
  config = imagenet.get_config("B/16")
  config.learning_rate, config.data.ops = 0.002, "decode|inception_crop|randaugment(3, 9)"
  read = tables.hyperparameters(config)
  assert [read["learning_rate"], read["randaugment_layers"]] == ["0.002", "3"]
  assert read["randaugment_magnitude"] == "9"


def test_nothing_run_shows_no_number_and_the_commands(tmp_path):
  table = tables.table3(results.scan(tmp_path / "none"))
  assert all(c.ours is None and c.difference is None for c in compared(table))
  assert len(table.missing) == 26 + 2  # every row, the throughput and the plans
  text = comparison.as_text(table)
  assert "after fine-tuning" in text
  # What the terminal shows last is the table.
  assert text.rindex("python train.py") < text.index("Table 3")
  file = "configs/jft.py:L/16,epochs=14"
  assert f"python train.py --config={file} --workdir={tmp_path}/none/pretrain/" in text
  assert config_files.load(file).total_epochs == 14.0  # the command's configuration is there
  assert "paper: 450 TPUv3-core-days" in text
  assert "--weights=imagenet21k/Mixer-B_16" in text  # released: nothing to pre-train


def test_table3_takes_means_over_seeds_at_the_best_rate(tmp_path):
  made.transfer(
    tmp_path / "table3", B16, "imagenet2012", 224, GRID, (0.80, 0.81, 0.82), real=(0.85, 0.86, 0.88)
  )
  table = tables.table3(results.scan(tmp_path))
  row = ("ImageNet-21k", "Mixer-B/16", "224")
  top1 = cell(table, row, "ImageNet top-1 %")
  assert (top1.paper, top1.ours) == (80.64, pytest.approx(81.0))
  assert top1.texts() == ["80.64", "81.00", "+0.36"]
  assert cell(table, row, "ReaL top-1 %").texts() == ["85.80", "86.33", "+0.53"]
  assert cell(table, row, "Avg 5 %").ours is None
  assert sum(c.ours is not None for c in compared(table)) == 2
  assert not table.left_out
  (missing,) = [m for m in table.missing if m.what.startswith("ImageNet-21k, Mixer-B/16")]
  assert missing.what.endswith(": avg5")
  assert len(missing.commands) == 1 and "--datasets=five" in missing.commands[0]


def test_runs_of_an_earlier_version_count(tmp_path):
  """Their configurations have other keys."""
  made.transfer(tmp_path, B16, "imagenet2012", 224, GRID, (0.5, 0.6, 0.7))
  for path in tmp_path.rglob("config.json"):
    config = json.loads(path.read_text())
    config["evaluation"], config["log"]["plots"] = config.pop("evaluators")["val"], False
    config["fewshot"] = {"dataset": None}
    del config["best"], config["evaluation"]["type"], config["image_channels"]
    path.write_text(json.dumps(config))
  table = tables.table3(results.scan(tmp_path))
  assert cell(table, ("ImageNet-21k", "Mixer-B/16", "224"), "ImageNet top-1 %").ours == 60.0
  assert not table.left_out


def test_average_of_five_is_of_all_five(tmp_path):
  for i, dataset in enumerate(
    ("imagenet2012", "cifar10", "cifar100", "oxford_iiit_pet", "oxford_flowers102")
  ):
    made.transfer(tmp_path, B16, dataset, 224, GRID, (0.5 + i / 10,) * 3)
  table = tables.table3(results.scan(tmp_path))
  average = cell(table, ("ImageNet-21k", "Mixer-B/16", "224"), "Avg 5 %")
  assert average.texts() == ["92.50", "70.00", "−22.50"]


def test_what_cannot_be_used_is_named_and_left_out(tmp_path):
  made.transfer(tmp_path / "table3", B16, "imagenet2012", 224, GRID, (0.8, 0.8))  # two of three
  # Table 2's crop; a batch of another size; half a run; a file that is none.
  made.transfer(tmp_path / "table2", B16, "cifar10", 224, {0.01: 0.8}, (), make=finetune.get_config)
  config = finetune_table3.get_config(f"weights={B16},dataset=cifar10,size=224,lr=0.01")
  config.batch_size = 256
  made.run(tmp_path / "small_batch", config, [{"step": 10_000}], result=0.99)
  config.batch_size = 512
  made.run(tmp_path / "half", config, [{"step": 300, "val/top1": 0.99}])
  made.run(tmp_path / "digits", quickstart.get_config(), [{"step": 606, "val/top1": 0.98}])
  found = results.scan(tmp_path)
  table = tables.table3(found)
  assert all(c.ours is None for c in compared(table))
  reasons = {item.path.removeprefix(f"{tmp_path}/"): item.reason for item in table.left_out}
  assert (
    "evaluators.val.ops" in reasons["table2/imagenet21k-Mixer-B_16/cifar10/224/dev-lr0.01-seed0"]
  )
  assert "batch_size: 256 -> 512" in reasons["small_batch"]
  assert reasons["half"] == "half a run: step 300 of 10000"
  assert "another configuration than" in reasons["digits"]
  for path in reasons:
    assert path in comparison.as_text(table)


def test_own_pretraining_comes_before_the_released_weights_and_has_to_be_finished(tmp_path):
  config = imagenet.get_config("B/16")
  config.seed, config.data.num_workers = 3, 4
  config.mesh.data = 1
  made.run(tmp_path / "mine", config, [{"step": 92_896, "loss": 1.0}])
  table = tables.table3(results.scan(tmp_path))
  row = ("ImageNet", "Mixer-B/16", "224")
  assert cell(table, row, "our weights") == "imagenet1k/Mixer-B_16"
  assert [i.reason for i in table.left_out] == ["half a run: step 92896 of 92897"]
  made.write_lines(tmp_path / "mine" / "metrics.jsonl", [{"step": 92_897, "loss": 1.0}])
  table = tables.table3(results.scan(tmp_path))
  assert cell(table, row, "our weights") == str(tmp_path / "mine")
  assert not table.left_out


def test_results_must_be_a_directory(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="--results="):
    results.scan(tmp_path / "file")


def test_csv_has_paper_ours_and_difference_apart():
  table = comparison.ComparisonTable(
    "t", ("model", "top-1"), [["a|b", Comparison(80.64, 81.0, 2)], ["c", Comparison(None, None, 2)]]
  )
  lines = list(csv.DictReader(io.StringIO(comparison.as_csv(table))))
  assert lines[0] == {"model": "a|b", "top-1 (paper)": "80.64", "top-1 (ours)": "81.0",
                      "top-1 (difference)": "0.36"}  # fmt: skip
  assert set(lines[1].values()) == {"c", ""}
  assert "| a\\|b | 80.64 / 81.00 / +0.36 |" in comparison.as_markdown(table)


def test_throughput_is_read_for_this_kind_of_device_alone(tmp_path):
  measured = throughput.Throughput(123.4, 64, {64: 123.4})
  throughput.save(tmp_path, throughput.key("Mixer-B/16", 224), measured)
  kept = json.loads((tmp_path / "throughput.json").read_text())
  kept["TPU v3"] = {"Mixer-L/16 224": {"images_per_sec_per_core": 419.0}}
  (tmp_path / "throughput.json").write_text(json.dumps(kept))
  table = tables.table3(results.scan(tmp_path))
  speeds = [r[list(table.header).index("images/s/core")].ours for r in table.rows]
  assert [s for s in speeds if s is not None] == [123.4] * 3  # of three pre-trainings


def test_plans_are_read_for_tpu_v3_alone(tmp_path):
  estimate = {"core_days": 61.4, "inference_images_per_sec_per_core": 2378.0}
  good, other = (
    rows.Pretraining("JFT-300M", "Mixer-B/16", 7.0),
    rows.Pretraining("JFT-300M", "Mixer-L/16", 7.0),
  )
  (tmp_path / "plans").mkdir()
  for p, devices in ((good, "v3:4x4"), (other, "v5e:4x4")):
    plan = {"devices": devices, "estimate": estimate}
    (tmp_path / "plans" / f"{p.name}.json").write_text(json.dumps(plan))
  table = tables.table3(results.scan(tmp_path))
  days = [r[list(table.header).index("TPUv3-core-days (planned)")] for r in table.rows]
  assert [d.texts() for d in days if d.ours is not None] == [["80", "61", "−19"]]
  speeds = [r[list(table.header).index("planned for TPU v3")] for r in table.rows]
  assert [s for s in speeds if s != "–"] == ["2,378"] * 3  # of the same model, whatever its data
  assert [i.path for i in table.left_out] == [f"{tmp_path}/plans/{other.name}.json"]
  (plans,) = [m for m in table.missing if m.what.startswith("plans of")]
  assert not any(good.file in c for c in plans.commands)
  assert any(f"--config={other.file} --topology=v3:16x16 --json" in c for c in plans.commands)
  assert "planned: at least 61.4 TPUv3-core-days" in comparison.as_text(table)


def test_jft_rows_are_told_apart_by_epochs():
  files = {p.file for p in rows.everything() if p.dataset == "JFT-300M" and p.model == "Mixer-L/16"}
  assert {config_files.load(f).total_epochs for f in files} >= {7.0, 14.0, 233.0}
  for p in rows.everything():
    config = rows.wanted(p)
    assert config.total_epochs == p.epochs and config.data.subset_percent == p.subset
    assert config.model.name == rows.model_fields(p.model)["name"]
  assert jft.get_config("L/16").total_epochs == 7.0
