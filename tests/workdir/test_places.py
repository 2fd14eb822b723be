"""What lies in the place of a checkpoint, or beside it: other checkpoints, other programs' files, nodes that are no files."""

import os
import pathlib
import shutil

import numpy as np
import pytest
from etils import epath

from mixer_jax.errors import InputError
from mixer_jax.workdir import checkpoint, restore
from mixer_jax.workdir import directory as workdirs
from tests.marks import long
from tests.workdir.test_provenance import describe


def save(workdir, *steps, origin=None):
  """Saves a tiny state at these steps; by the second run that starts in the workdir or a later one, if there is one."""
  saver = checkpoint.Checkpointer(workdir, keep_newest=3, keep_best=1, provenance=origin)
  for step in steps:
    state = {"step": np.int32(step), "params": {"a": np.arange(4.0)}, "batch_stats": {}, "ema": {}}
    saver.save(step, state, 0.1 * step)
  saver.close()


@pytest.fixture
def workdir(tmp_path):
  """The workdir of a run with checkpoints of steps 1, 2 and 3."""
  directory, origin = workdirs.path_of(str(tmp_path / "run")), describe()
  workdirs.create(directory, origin.configuration, origin.run)
  save(directory, 1, 2, 3, origin=origin)
  return directory


@pytest.mark.parametrize("name", ["lr=[0.1,0.2]", long("["), long("*?"), long("ü %41 #'\"~$HOME")])
def test_checkpoints_are_read_back_whatever_the_workdir_is_called(tmp_path, name):
  directory = workdirs.path_of(str(tmp_path / name / "run"))
  save(directory, 1, 2)
  assert checkpoint.find_intact(directory) == (2, {})
  np.testing.assert_array_equal(restore.load_variables(directory, 2)["params"]["a"], np.arange(4.0))


@pytest.mark.parametrize("name", ["a\\[b", "\udcff", "gs://bucket/[a]"])
def test_a_name_below_which_nothing_can_be_read_back_is_refused(name):
  with pytest.raises(InputError, match=r"has the character '.{1,7}'"):
    workdirs.path_of(name)


def test_a_checkpoint_counts_only_if_it_can_be_restored(tmp_path):
  """Orbax, given another path, leaves the manifest out without an error; the checkpoint before stays."""
  directory = epath.Path(tmp_path / "[a]")
  with pytest.raises(checkpoint.SaveError, match=r"without manifest\.ocdbt"):
    save(directory, 1)
  assert checkpoint.steps(directory) == []


def swap(checkpoints):
  shutil.move(checkpoints / "3", checkpoints / "aside")
  shutil.move(checkpoints / "1", checkpoints / "3")
  shutil.move(checkpoints / "aside", checkpoints / "1")


@pytest.mark.parametrize(
  ("misplace", "found", "damaged"),
  [
    (lambda d: shutil.move(d / "3", d / "7"), 2, [7]),
    (lambda d: shutil.copytree(d / "1", d / "7"), 3, [7]),
    (swap, 2, [1, 3]),
  ],
  ids=["renamed", "copied", "swapped"],
)
@pytest.mark.parametrize("carries", [True, False])
def test_what_is_stored_says_the_step(tmp_path, workdir, misplace, found, damaged, carries):
  if not carries:  # as earlier versions saved it: the state alone says the step
    workdir = workdirs.path_of(str(tmp_path / "earlier"))
    save(workdir, 1, 2, 3)
    damaged = damaged[-1:]
  misplace(pathlib.Path(workdir / "checkpoints"))
  intact = checkpoint.find_intact(workdir)
  assert (intact.step, sorted(intact.damaged)) == (found, damaged)
  with pytest.raises(InputError, match="is damaged: "):
    checkpoint.choose(workdir, damaged[-1])
  if carries:
    assert checkpoint.best_step(workdir) == found
  checkpoint.quarantine(workdir, intact)
  save(workdir, 7)
  assert checkpoint.find_intact(workdir).step == 7


