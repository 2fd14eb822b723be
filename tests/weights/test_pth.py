"""torch's .pth files: recorded ones to the bit, and files made to deceive, of which nothing is ever run.

The files are of golden/family: those of the data's README, and two that torch 2.13 wrote of other recorded weights.
"""

import io
import pathlib
import pickle
import random
import time
import zipfile

import jax
import numpy as np
import pytest

from mixer_jax import weights
from mixer_jax.errors import InputError
from mixer_jax.weights import pth, torch_layout, torch_pickle
from tests.conftest import GOLDEN
from tests.marks import long

FILES = GOLDEN / "family" / "checkpoints"
PWNED = pathlib.Path("/tmp/pwned")  # what the malicious files would create


@pytest.fixture(scope="module")
def reference():
  return torch_layout.load_safetensors(FILES / "reference.safetensors")


@pytest.fixture(autouse=True)
def nothing_is_run():
  assert not PWNED.exists()
  yield
  assert not PWNED.exists()


def assert_same(have, want):
  assert have.keys() == want.keys()
  for name in want:
    np.testing.assert_array_equal(have[name], want[name], err_msg=name, strict=True)


@pytest.mark.parametrize(
  ("name", "entry", "taken"),
  [
    ("full_deit_zip", None, "model"),  # beside an argparse.Namespace
    ("full_swin_style_cfgnode_zip", None, "model"),  # beside a yacs CfgNode
    ("timm_trainer_module_prefix_zip", None, "state_dict"),
    ("timm_trainer_module_prefix_zip", "state_dict", "state_dict"),
    ("model_only_torch17_zip", None, "model"),
    ("model_only_cuda_legacy", None, "model"),
    ("shared_storage_views_zip", None, "model"),
    ("shared_storage_views_legacy", None, "model"),
    ("with_parameters_zip", None, "model"),
    ("malicious_os_system_legacy", None, "model"),  # what would be run is beside the weights
    ("malicious_import_zip", None, "model"),
    ("full_deit_zip", "model_ema", "model_ema"),
    ("timm_trainer_module_prefix_zip", "state_dict_ema", "state_dict_ema"),
    ("model_half_zip", None, "model"),
  ],
)
def test_recorded_files_give_the_reference(reference, name, entry, taken):
  """To the bit: averages are 0.9 of it, but for the offsets of shifts; half weights stay half."""
  found, state = pth.load_pth(FILES / f"{name}.pth", entry)
  assert found == taken
  state = {k.removeprefix("module."): v for k, v in state.items()}
  averaged = {k: v * np.float32(1 if k.endswith(".offset") else 0.9) for k, v in reference.items()}
  want = averaged if taken.endswith("_ema") else reference
  assert_same(state, {k: v.astype("f2" if "half" in name else "f4") for k, v in want.items()})
  assert all(v.flags.c_contiguous and v.flags.aligned for v in state.values())


@pytest.mark.parametrize(
  ("name", "entry", "message"),
  [
    ("malicious_eval_zip", None, r"evil\.weight is no tensor, but made by '__builtin__\.eval'"),
    ("malicious_plain_pickle", None, "a pickle, but not one of torch's"),
    ("truncated_zip", None, "not a whole .pth file"),
    ("full_deit_zip", "args", "no entry 'args' of tensors; it has 'model', 'model_ema'"),
    ("conv_mlp_legacy", "model", "no entry 'model' of tensors; it has none"),
  ],
)
def test_files_without_the_weights_are_refused(name, entry, message):
  with pytest.raises(InputError, match=message) as error:
    pth.load_pth(FILES / f"{name}.pth", entry)
  assert f"{name}.pth" in str(error.value)


def test_a_file_is_loaded_as_a_model(capsys):
  def same(source, want):
    jax.tree.map(np.testing.assert_array_equal, weights.load(source), want)

  same(FILES / "conv_mlp_legacy.pth", weights.load(GOLDEN / "convmlp.safetensors"))
  assert capsys.readouterr().err == ""  # it has no entries
  want = weights.load(GOLDEN / "res_mlp_timm.safetensors")
  file = FILES / "res_mlp_zip.pth"
  same(file, want)
  assert capsys.readouterr().err == f"{file}: the weights of its entry model\n"
  same(f"{file}#model_ema", jax.tree.map(lambda x: x / 2, want))
  assert "#model_ema: the weights of its entry model_ema\n" in capsys.readouterr().err


def test_only_pth_files_have_entries():
  with pytest.raises(InputError, match=r"npz#model: only a \.pth file has entries, such as model"):
    weights.load(f"{GOLDEN / 'mixer_tiny_checkpoint.npz'}#model")


# Pickles by hand, in protocol 2.


def value(x):
  return pickle.dumps(x, 2)[2:-1]


def name(module, attribute):
  return f"c{module}\n{attribute}\n".encode()


