"""A folder per class: DIR/CLASS/…/image, or DIR/SPLIT/CLASS/…/image; images or videos."""

import os
import pathlib

from mixer_jax.data import datasets, photos
from mixer_jax.errors import InputError
from mixer_jax.tools.preparation import catalogue

SPLITS = ("train", *datasets.VALIDATION, "dev", "test")
_NEARLY = ("training", "validate", "testing", "eval", "evaluation", "unlabeled", "unlabelled")


def read(directory: str, name: str, videos: catalogue.Videos | None = None) -> catalogue.Collection:
  """Finds the images of a folder per class; classes are numbered in the bytewise order of their names.

  Args:
    directory: the folder.
    name: of the data set.
    videos: what becomes of the videos that are found instead of images.

  Raises:
    InputError: no such folder, no classes, a class without images, linked folders, folders that look half like
      splits, or a split with classes that the training split lacks.
  """
  root, kind = pathlib.Path(directory), photos.VIDEOS if videos else photos.IMAGES
  if not root.is_dir():
    raise InputError(f"{directory} is not a directory.")
  ignored: photos.Ignored = []
  folders = photos.folders(str(root), ignored)
  if _are_splits(root, folders):
    found = {split: photos.folders(str(root / split), ignored) for split in folders}
  else:
    found = {"train": folders}
  for split, names in found.items():
    if not names:
      where = root / split if len(folders) else root
      raise InputError(
        f"{where} has no folders; expected {directory}/CLASS/{kind.name}{kind.suffixes[0]}"
      )
  classes = sorted(found.get("train") or set().union(*found.values()), key=os.fsencode)
  catalogue.check_classes(classes, directory)
  for split, names in found.items():
    if unknown := sorted(set(names) - set(classes)):
      raise InputError(f"{root / split} has class {unknown[0]!r}, which {root / 'train'} lacks.")
  splits = {}
  for split in sorted(found):
    base = root if found == {"train": folders} else root / split
    splits[split] = _catalogue(root, base, split, classes, found[split], ignored, kind)
  return catalogue.Collection(
    name=name,
    root=str(root.absolute()),
    classes=classes,
    splits=splits,
    ignored=ignored,
    videos=videos,
  )


def _are_splits(root: pathlib.Path, folders: list[str]) -> bool:
  """Returns whether the folders are splits and not classes; raises InputError if they look half like splits.

  A single folder named like a split may be a class ("train"), as long as there are no folders in it.
  """
  if folders and all(f in SPLITS for f in folders):
    return True
  like = [f for f in folders if f.lower() in SPLITS + _NEARLY]
  if len(like) > 1 or any(photos.folders(str(root / f), []) for f in like):
    raise InputError(
      f"{root} has the folders {', '.join(folders[:10])}{', …' * (len(folders) > 10)}: {', '.join(like)} look like splits "
      f"and the others like classes. Splits are named {', '.join(SPLITS)}, with nothing beside them: rename the "
      "folders, or move those that are neither elsewhere."
    )
  return False


def _catalogue(
  root: pathlib.Path, base: pathlib.Path, split: str, classes: list[str], present: list[str],
  ignored: photos.Ignored, kind: photos.Kind,
) -> catalogue.Catalogue:  # fmt: skip
  entries = catalogue.Catalogue(split)
  for label, name in enumerate(classes):
    if name not in present:
      continue
    before = len(entries)
    for path in photos.find(str(base / name), ignored, kind):
      entries.append(catalogue.Entry(os.path.relpath(path, root), [label]))
    if len(entries) == before:
      raise InputError(
        f"class {name!r} has no {kind.name}s: {base / name} is empty. Remove the folder, or add {kind.name}s "
        f"(files named {', '.join(kind.suffixes[:6])}, …)."
      )
  return entries
