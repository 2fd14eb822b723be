"""Figures: what is drawn is what the paper says and what runs left."""

from typing import Any

import numpy as np
import pytest

from configs import finetune, jft
from mixer_jax import schema
from mixer_jax.data import permutations
from mixer_jax.tools import paper_numbers
from mixer_jax.tools.paper_tables import comparison, families, figures, results, rows
from tests.conftest import GOLDEN
from tests.models.test_relatives import COUNTS
from tests.tools.paper_tables import made
from tests.tools.paper_tables.test_tables import GRID, compared


def points(axes, marker):
  return sorted(
    (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
    for line in axes.lines
    if line.get_marker() == marker and len(line.get_xdata()) == 1
  )


def pretrained(tmp_path, argument, shots, *, fewshot="imagenet2012", change=None):
  """Writes a finished JFT-300M run with 5-shot accuracies at some steps."""
  config = jft.get_config(argument)
  config.evaluators.fewshot = {"type": "fewshot", "dataset": fewshot}
  if change:
    change(config)
  end = rows.total_steps(f"configs/jft.py:{argument}")
  steps = np.linspace(end / len(shots), end, len(shots)).astype(int).tolist()
  records = [{"step": s, "fewshot/5shot": v} for s, v in zip(steps, shots, strict=True)]
  made.run(tmp_path / argument.replace("/", "-"), config, records)
  return list(zip(steps, shots, strict=True))


def test_figure2_shows_the_papers_points_and_ours_where_run(tmp_path):
  made.transfer(
    tmp_path, "imagenet21k/Mixer-L_16", "imagenet2012", 448, GRID, (0.84, 0.85, 0.86),
    make=finetune.get_config,
  )  # fmt: skip
  pretrained(tmp_path, "L/16,epochs=70,subset=10", [0.3, 0.5])
  pretrained(tmp_path, "L/16,epochs=23,subset=30", [0.3, 0.6])
  # Few-shot on another data set is not the figure's.
  pretrained(tmp_path, "L/16,epochs=233,subset=3", [0.3, 0.4], fewshot="cifar100")
  drawn = figures.figure2(results.scan(tmp_path))
  left, right = drawn.figure.axes
  paper = [(float(r["tpuv3_core_days"]), float(r["imagenet_top1"])) for r in paper_numbers.rows("table2_transfer")]  # fmt: skip
  assert points(left, "o") == sorted(paper)
  assert points(left, "D") == [(410.0, pytest.approx(85.0))]
  (line,) = right.lines
  assert list(zip(*line.get_data(), strict=True)) == [(10.0, 50.0), (30.0, 60.0)]
  assert "Mixer-L/16 10 %: 50.00; Mixer-L/16 30 %: 60.00" in drawn.table.notes[-1]
  what = [m.what for m in drawn.table.missing]
  assert any(w.startswith("Mixer-L/16, 3 % of JFT-300M for 233 epochs") for w in what)
  assert not any(w.startswith("Mixer-L/16, 10 %") for w in what)
  assert not drawn.table.left_out


def test_figure3_is_table_3s_jft_rows_at_224(tmp_path):
  drawn = figures.figure3(results.scan(tmp_path))
  chosen = [r for r in paper_numbers.rows("table3_scale") if r["pretrain"] == "JFT-300M" and r["image_size"] == "224"]  # fmt: skip
  assert len(drawn.table.rows) == len(chosen) == 15
  left, right = drawn.figure.axes
  for axes, column in ((left, "tpuv3_core_days"), (right, "images_per_sec_per_tpuv3_core")):
    assert points(axes, "o") == sorted(
      (float(r[column]), float(r["imagenet_top1"])) for r in chosen
    )
    assert points(axes, "D") == []
    labels = [label.get_window_extent() for label in axes.texts]
    assert sum(label.count_overlaps(labels) for label in labels) == len(chosen)  # each with itself
    assert all(axes.bbox.x0 < label.x0 and label.x1 < axes.bbox.x1 for label in labels)


def test_figure4_draws_both_permutations_beside_the_original(tmp_path):
  def permute(order):
    def change(config):
      config.evaluators.fewshot.ops = schema.Fewshot.ops
      for section in (config.data, config.evaluators.val, config.evaluators.fewshot):
        section.ops += order

    return change

  original = pretrained(tmp_path, "B/16", [0.4, 0.6])
  (tmp_path / "B-16").rename(tmp_path / "original")
  pixels = pretrained(tmp_path, "B/16", [0.2, 0.33], change=permute("|permute_pixels"))
  drawn = figures.figure4(results.scan(tmp_path))
  photo, patches, all_pixels, mixer = drawn.figure.axes[:4]
  image = photo.images[0].get_array()
  for shown, order in (
    (patches, permutations.order_of_patches((224, 224), 16, 0)),
    (all_pixels, permutations.order_of_pixels((224, 224), 0)),
  ):
    np.testing.assert_array_equal(shown.images[0].get_array(), permutations.apply(image, order))
  assert mixer.get_title() == "Mixer-B/16"
  curves = [list(zip(*line.get_data(), strict=True)) for line in mixer.lines]
  assert curves == [[(s, 100 * v) for s, v in curve] for curve in (original, pixels)]
  lost = {(r[0], r[1]): r[3] for r in drawn.table.rows}
  cell = lost["Mixer-B/16", "all pixels permuted"]
  assert (cell.paper, cell.ours) == (45.0, pytest.approx(45.0))
  assert sum(c.ours is not None for c in compared(drawn.table)) == 3
  commands = [c for m in drawn.table.missing for c in m.commands]
  assert len(commands) == 4
  assert sum("permute_patches(16)" in c for c in commands) == 2
  assert sum("configs/baselines.py:BiT-R50x1,data=jft" in c for c in commands) == 3


PAGE = (GOLDEN.parents[1] / "docs/families.md").read_text()


def test_the_page_of_families_has_the_commands_table(monkeypatch):
  """The MACs, of which the known ones are rounded, to 0.06; the test below has them whole. MLP-3D takes no images."""
  known = {(f, v, ""): (n, macs or 0.0) for f, v, n, macs in COUNTS if f != "mlp3d"} | {
    ("mixer", "B/16", ""): (59_880_472, 12.602), ("mixer", "B/16", "circulant"): (58_085_992, 11.569),
    ("res_mlp", "36", "circulant"): (43_356_904, 8.913),
  }  # fmt: skip
  printed = paper_numbers.rows("families")
  assert {(r["family"], r["variant"], r["mixing"]) for r in printed} == known.keys()
  monkeypatch.setattr(families, "counted", lambda r: known[r["family"], r["variant"], r["mixing"]])
  figure, table = families.families()
  lines: Any = table.rows
  page, _, _ = PAGE.partition("## Video")
  shown = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
  assert list(table.header) == shown[0]
  for row, cells in zip(lines, shown[2:], strict=True):
    assert [*row[:3], *row[4:]] == [*cells[:3], *cells[4:]]
    assert row[3].ours == 0 or abs(float(cells[3].split(" / ")[1]) - row[3].ours) < 0.06
  with_top1 = [row for row in lines if row[4] != comparison.NOTHING]
  assert points(figure.axes[0], "o") == sorted((row[3].ours, float(row[4])) for row in with_top1)


@pytest.mark.campaign
def test_the_page_of_families_is_what_the_command_prints():
  text = comparison.as_markdown(families.families().table)
  assert text.partition("\n\n")[2] in PAGE
