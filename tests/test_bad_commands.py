"""Commands with a mistake in them end at once, with one clear error and nothing written."""

import sys

import pytest

from tests import runs
from tests.marks import long


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    long(["--config=configs/quickstart.py", "--workdir=W", "--config.lerning_rate=1"], "learning_rate"),
    (["--config=configs/quickstart.py", "--workdir=W", "--config.batch_size=many"], "batch_size=many: expected a whole number"),
    (["--config=configs/quickstart.py", "--workdir=W", "--batch_size=32"], "--config.batch_size=32"),
    long(["--config=configs/quickstart.py", "--workdir=W", "--config.evaluators.val=None"], "--config.evaluators.val is a section"),
    long(["--config=configs/quickstart.py", "--workdir=W", "stray"], "unexpected argument 'stray'"),
    long(["--config=configs/nowhere.py", "--workdir=W"], "configs/nowhere.py"),
    (["--config=configs/jft.py:B/16,epoch=3", "--workdir=W"], "epoch=3"),
    long(["--config=configs/quickstart.py", "--workdir=W", "--process_id=0"], "need --distributed"),
    (["--config=configs/quickstart.py", "--workdir=W", "--config.data.data_dir=/dev/null/x"], "cannot be opened or prepared"),
    long(["--config=tests/golden/randaugment_index.json", "--workdir=W"], "error: "),
    (["--config=configs/quickstart.py", "--workdir="], "--workdir is ''"),
    long(["--config=configs/quickstart.py", "--workdir=W", "--config.total_steps=2", "--config.total_epochs=3"], "set one of them to None"),
    (["--config=configs/quickstart.py"], "--workdir"),
    (["--workdir=W"], "--config"),
    long(["--config=configs/quickstart.py", "--workdir=W", "--config.mesh.data=3"], "there are 1 devices"),
    (["--config=configs/imagenet.py:B/16", "--workdir=W", "--config.batch_size=8", "--config.data.data_dir=None"], "python -m mixer_jax.tools.prepare imagenet2012\n"),
    (["--workdir=W", "--config.data.dataset=None"], "add --config=NAME"),
  ],
)  # fmt: skip
def test_bad_commands_end_with_one_clear_error(tmp_path, arguments, message):
  arguments = [a.replace("=W", f"={tmp_path / 'run'}") for a in arguments]
  status, output = runs.run([sys.executable, "train.py", *arguments])
  assert status != 0
  assert message in output, output
  assert "Traceback" not in output, output
  assert not (tmp_path / "run").exists()


QUICK = "--config=configs/quickstart.py"


@pytest.mark.parametrize(
  ("tool", "arguments", "message"),
  [
    ("benchmark", [], "--config is missing"),
    ("benchmark", [QUICK, "--batch_sizes=8,x"], "--batch_sizes=8,x must be numbers"),
    ("benchmark", [QUICK, "--work=sleep"], "--work=sleep is none of"),
    ("export", ["--output=model.pb"], "must end with .stablehlo or .onnx"),
    ("features", ["x.png"], "give image files, directories or globs, and a file"),
    ("features", ["x.png", "--output=maps.csv"], "must end with .npz"),
    ("paper", ["table5"], "'table5'"),
    ("paper", [], "0 names"),
    ("paper", ["table1", "--weights=a.npz"], "--weights goes with figure5"),
    ("paper", ["table1", "--measure_throughput"], "goes with table2 and table3"),
    ("plan", [QUICK, "--topology=v3:4"], "topology 'v3:4' is unknown. Known"),
    ("plan", [QUICK, "--config.batch_sise=32"], "batch_sise"),
    ("plan", [QUICK, "--fit=fast"], "fit"),
    ("predict", [], "give image files"),
    ("prepare", ["digts"], "digts"),
  ],
)
def test_bad_tools_end_with_one_clear_error(tool, arguments, message):
  status, output, errors = runs.tool(tool, *arguments)
  assert (status, output) == (2, "")
  assert message in errors, errors


def test_the_embedded_data_set_can_be_prepared_by_command(tmp_path):
  status, output, errors = runs.tool("prepare", "digits", f"--data_dir={tmp_path}")
  assert status == 0, errors
  assert f"digits is prepared in {tmp_path}/digits/1.0.0" in output
