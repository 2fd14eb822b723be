"""Released checkpoint files of both layouts, and files that are none."""

import contextlib
import pickle
import struct
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from mixer_jax import weights
from mixer_jax.errors import InputError, SaveError
from tests.conftest import GOLDEN, subtree
from tests.weights import mixers


@pytest.mark.parametrize("suffix", ["", "_prelinen", "_prelinen_opt"])
def test_checkpoints_load_bit_exactly(mixer_tiny, suffix):
  have = weights.load_npz(GOLDEN / f"mixer_tiny_checkpoint{suffix}.npz")
  jax.tree.map(np.testing.assert_array_equal, have, {"params": subtree(mixer_tiny, "params/")})


def test_mismatches_are_listed_all():
  params = weights.load_npz(GOLDEN / "mixer_tiny_checkpoint.npz")["params"]
  other = dict(
    params, extra={"kernel": np.zeros(3)}, head={"kernel": np.zeros((16, 7)), "bias": np.zeros(7)}
  )
  del other["stem"]
  with pytest.raises(InputError) as error:
    weights.check_match({"params": other}, {"params": params}, "file.npz")
  message = str(error.value)
  for line in (
    "missing: stem/bias (16,)", "missing: stem/kernel (4, 4, 3, 16)",
    "not in the model: extra/kernel (3,)", "shape: head/kernel is (16, 7), the model's is (16, 5)",
    "shape: head/bias is (7,), the model's is (5,)",
  ):  # fmt: skip
    assert line in message


@pytest.mark.parametrize(
  "content",
  [
    b"", b"<!DOCTYPE html><html></html>", (GOLDEN / "mixer_tiny_checkpoint.npz").read_bytes()[:9000],
    pickle.dumps({"a": 1}),
  ],
  ids=["empty", "html", "truncated", "pickle"],
)  # fmt: skip
def test_files_that_are_no_checkpoint_are_refused(tmp_path, content):
  path = tmp_path / "weights.npz"
  path.write_bytes(content)
  with pytest.raises(InputError, match=r"weights\.npz is not a whole \.npz file"):
    weights.load_npz(path)


@pytest.mark.parametrize(
  ("bias", "dtype", "message"),
  [
    (np.zeros(5, int), "float32", "head/bias has int64 values"),
    (np.zeros(5, bool), "float32", "head/bias has bool values"),
    (np.zeros(5, "V4"), "float32", "head/bias has .V4 values"),
    (np.full(5, np.nan), "float32", "head/bias has float64 values that are not finite"),
    (np.full(5, 1e300), "float32", "head/bias has float64 values .* as float32"),
    (np.full(5, np.finfo(np.float32).max), "bfloat16", "head/bias has float32 .* as bfloat16"),
  ],
)
def test_values_that_the_models_type_does_not_have_are_listed(tmp_path, bias, dtype, message):
  params = weights.load_npz(GOLDEN / "mixer_tiny_checkpoint.npz")["params"]
  wanted = {"params": jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), params)}
  head = {"kernel": params["head"]["kernel"] * np.inf, "bias": bias}
  weights.save_npz(tmp_path / "x.npz", {"params": {**params, "head": head}})
  for model in [wanted] + [None] * (dtype == "float32"):
    with pytest.raises(InputError, match=rf"(?s)values: {message}.*head/kernel has float32"):
      weights.load(tmp_path / "x.npz", model)


def test_weights_come_in_the_models_types():
  variables = weights.load_npz(GOLDEN / "mixer_tiny_checkpoint.npz")
  wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), variables)
  used = weights.check_match(variables, wanted, "file.npz")
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), used, variables
  )
  assert {x.dtype for x in jax.tree.leaves(used)} == {jnp.dtype(jnp.bfloat16)}


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(InputError, match=r"nowhere\.npz does not exist"):
    weights.load_npz(tmp_path / "nowhere.npz")


