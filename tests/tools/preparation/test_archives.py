"""ImageNet's archives, made up small: TFDS's classes, labels, names and order; damage is refused."""

import hashlib
import tarfile

import pytest
import tensorflow_datasets as tfds

from mixer_jax.data import sources
from mixer_jax.errors import InputError
from mixer_jax.tools.preparation import archives, images
from tests.tools.preparation import preparation_sets as sets

ROOT = tfds.core.tfds_path("datasets/imagenet2012")
CLASSES = (ROOT / "labels.txt").read_text().split()
VALIDATION = (ROOT / "validation_labels.txt").read_text().split()
IMAGE = sets.jpeg(0)


def train_members(count=lambda _: 1):
  for i, name in enumerate(CLASSES):
    members = [(f"{name}_{n}.JPEG", IMAGE + bytes([n])) for n in range(count(i))]
    yield f"{name}.tar", sets.tar(members)


def write(root, train=None, validation=None):
  (root / archives.TRAIN).write_bytes(sets.tar(train_members() if train is None else train))
  numbers = (1, 7, 49_999, 50_000)
  members = [(f"ILSVRC2012_val_{n:08}.JPEG", sets.jpeg(n)) for n in numbers]
  (root / archives.VALIDATION).write_bytes(sets.tar(members if validation is None else validation))
  return str(root)


def test_is_read_as_imagenet2012(tmp_path):
  directory = write(tmp_path, train=train_members(lambda i: 1 + (i < 3)))
  result = sets.prepare(images.plan(archives.read(directory)), tmp_path / "out")
  assert result.splits == {"train": 1003, "validation": 4}
  assert list(result.classes["train"]) == CLASSES and result.classes["train"][CLASSES[2]] == 2
  validation = sets.read(result.directory, "validation")
  assert {e["image"]: CLASSES[e["label"]] for e in validation} == {
    sets.jpeg(n): VALIDATION[n - 1] for n in (1, 7, 49_999, 50_000)
  }
  train = sets.read(result.directory, "train")
  names = [e["file_name"].decode() for e in train]
  assert all(CLASSES[e["label"]] == n.split("_")[0] for e, n in zip(train, names, strict=True))
  # TFDS orders by the md5 of the split's and the image's name: train[99%:] is the same there.
  assert names == sorted(names, key=lambda n: hashlib.md5(f"train{n}".encode()).hexdigest())
  by_name = sources.open_source(
    dataset="imagenet2012", data_dir=str(tmp_path / "out"), split="train[99%:]", label=None
  )
  assert len(by_name) == 10 and by_name.num_classes == 1000
  assert by_name[9]["image"] == train[-1]["image"]


def test_incomplete_or_other_archives(tmp_path):
  with pytest.raises(InputError, match=r"ILSVRC2012_img_train.tar is missing"):
    archives.read(str(tmp_path))
  for train, message in [
    (list(train_members())[:-2], "lacks 2 of 1000 classes, n13133613 first"),
    ([("cats.tar", sets.tar([]))], "cats.tar is not the archive of one of ImageNet's classes"),
    ([(f"{CLASSES[0]}.tar", sets.tar([]))] * 2, "once each"),
    ([(f"{CLASSES[0]}.tar", sets.tar([("../../x.JPEG", b"x")]))], "not one of ImageNet's training"),
    ([(f"{CLASSES[0]}.tar", b"x" * 5000)], "is a damaged archive"),
  ]:
    with pytest.raises(InputError, match=message):
      archives.read(write(tmp_path, train=train))
  for name in ("ILSVRC2012_val_00050001.JPEG", "ILSVRC2012_val_00000000.JPEG", "x.JPEG"):
    with pytest.raises(InputError, match=f"{name} is not one of ImageNet's validation images"):
      archives.read(write(tmp_path, validation=[(name, IMAGE)]))


def test_archives_with_wrong_sizes_are_refused(tmp_path):
  """A member that reaches beyond its archive must not reach into the next one's bytes."""
  name = f"{CLASSES[0]}.tar"

  def inner(kind=tarfile.REGTYPE, size=5000):
    info = tarfile.TarInfo(f"{CLASSES[0]}_1.JPEG")
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1536)

  for data, message in [
    (inner(), "ends within"),
    (inner(size=1 << 60), "ends within"),
    (inner(tarfile.GNUTYPE_LONGNAME, 1 << 40), "a header of .* bytes"),
    (inner(tarfile.XHDTYPE, 1 << 40), "a header of .* bytes|damaged"),
    (inner(tarfile.GNUTYPE_LONGNAME, 512)[:512] * 3000, "damaged"),  # names of names
  ]:
    with pytest.raises(InputError, match=message):
      archives.read(write(tmp_path, train=[(name, data), *list(train_members())[1:]]))
  damaged = bytearray(sets.tar([(f"{CLASSES[0]}_{n}.JPEG", b"x") for n in range(3)]))
  damaged[2048 + 10] ^= 1  # the third header: what follows it must not be lost in silence
  with pytest.raises(InputError, match="no header and no end at byte 2,048"):
    archives.read(write(tmp_path, train=[(name, bytes(damaged)), *list(train_members())[1:]]))
  whole = tmp_path / archives.TRAIN
  write(tmp_path)
  for cut in (100, 700, 5_000, whole.stat().st_size // 2 + 77):
    write(tmp_path)
    with whole.open("r+b") as f:
      f.truncate(cut)
    with pytest.raises(InputError, match="damaged archive"):
      archives.read(str(tmp_path))


def test_links_and_directories_in_an_archive_are_reported(tmp_path):
  file = tmp_path / "inner.tar"
  with tarfile.open(file, "w") as archive:
    for kind in (tarfile.SYMTYPE, tarfile.DIRTYPE):
      info = tarfile.TarInfo(f"member{kind.decode()}")
      info.type, info.linkname = kind, "/etc/passwd"
      archive.addfile(info)
  first = (f"{CLASSES[0]}.tar", file.read_bytes())
  collection = archives.read(write(tmp_path, train=[first, *list(train_members())[1:]]))
  assert [(p.rsplit("/", 1)[1], why) for p, why in collection.ignored] == [
    ("member2", "not a file"),
    ("member5", "not a file"),
  ]
  assert len(collection.splits["train"]) == 999