def test_a_checkpoint_of_another_run_is_not_taken(tmp_path, workdir):
  other = workdirs.path_of(str(tmp_path / "other"))
  save(other, 5, origin=describe())
  shutil.copytree(other / "checkpoints" / "5", workdir / "checkpoints" / "5")
  intact = checkpoint.find_intact(workdir)
  assert intact.step == 3
  assert "run" in intact.damaged[5]
  # Where no run is written, the checkpoints alone say what it is.
  (workdir / "run_id").unlink()
  assert checkpoint.find_intact(workdir).step == 5


@pytest.mark.parametrize(
  ("name", "read"), [("config.json", workdirs.find_config), ("run_id", workdirs.find_run_id)]
)
def test_what_a_workdir_says_of_its_run_is_checked(tmp_path, name, read):
  directory = workdirs.path_of(str(tmp_path / "run"))
  workdirs.create(directory, {"seed": 30}, "a30")
  wanted, path = read(directory), directory / name
  path.write_text(path.read_text().replace("30", "31"))
  with pytest.raises(InputError, match=f"{name} is damaged: it does not match its SHA-256"):
    read(directory)
  path.write_text(path.read_text().replace("31", "30"))
  (directory / "SHA256SUMS").unlink()  # as earlier versions left it
  assert read(directory) == wanted


FOREIGN = (".DS_Store", "._manifest.ocdbt", ".nfs0001", ".0.Ab3dEf", ".dropbox.attr", "desktop.ini")


def test_files_of_other_programs_are_no_damage(workdir):
  checkpoints = pathlib.Path(workdir / "checkpoints")
  for directory in [checkpoints, *(p for p in checkpoints.rglob("*") if p.is_dir())]:
    for name in FOREIGN:
      (directory / name).write_bytes(b"\0")
    (directory / "@eaDir").mkdir()
    (directory / "@eaDir" / "thumbnail.jpg").touch()
  for name in ("03", "3 (copy)", "step_3"):
    shutil.copytree(checkpoints / "3", checkpoints / name)
  assert checkpoint.find_intact(workdir) == (3, {})
  save(workdir, 4)
  assert checkpoint.find_intact(workdir) == (4, {})
  assert checkpoint.steps(workdir) == [2, 3, 4]


NODES = {
  "fifo": os.mkfifo,
  "device": lambda path: path.symlink_to("/dev/zero"),
  "circular link": lambda path: path.symlink_to(path.name),
  "directory": os.mkdir,
}
FILES = (
  "default", "default/SHA256SUMS", "default/manifest.ocdbt", "default/provenance.json", "default/ocdbt.process_0",
  "metrics/metrics", "_CHECKPOINT_METADATA",
)  # fmt: skip


@pytest.mark.parametrize("node", NODES)
def test_a_node_that_is_no_file_is_damage(workdir, node, tmp_path):
  for name in FILES:
    copy = workdirs.path_of(str(tmp_path / name.replace("/", "_")))
    shutil.copytree(workdir, copy)
    path = pathlib.Path(copy / "checkpoints" / "3" / name)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    NODES[node](path)
    intact = checkpoint.find_intact(copy)
    assert (intact.step, [*intact.damaged]) == (2, [3]), name
    checkpoint.quarantine(copy, intact)
    save(copy, 4)


def test_a_deletion_that_a_kill_cuts_off_is_no_damage(workdir, monkeypatch):
  def cut(path, **_):
    files = [p for p in pathlib.Path(path).rglob("metrics") if p.is_file()]
    for one in files[:1]:
      one.unlink()

  with monkeypatch.context() as patch:
    patch.setattr(type(workdir), "rmtree", cut)
    save(workdir, 4, 5)
  assert checkpoint.find_intact(workdir) == (5, {})
  save(workdir, 6)
  assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["4", "5", "6"]
