"""The paper's command as a user gives it."""

import cv2
import numpy as np

from mixer_jax import weights
from mixer_jax.figures import hidden_units
from tests import pages, runs
from tests.conftest import GOLDEN


def test_a_table_is_printed_and_written(tmp_path):
  status, output, errors = runs.tool("paper", "table4", f"--results={tmp_path}")
  assert status == 0, errors
  assert "0.003 / 0.003 / equal" in output
  assert "| Mixer-B | ImageNet | 300 / 300 / equal |" in (tmp_path / "paper/table4.md").read_text()
  assert "Mixer-B,ImageNet,300,300," in (tmp_path / "paper/table4.csv").read_text()


def test_figure5_of_a_weights_file_is_written_as_png_and_svg(tmp_path):
  file = GOLDEN / "mixer_tiny_checkpoint.npz"
  status, _, errors = runs.tool("paper", "figure5", f"--weights={file}", f"--output={tmp_path}")
  assert status == 0, errors
  assert "<svg" in (tmp_path / "figure5.svg").read_text()
  drawn = cv2.imread(str(tmp_path / "figure5.png"))[..., ::-1].reshape(-1, 3)
  shown = np.concatenate(
    [m.reshape(-1, 3) for m in hidden_units.paired_mosaics(weights.load_npz(file)["params"])]
  )
  assert pages.lacking(drawn, shown) < 2 / 255


def test_figures_of_weights_that_were_never_trained_say_the_commands(tmp_path):
  status, _, errors = runs.tool("paper", "figure7", f"--results={tmp_path}")
  assert status == 2
  assert "python train.py --config=configs/jft.py:B/32,epochs=7" in errors
  (tmp_path / "vit.npz").write_bytes(b"")
  unread = f"--weights={tmp_path / 'vit.npz'}"
  assert runs.tool("paper", "figure5", unread, f"--output={tmp_path}")[0] == 2