def test_released_ours_released_is_the_same_to_the_bit(tmp_path):
  weights.save_npz(tmp_path / "again.npz", weights.load_npz(GOLDEN / "mixer_tiny_checkpoint.npz"))
  with np.load(GOLDEN / "mixer_tiny_checkpoint.npz") as old, np.load(tmp_path / "again.npz") as new:
    assert sorted(new.files) == sorted(old.files)
    for name in old.files:
      np.testing.assert_array_equal(new[name], old[name], err_msg=name)
      assert new[name].dtype == old[name].dtype
  assert [p.name for p in tmp_path.iterdir()] == ["again.npz"]


def test_parameters_below_a_common_name_are_read(mixer_tiny, tmp_path, capsys):
  """As big_vision keeps them, beside the optimizer's state."""
  arrays = {k: v for k, v in mixer_tiny.items() if k.startswith("params/")}
  np.savez(tmp_path / "x.npz", **{**arrays, "opt/0/count": np.int32(3), "extra/step": np.zeros(1)})
  again = weights.load(tmp_path / "x.npz")
  jax.tree.map(
    np.testing.assert_array_equal, again, weights.load(GOLDEN / "mixer_tiny_checkpoint.npz")
  )
  assert "the prefix params/ of all names is taken off" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", ">f4"])
def test_saved_parameters_come_back_to_the_bit(tmp_path, dtype):
  params = mixers.random_variables(8, 12, **mixers.TINY)
  params = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), params)
  weights.save_npz(tmp_path / "x.npz", params)
  again = weights.load_npz(tmp_path / "x.npz")
  jax.tree.map(np.testing.assert_array_equal, again, params)
  assert {x.dtype for x in jax.tree.leaves(again)} == {jnp.dtype(dtype).newbyteorder("=")}


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
  """The second array cannot be written as the first could."""
  (tmp_path / "x.npz").write_bytes(b"old")
  params = {"a": np.zeros(3), "b": np.array([{}], object)}
  with pytest.raises(ValueError, match="Object arrays"):
    weights.save_npz(tmp_path / "x.npz", {"params": params})
  assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x.npz", b"old")]
  with pytest.raises(SaveError, match=r"could not write .*/nowhere/x\.npz"):
    weights.save_npz(tmp_path / "nowhere" / "x.npz", {"params": {"a": np.zeros(3)}})


def npy(shape=(3,), descr="<f4", data=b"\0" * 12):
  """Returns an .npy file with whatever header."""
  header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
  header += b" " * (-(len(header) + 11) % 64) + b"\n"
  return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + data


def write_zip(path, entries, **options):
  with zipfile.ZipFile(path, "w", **options) as archive:
    for name, content in entries:
      archive.writestr(name, content)


GOOD = ("head/bias.npy", npy())


@pytest.mark.parametrize(
  ("entries", "message"),
  [
    ([("../../head/bias.npy", GOOD[1])], "no parameter's name"),
    ([("/head/bias.npy", GOOD[1])], "no parameter's name"),
    ([("head\\\\bias.npy", GOOD[1])], "no parameter's name"),
    ([("head/./bias.npy", GOOD[1])], "no parameter's name"),
    ([("head/", b"")], "no parameter's name"),
    ([("readme.txt", b"hello")], "no parameter's name"),
    ([GOOD, ("head/bias.npy", npy())], "has the parameter head/bias twice"),
    ([("Mixer/x.npy", GOOD[1]), ("stem/bias.npy", GOOD[1]), ("embedding/bias.npy", GOOD[1])], "stem/bias twice, in the old"),
    ([("head/bias.npy", npy(shape=(1 << 40,)))], "not of the size that its header says"),
    ([("head/bias.npy", npy(shape=(-3,)))], "has the shape"),
    ([("head/bias.npy", npy(shape=(2,)))], "not of the size that its header says"),
    ([("head/bias.npy", npy(descr="|O"))], "not numbers"),
    ([("head/bias.npy", npy(descr="<U3"))], "not numbers"),
    ([("head/bias.npy", npy(descr=[("a", "<f4")]))], "not numbers"),
    ([("head/bias.npy", npy(shape="__import__('os').abort()"))], "not a whole .npz"),
    ([("head/bias.npy", b"\x93NUMPY\1\0\xff\xff" + b"(" * 70000)], "not a whole .npz"),
    ([("head/bias.npy", b"")], "not a whole .npz"),
    ([("head.npy", GOOD[1]), GOOD], "the parameter head and others below"),
  ],
)  # fmt: skip
def test_files_made_to_deceive_are_refused(tmp_path, entries, message):
  twice = len({name for name, _ in entries}) < len(entries)
  with pytest.warns() if twice else contextlib.nullcontext():
    write_zip(tmp_path / "weights.npz", entries)
  with pytest.raises(InputError, match=message) as error:
    weights.load_npz(tmp_path / "weights.npz")
  assert "weights.npz" in str(error.value)


