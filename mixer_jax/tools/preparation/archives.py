"""ImageNet's own archives, ILSVRC2012_img_train.tar (a tar of 1000 tars) and ILSVRC2012_img_val.tar.

Nothing is unpacked: only the members' headers are read, and later the bytes of each image. Classes,
labels of the validation images, names and order are those of TFDS's builder. It rewrites 22 CMYK images
and a PNG as RGB JPEG; here they keep their bytes, and decoding makes them RGB.
"""

import pathlib
import re
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from mixer_jax import files
from mixer_jax.errors import InputError
from mixer_jax.tools.preparation import catalogue

TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
VERSION = "5.1.0"  # of TFDS's builder
_TRAIN_NAME = re.compile(r"n\d{8}_\d+\.JPEG")
_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_MAX_HEADER_BYTES = 1 << 20


def read(directory: str) -> catalogue.Collection:
  """Lists the images of the archives in a directory, as the data set imagenet2012.

  Raises:
    InputError: archives missing, damaged, incomplete, or not ImageNet's.
  """
  root = pathlib.Path(directory).absolute()
  for path in (root / TRAIN, root / VALIDATION):
    if not path.is_file():
      raise InputError(
        f"{path} is missing: both archives of ILSVRC 2012 are needed, as image-net.org gives them."
      )
  classes, validation_labels = _tfds_text("labels.txt"), _tfds_text("validation_labels.txt")
  ignored: list[tuple[str, str]] = []
  splits = {
    "train": _train(root / TRAIN, classes, ignored),
    "validation": _validation(root / VALIDATION, classes, validation_labels, ignored),
  }
  return catalogue.Collection(
    name="imagenet2012", version=VERSION, root=str(root), classes=classes, file_names=True,
    splits=splits, ignored=ignored,
  )  # fmt: skip


def _tfds_text(name: str) -> list[str]:
  import tensorflow_datasets as tfds

  return tfds.core.tfds_path("datasets/imagenet2012", name).read_text().split()


def _train(
  path: pathlib.Path, classes: list[str], ignored: list[tuple[str, str]]
) -> catalogue.Catalogue:
  index = {name: i for i, name in enumerate(classes)}
  entries, seen = catalogue.Catalogue("train"), set()
  with path.open("rb") as f:
    for inner in _members(f, str(path), 0, path.stat().st_size, ignored):
      name = inner.name.removeprefix("./").removesuffix(".tar")
      where = f"{path}/{inner.name}"
      if name not in index or name in seen:
        raise InputError(f"{where} is not the archive of one of ImageNet's classes, once each.")
      seen.add(name)
      for member in _members(f, where, inner.offset_data, inner.size, ignored):
        image = member.name.removeprefix("./")
        if not _TRAIN_NAME.fullmatch(image):
          raise InputError(f"{where}/{member.name} is not one of ImageNet's training images.")
        place = (str(path), member.offset_data, member.size)
        entries.append(catalogue.Entry(image, [index[name]], *place))
  if missing := sorted(index.keys() - seen):
    raise InputError(
      f"{path} lacks {len(missing)} of {len(classes)} classes, {missing[0]} first; download it again."
    )
  return entries


def _validation(
  path: pathlib.Path, classes: list[str], labels: list[str], ignored: list[tuple[str, str]]
) -> catalogue.Catalogue:
  index = {name: i for i, name in enumerate(classes)}
  entries = catalogue.Catalogue("validation")
  with path.open("rb") as f:
    for member in _members(f, str(path), 0, path.stat().st_size, ignored):
      name = member.name.removeprefix("./")
      match = _VALIDATION_NAME.fullmatch(name)
      if match is None or not 0 < int(match[1]) <= len(labels):
        raise InputError(f"{path}/{member.name} is not one of ImageNet's validation images.")
      place = (str(path), member.offset_data, member.size)
      entries.append(catalogue.Entry(name, [index[labels[int(match[1]) - 1]]], *place))
  return entries


def _members(
  file: BinaryIO, where: str, start: int, size: int, ignored: list[tuple[str, str]]
) -> Iterator[tarfile.TarInfo]:
  """Yields the files of the archive at `start` of `file`, their `offset_data` in that file.

  Raises InputError if the archive is damaged, or has no end marker.
  """
  headers: Any = _Headers(file, start, size)
  try:
    archive = tarfile.open(fileobj=headers, mode="r:")  # noqa: SIM115 (the caller's file stays open)
    while (member := archive.next()) is not None:
      archive.members = []  # else it keeps them all
      if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        ignored.append((f"{where}/{member.name}", "not a file"))
      elif files.is_foreign(member.name.rpartition("/")[2]):
        ignored.append((f"{where}/{member.name}", "of another program, by its name"))
      elif member.size < 0 or member.offset_data + member.size > size:
        raise tarfile.ReadError(f"it ends within {member.name!r}")
      else:
        member.offset_data += start
        yield member
    headers.seek(archive.offset)
    if headers.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
      # tarfile takes a header that it cannot read for the end.
      raise tarfile.ReadError(f"no header and no end at byte {archive.offset:,}")
  except OSError as e:
    raise InputError(f"{where} cannot be read: {e}. Give the same command again.") from e
  except (tarfile.TarError, ValueError, OverflowError, RecursionError) as e:
    raise InputError(f"{where} is a damaged archive ({e}); download it again.") from e


class _Headers:
  """An archive within a file, for tarfile: its headers only, and positions relative to its start."""

  def __init__(self, file: BinaryIO, start: int, size: int):
    self._file, self._start, self._size = file, start, size
    self._position = 0

  def tell(self) -> int:
    return self._position

  def seek(self, position: int) -> None:
    self._position = position

  def read(self, size: int) -> bytes:
    if size > _MAX_HEADER_BYTES:
      raise tarfile.ReadError(f"a header of {size:,} bytes")
    # Where it is in the file is set each time: archives of one file take turns.
    self._file.seek(self._start + self._position)
    data = self._file.read(max(0, min(size, self._size - self._position)))
    self._position += len(data)
    return data
