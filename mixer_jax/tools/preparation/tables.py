"""A table of images or videos: a line "path<TAB>label" or "path<TAB>label,label,…" each, in UTF-8."""

import codecs
import os
import pathlib
from collections.abc import Iterator

from mixer_jax.errors import InputError
from mixer_jax.tools.preparation import catalogue

MAX_LINE_BYTES = 1 << 20


def read(
  file: str, name: str, names_file: str | None = None, videos: catalogue.Videos | None = None
) -> catalogue.Collection:
  """Reads a table of images or videos.

  Labels are names. With a names file (one per line, in the order of their indices) they may also be indices. Without
  one, the classes are the names in bytewise order; if all labels are numbers, they are the indices. If a line has
  several labels, all images are multi-label.

  Args:
    file: the table. Relative paths are relative to its directory, and must stay inside it.
    name: of the data set.
    names_file: names of the classes.
    videos: what becomes of the files, if they are videos.

  Raises:
    InputError: there is no such file, a line has another form, a label is unknown, or there are no lines.
  """
  found: dict[str, int] = {}
  labels_per_image = 1
  for number, _, labels in _lines(file):
    labels_per_image = max(labels_per_image, len(labels))
    for label in labels:
      found.setdefault(label, number)
  if not found:
    raise InputError(f"{file} has no lines.")
  classes = _read_names(names_file) if names_file else _classes(found, file)
  index = {c: i for i, c in enumerate(classes)}
  for label, number in found.items():
    if label not in index:
      index[label] = _number(label, len(classes), f"{file}:{number}", names_file)
  entries = catalogue.Catalogue("train")
  for number, path, labels in _lines(file):
    indices = [index[label] for label in labels]
    if len(set(indices)) != len(indices):
      raise InputError(f"{file}:{number}: a label is there twice: {','.join(labels)}")
    entries.append(catalogue.Entry(path, indices))
  return catalogue.Collection(
    name=name,
    root=str(pathlib.Path(file).absolute().parent),
    classes=classes,
    labels_per_image=labels_per_image,
    splits={"train": entries},
    videos=videos,
  )


def _lines(file: str) -> Iterator[tuple[int, str, list[str]]]:
  """Yields (line number, normalized path, labels)."""
  try:
    with open(file, "rb") as f:
      number = 0
      while line := f.readline(MAX_LINE_BYTES):
        number += 1
        where = f"{file}:{number}"
        if len(line) == MAX_LINE_BYTES:
          raise InputError(f"{where} is longer than {MAX_LINE_BYTES:,} bytes: not a table.")
        if line.strip():
          yield number, *_fields(line.removeprefix(codecs.BOM_UTF8), where)
  except OSError as e:
    raise InputError(f"{file} cannot be read: {e.strerror}") from e


def _fields(line: bytes, where: str) -> tuple[str, list[str]]:
  try:
    path, tab, text = line.decode().rstrip("\r\n").partition("\t")
  except UnicodeDecodeError as e:
    raise InputError(f"{where} is not UTF-8: {e.reason}") from e
  labels = [label.strip() for label in text.split(",")]
  if not tab or not path or not all(labels) or "\t" in text or "\0" in path:
    raise InputError(f"{where} is not path<TAB>label[,label…]: {line[:80]!r}")
  if len(path.encode()) > catalogue.MAX_NAME_BYTES:
    raise InputError(f"{where}: the path is longer than {catalogue.MAX_NAME_BYTES} bytes.")
  path = os.path.normpath(path)
  if path.startswith(".."):
    raise InputError(f"{where}: {path} leads out of the table's directory; give an absolute path.")
  return path, labels


def _is_number(label: str) -> bool:
  return label.isascii() and label.isdigit() and len(label) < 19


def _classes(found: dict[str, int], file: str) -> list[str]:
  """Returns the classes of labels that no names file explains."""
  if not all(_is_number(label) for label in found):
    catalogue.check_classes(classes := sorted(found, key=str.encode), file)
    return classes
  numbers = {int(label) for label in found}
  missing = next((n for n in range(len(numbers)) if n not in numbers), None)
  if missing is not None:
    raise InputError(
      f"{file}: the labels are numbers up to {max(numbers)}, and no image has {missing}; number the "
      "classes from 0 without gaps, or give --names=FILE with a name a line."
    )
  return [str(n) for n in range(len(numbers))]


def _number(label: str, num_classes: int, where: str, names_file: str | None) -> int:
  if not _is_number(label) or int(label) >= num_classes:
    raise InputError(
      f"{where}: label {label!r} is neither a name of {names_file or 'a class'} nor an index below "
      f"{num_classes}."
    )
  return int(label)


def _read_names(names_file: str) -> list[str]:
  try:
    names = pathlib.Path(names_file).read_text("utf-8-sig").splitlines()
  except (OSError, UnicodeDecodeError) as e:
    raise InputError(f"{names_file} cannot be read: {e}") from e
  catalogue.check_classes(names, names_file)
  if not names:
    raise InputError(f"{names_file} is empty; it holds the name of a class a line.")
  return names