def tensor(shape=(2,), strides=(1,), offset=0, length=4, kind="FloatStorage", key="0"):
  storage = (value("storage"), name("torch", kind), value(key), value("cuda:0"), value(length))
  view = value(offset) + value(shape) + value(strides) + value(False) + value({})
  return (
    name("torch._utils", "_rebuild_tensor_v2") + b"((" + b"".join(storage) + b"tQ" + view + b"tR"
  )


def state(*entries):
  """Returns the pickle of a dictionary of (name, pickled value)."""
  return b"\x80\x02}(" + b"".join(value(k) + v for k, v in entries) + b"u."


FOUR = np.arange(4, dtype="<f4")


def write(path, pickled, storages=(FOUR,), folder="x/", extra=(), **options):
  with zipfile.ZipFile(path, "w", **options) as archive:
    archive.writestr(f"{folder}data.pkl", pickled)
    for i, array in enumerate(storages):
      archive.writestr(f"{folder}data/{i}", array.tobytes())
    for entry, content in extra:
      archive.writestr(entry, content)
  return path


def nested(depth):
  """Returns a pickled value whose text would have 2^depth parts: each tuple twice contains the one before."""
  return b"K\x01" + b"q\x00h\x00\x86" * depth


WEIGHT = ("w", tensor())


@pytest.mark.parametrize(
  ("kind", "dtype", "order"),
  [
    ("DoubleStorage", "f8", "<"), ("FloatStorage", "f4", ">"), ("HalfStorage", "f2", ">"), ("LongStorage", "i8", "<"),
    ("IntStorage", "i4", ">"), ("ByteStorage", "u1", "<"), ("BoolStorage", "?", "<"),
  ],
)  # fmt: skip
def test_types_and_byte_orders(tmp_path, kind, dtype, order):
  want = np.array([0, 1, 1, 0], dtype)
  path = write(
    tmp_path / "x.pth",
    state(("w", tensor((2, 2), (1, 2), kind=kind)), ("empty", tensor((0, 3), (3, 1), kind=kind))),
    [want.astype(f"{order}{dtype}")],
    folder="",
    extra=[("byteorder", {"<": "little", ">": "big"}[order])],
  )
  empty = np.zeros((0, 3), dtype)
  assert_same(pth.load_pth(path)[1], {"w": want.reshape(2, 2).T, "empty": empty})


@pytest.mark.parametrize(
  ("entries", "message"),
  [
    ([("w", tensor((5,)))], "reaches beyond its storage"),
    ([("w", tensor((2, 2), (3, 1)))], "reaches beyond its storage"),
    ([("w", tensor(offset=3))], "reaches beyond its storage"),
    ([("w", tensor(offset=-1))], "whole numbers"),
    ([("w", tensor(strides=(-1,)))], "whole numbers"),
    ([("w", tensor((2.0,)))], "whole numbers"),
    ([("w", tensor((1 << 8_000_000,) * 2, (1 << 8_000_000,) * 2))], "whole numbers"),
    ([("w", tensor((2, 2)))], "2 axes and 1 strides"),
    ([("w", tensor((2,) * 100_000, (0,) * 100_000))], "100000 axes"),
    ([("w", tensor(length=-1))], "absurd name or length"),
    ([("w", tensor(key="k" * 1_000_000))], "absurd name or length"),
    ([("w", tensor(length=1 << 40))], "has 16 bytes, not 4,398,046,511,104"),
    ([("w", tensor((1 << 40,), (0,)))], "would unpack to 4,398,046,511,104"),
    ([("w", tensor(key="../../etc/passwd"))], "has no storage '../../etc/passwd'"),
    ([WEIGHT, ("../w", tensor())], "which is no parameter's name"),
    ([WEIGHT, ("v", tensor(kind="ComplexFloatStorage"))], "v is no tensor, but made by"),
    ([WEIGHT, ("v", value(3))], "v is no tensor, but made by 'int'"),
    ([WEIGHT, ("v", name("os", "getcwd") + b")R")], r"v is no tensor, but made by 'os\.getcwd'"),
    ([WEIGHT, ("v", b"(cos\ngetcwd\no")], "opcode OBJ, which torch does not write"),
    ([WEIGHT, ("v", b"(ios\ngetcwd\n")], "opcode INST, which torch does not write"),
    ([WEIGHT, ("v", b"K\x01)R")], "calls what is no function"),
    ([WEIGHT, ("v", nested(500) + b")\x93")], "names a class by what is no text"),
    ([WEIGHT, ("v", name("torch._utils", "_rebuild_tensor_v2") + nested(500) + b"R")], "not a whole .pth"),
    ([WEIGHT, ("v", b"]" * 100_000 + b"a" * 99_999)], "v is no tensor, but made by 'list'"),
    ([WEIGHT, ("v", b"0" * 10)], "not a whole .pth"),
    ([WEIGHT, ("v", b"N0" * 1_100_000)], "more than 2,000,000 opcodes"),
    ([("a", state(WEIGHT)[2:-1])], "no model or state_dict of tensors; name one of its entries after #: 'a'"),
  ],
)  # fmt: skip
def test_pickles_made_to_deceive_are_refused(tmp_path, entries, message):
  began = time.monotonic()
  with pytest.raises(InputError, match=message):
    pth.load_pth(write(tmp_path / "x.pth", state(*entries)))
  assert time.monotonic() - began < 20


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(compression=zipfile.ZIP_DEFLATED), "compressed, which torch does not do"),
    (dict(folder="x/y/"), "0 data.pkl instead of one"),
    (dict(extra=[("y/data.pkl", b"")]), "2 data.pkl instead of one"),
    (dict(extra=[("x/byteorder", b"middle")]), "byte order is b'middle'"),
    (dict(storages=()), "has no storage '0'"),
    (dict(storages=[np.zeros(5, "<f4")]), "has 20 bytes, not 16"),
  ],
)
def test_archives_made_to_deceive_are_refused(tmp_path, options, message):
  with pytest.raises(InputError, match=message):
    pth.load_pth(write(tmp_path / "x.pth", state(WEIGHT), **options))