def test_the_optimizers_state_is_not_even_read(tmp_path):
  entries = [GOOD, ("opt/state/step.npy", b"garbage")]
  write_zip(tmp_path / "weights.npz", entries)
  assert list(weights.load_npz(tmp_path / "weights.npz")["params"]) == ["head"]


def test_a_flipped_bit_is_met(tmp_path):
  content = bytearray((GOLDEN / "mixer_tiny_checkpoint.npz").read_bytes())
  content[5000] ^= 1
  (tmp_path / "weights.npz").write_bytes(content)
  with pytest.raises(InputError, match=r"not a whole .npz file.*CRC"):
    weights.load_npz(tmp_path / "weights.npz")


def bomb(path, size):
  """Writes an .npz whose one array of zeros unpacks to this many bytes, in pieces."""
  head = npy(shape=(size // 4,), data=b"")
  with (
    zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
    archive.open("head/kernel.npy", "w") as member,
  ):
    member.write(head)
    for _ in range(size >> 20):
      member.write(bytes(1 << 20))


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path):
  """In a process that may have no more than half of that beyond what the imports took."""
  bomb(tmp_path / "weights.npz", 1 << 28)
  assert (tmp_path / "weights.npz").stat().st_size < 1 << 19
  code = f"""
import resource
from mixer_jax import weights
from mixer_jax.errors import InputError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 27),) * 2)
try:
  weights.load_npz({str(tmp_path / "weights.npz")!r})
except InputError as e:
  print(e)
"""
  out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert "would unpack to 268,435,5" in out.stdout


def test_a_size_that_the_directory_understates_is_not_believed(tmp_path):
  """The directory says 140 bytes, the stream goes on: what is more is not unpacked, and the CRC differs."""
  bomb(tmp_path / "weights.npz", 64 << 20)
  content = bytearray((tmp_path / "weights.npz").read_bytes())
  at = content.rindex(b"PK\x01\x02")
  content[at + 24 : at + 28] = struct.pack("<I", 140)
  (tmp_path / "weights.npz").write_bytes(content)
  with pytest.raises(InputError, match=r"not a whole \.npz file"):
    weights.load_npz(tmp_path / "weights.npz")


def test_other_compressions_and_encryption_are_refused(tmp_path):
  write_zip(tmp_path / "weights.npz", [GOOD], compression=zipfile.ZIP_LZMA)
  with pytest.raises(InputError, match="in a compression that NumPy does not write"):
    weights.load_npz(tmp_path / "weights.npz")
  write_zip(tmp_path / "weights.npz", [GOOD])
  content = bytearray((tmp_path / "weights.npz").read_bytes())
  content[content.rindex(b"PK\x01\x02") + 8] |= 1
  (tmp_path / "weights.npz").write_bytes(content)
  with pytest.raises(InputError, match=r"not a whole \.npz.*encrypted"):
    weights.load_npz(tmp_path / "weights.npz")


def test_a_bucket_without_its_extra_is_explained():
  with pytest.raises(InputError, match=r"gs://mine/x\.npz: .*pip install .*gcs"):
    weights.load_npz(epath.Path("gs://mine/x.npz"))
