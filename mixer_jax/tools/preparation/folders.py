"""A folder per class: DIR/CLASS/…/image, or DIR/SPLIT/CLASS/…/image."""

import os
import pathlib
from collections.abc import Iterator

from mixer_jax.errors import InputError
from mixer_jax.tools.preparation import catalogue

SPLITS = ("train", "val", "valid", "validation", "dev", "test")

# A file counts as an image by its name; whether it is one is found when it is decoded. Formats that are
# not supported are here too, so that such images are reported as bad and not passed over as other files.
IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic",
          ".heif", ".avif", ".jp2", ".ppm", ".pgm")  # fmt: skip


def read(directory: str, name: str) -> catalogue.Collection:
  """Finds the images of a folder per class; classes are numbered in the bytewise order of their names.

  Raises:
    InputError: no such folder, no classes, a class without images, linked folders, or a split with
      classes that the training split lacks.
  """
  root = pathlib.Path(directory)
  if not root.is_dir():
    raise InputError(f"{directory} is not a directory.")
  ignored: list[tuple[str, str]] = []
  folders = _folders(root, ignored)
  if folders and all(f in SPLITS for f in folders):
    found = {split: _folders(root / split, ignored) for split in folders}
  else:
    found = {"train": folders}
  for split, names in found.items():
    if not names:
      where = root / split if len(folders) else root
      raise InputError(f"{where} has no folders; expected {directory}/CLASS/image.jpg")
  classes = sorted(found.get("train") or set().union(*found.values()), key=os.fsencode)
  catalogue.check_classes(classes, directory)
  for split, names in found.items():
    if unknown := sorted(set(names) - set(classes)):
      raise InputError(f"{root / split} has class {unknown[0]!r}, which {root / 'train'} lacks.")
  splits = {}
  for split in sorted(found):
    base = root if found == {"train": folders} else root / split
    splits[split] = _catalogue(root, base, split, classes, found[split], ignored)
  return catalogue.Collection(
    name=name, root=str(root.absolute()), classes=classes, splits=splits, ignored=ignored
  )


def _folders(directory: pathlib.Path, ignored: list[tuple[str, str]]) -> list[str]:
  """Returns the names of the folders in a directory; what else there is goes to `ignored`."""
  names = []
  for entry in _scan(directory):
    if entry.name.startswith("."):
      ignored.append((entry.path, "hidden"))
    elif entry.is_dir(follow_symlinks=False):
      names.append(entry.name)
    elif entry.is_symlink() and entry.is_dir():
      raise _linked(entry.path)
    else:
      ignored.append((entry.path, "not in the folder of a class"))
  return names


def _catalogue(
  root: pathlib.Path, base: pathlib.Path, split: str, classes: list[str], present: list[str],
  ignored: list[tuple[str, str]],
) -> catalogue.Catalogue:  # fmt: skip
  entries = catalogue.Catalogue(split)
  for label, name in enumerate(classes):
    if name not in present:
      continue
    before = len(entries)
    for path in _images(base / name, ignored):
      entries.append(catalogue.Entry(os.path.relpath(path, root), [label]))
    if len(entries) == before:
      raise InputError(
        f"class {name!r} has no images: {base / name} is empty. Remove the folder, or add images "
        f"(files named {', '.join(IMAGES[:6])}, …)."
      )
  return entries


def _images(directory: pathlib.Path, ignored: list[tuple[str, str]]) -> Iterator[str]:
  """Yields the paths of the images below a directory, however deep."""
  for entry in _scan(directory):
    if entry.name.startswith("."):
      ignored.append((entry.path, "hidden"))
    elif entry.is_dir(follow_symlinks=False):
      yield from _images(pathlib.Path(entry.path), ignored)
    elif entry.is_symlink() and _leads_to_directory(entry):
      raise _linked(entry.path)
    elif os.path.splitext(entry.name)[1].lower() in IMAGES:
      yield entry.path
    else:
      ignored.append((entry.path, "not an image, by its name"))


def _leads_to_directory(entry: os.DirEntry) -> bool:
  try:
    return entry.is_dir()
  except OSError:  # a link to itself: reading it as a file says so
    return False


def _linked(path: str) -> InputError:
  return InputError(
    f"{path} is a link to a directory, which could lead in circles; put the directory itself there."
  )


def _scan(directory: pathlib.Path) -> list[os.DirEntry]:
  try:
    with os.scandir(directory) as entries:
      return sorted(entries, key=lambda e: os.fsencode(e.name))
  except OSError as e:
    raise InputError(f"{directory} cannot be read: {e.strerror}") from e