def test_entries_that_share_their_bytes_are_refused(tmp_path):
  """As in a zip bomb without compression: the directory has one big member many times, by other names."""
  write(tmp_path / "x.pth", state(WEIGHT), [np.zeros(1 << 18, "<f4")] * 2)
  content = bytearray((tmp_path / "x.pth").read_bytes())
  first, second = (content.rindex(b"x/data/" + digit) - 46 for digit in (b"0", b"1"))
  content[second + 42 : second + 46] = content[first + 42 : first + 46]
  begin = content.index(b"x/data/1") - 30
  del content[begin : begin + 30 + 8 + (1 << 20)]
  end = content.rindex(b"PK\x05\x06")
  content[end + 16 : end + 20] = (begin).to_bytes(4, "little")
  (tmp_path / "x.pth").write_bytes(content)
  with pytest.raises(InputError, match=r"entries have 2,097,\d+ bytes, the file 1,04"):
    pth.load_pth(tmp_path / "x.pth")


def test_what_names_legacy_storages_is_not_hashed(tmp_path):
  content = [value(pth._MAGIC), value(1001), value({"little_endian": True})]
  pickles = [b"\x80\x02" + x + b"." for x in content] + [state(WEIGHT)]
  keys = b"\x80\x02](" + nested(500) + b"e."
  (tmp_path / "x.pth").write_bytes(b"".join(pickles) + keys)
  with pytest.raises(InputError, match="a storage that it does not describe"):
    pth.load_pth(tmp_path / "x.pth")


@pytest.mark.filterwarnings("ignore:invalid escape:DeprecationWarning")
@pytest.mark.parametrize("count", [60, long(5_000)])
@pytest.mark.parametrize(
  "file", ["res_mlp_zip", "malicious_import_zip", "malicious_os_system_legacy", "conv_mlp_legacy"]
)
def test_changed_files_are_refused_or_give_the_same(tmp_path, file, count):
  """The older files have no checksum: a bit of a value that flips is not met."""
  whole = (FILES / f"{file}.pth").read_bytes()
  _, want = pth.load_pth(FILES / f"{file}.pth")
  rng = random.Random(count)
  for _ in range(count):
    (tmp_path / "x.pth").write_bytes(_changed(whole, rng))
    began = time.monotonic()
    try:
      _, have = pth.load_pth(tmp_path / "x.pth")
    except InputError:
      continue
    finally:
      assert time.monotonic() - began < 20
    if file.endswith("_zip"):
      assert_same(have, want)


def _changed(content, rng):
  """Returns the bytes with some bits flipped, some bytes removed or doubled, or without their end."""
  changed, kind = bytearray(content), rng.randrange(4)
  at = rng.randrange(len(content)) if rng.random() < 0.5 else _in_a_pickle(content, rng)
  if kind == 0:
    del changed[at:]
  elif kind == 1:
    del changed[at : at + rng.randrange(1, 9)]
  elif kind == 2:
    changed[at:at] = content[at : at + rng.randrange(1, 9)]
  for _ in range(rng.randrange(1, 4) if kind == 3 else 0):
    changed[min(at + rng.randrange(64), len(content) - 1)] ^= 1 << rng.randrange(8)
  return bytes(changed)


def _in_a_pickle(content, rng):
  return rng.randrange(max(content.find(b"\x80\x02"), 0), content.rindex(b"weight") + 6)


@pytest.mark.filterwarnings("ignore:invalid escape:DeprecationWarning")
@pytest.mark.parametrize("count", [150, long(10_000)])
def test_changed_pickles_build_nothing_else(tmp_path, count):
  """With the right checksums: what is read is a dictionary of arrays, or refused."""
  with zipfile.ZipFile(FILES / "malicious_import_zip.pth") as archive:
    pickled = archive.read("malicious_import_zip/data.pkl")
  rng = random.Random(count)
  for _ in range(count):
    stream = io.BytesIO(_changed(pickled, rng))
    try:
      torch_pickle.follow(stream)
    except pth._DAMAGE:
      continue
