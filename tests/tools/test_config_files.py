"""Configurations by name: found from every directory, described, and their errors placed."""

import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile

import pytest
from absl import flags
from ml_collections import config_flags

from mixer_jax.errors import InputError
from mixer_jax.tools import command, config_files, configs
from tests import runs
from tests.marks import long


@pytest.mark.parametrize("name", ["jft", "jft.py", "configs/jft.py", "jft:L/16,epochs=14"])
def test_shipped_configurations_are_found_from_every_directory(tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  assert config_files.load(name).num_classes == 18_291


def test_a_copy_works_from_everywhere_and_comes_first(tmp_path, monkeypatch):
  source = (config_files.SHIPPED / "imagenet.py").read_text()
  (tmp_path / "jft.py").write_text(source.replace("4096", "512"))
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(runs.ROOT))])
  assert config_files.load("jft.py:S/16").batch_size == 512


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("config.batch_size = 1 // 0", r"own\.py, line 5: ZeroDivisionError"),
    ("config.batch_sise = 1", r"own\.py, line 5: .*no key 'batch_sise'.*'batch_size'"),
    ("config batch_size", r"own\.py, line 5: SyntaxError"),
  ],
)
def test_an_error_in_a_configuration_names_its_line(tmp_path, line, message):
  path = tmp_path / "own.py"
  begin = "from mixer_jax.configs import common\n\ndef get_config():\n"
  path.write_text(f"{begin}  config = common.get_config()\n  {line}\n  return config\n")
  with pytest.raises(InputError, match=message):
    config_files.load(str(path))


def test_a_mistyped_name_gets_the_nearest():
  with pytest.raises(InputError, match=r"configs/imagnet\.py.*'imagenet'"):
    config_files.load("configs/imagnet.py:B/16")


@pytest.mark.parametrize("name", config_files.names())
def test_descriptions_name_every_argument(name):
  with pytest.raises(InputError) as error:
    config_files.load(f"{name}:?=")
  known = str(error.value).partition("known: ")[2]
  described = configs.description("finetune" if name == "finetune_table3" else name)
  for argument in re.findall(r"(\w+)=…", known):
    assert re.search(rf"\b{argument}\b", described), argument


@pytest.mark.parametrize(
  "tool", ["eval", *map(long, ("predict", "train", "transfer", "prepare", "plan", "paper"))]
)
def test_help_has_all_flags_of_the_project_and_no_others(tmp_path, tool):
  result = _console(tmp_path, tool, "--help", cwd=tmp_path, stdout=subprocess.PIPE, check=True)
  described = re.findall(r"^  --(?:\[no\])?(\w+)", result.stdout, re.MULTILINE)
  assert not {"verbosity", "pdb", "flagfile", "helpfull"}.intersection(described)
  if tool == "eval":
    wanted = {"workdir", "weights", "checkpoint", "config", "distributed", "coordinator", "dataset"}
    assert wanted <= {*described}


def _console(tmp_path, *arguments, **options):
  """Runs `mixer-jax …` as an installed package does."""
  script = tmp_path / "mixer-jax"
  script.write_text("from mixer_jax.tools import main; main.main()")
  command, env = [sys.executable, script, *arguments], {"PYTHONPATH": str(runs.ROOT)}
  return subprocess.run(command, env=env, stderr=subprocess.PIPE, text=True, **options)


def test_an_installed_package_names_its_own_commands(tmp_path):
  shown = _console(tmp_path, "configs", "finetune", stdout=subprocess.PIPE).stdout
  assert "mixer-jax train --workdir=DIR" in shown and "train.py" not in shown
  wrong = _console(tmp_path, "eval", "--workdir=DIR", "--config.batch_size=2").stderr
  assert "--config.batch_size" in wrong and "add --config=NAME" in wrong


def test_a_list_whose_reader_has_gone_ends_without_a_word(tmp_path):
  reader, writer = os.pipe()
  os.close(reader)
  done = _console(tmp_path, "configs", stdout=writer)
  os.close(writer)
  assert (done.returncode, done.stderr) == (-signal.SIGPIPE, "")


@pytest.mark.campaign
def test_a_wheel_has_the_configurations_inside_the_package(tmp_path):
  for name in ("configs", "mixer_jax"):
    shutil.copytree(runs.ROOT / name, tmp_path / name, symlinks=True)
  for name in ("pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(runs.ROOT / name, tmp_path)
  build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "out", "."]
  subprocess.run(build, cwd=tmp_path, check=True)
  with zipfile.ZipFile(next((tmp_path / "out").glob("*.whl"))) as wheel:
    names = wheel.namelist()
    assert {f"mixer_jax/configs/{name}.py" for name in config_files.names()} <= {*names}
    assert {n.partition("/")[0].partition("-")[0] for n in names} == {"mixer_jax"}
    (points,) = (n for n in names if n.endswith("entry_points.txt"))
    assert "mixer-jax = mixer_jax.tools.main:main" in wheel.read(points).decode()


def test_none_unsets_a_key_that_has_text(monkeypatch):
  argv = ["x", "--config=configs/kinetics.py", "--config.init.weights=None"]
  values = flags.FlagValues()
  flag = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
  values(argv)
  monkeypatch.setattr(flags, "FLAGS", values)
  assert command.loaded(flag).init.weights is None
