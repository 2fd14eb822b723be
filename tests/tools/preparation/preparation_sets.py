"""Small inputs for the tests of preparation, and reading back what became of them."""

import io
import tarfile

import cv2
import numpy as np
import tensorflow_datasets as tfds

from mixer_jax.data import sources
from mixer_jax.tools.preparation import engine, folders, images
from tests import tfds_sets


def jpeg(number, size=16):
  pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)
  return cv2.imencode(".jpg", pixels)[1].tobytes()


def folder(root, counts, split=""):
  """Writes `counts[class]` numbered images, PNG and JPEG in turn; returns {relative path: bytes}."""
  files = {}
  for label, (name, count) in enumerate(counts.items()):
    (root / split / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
      number = 1000 * label + i
      data, suffix = (tfds_sets.png(number), "png") if i % 2 else (jpeg(number), "JPG")
      path = root / split / name / f"{i}.{suffix}"
      path.write_bytes(data)
      files[str(path.relative_to(root))] = data
  return files


def plan(root, **arguments):
  return images.plan(folders.read(str(root), "mine"), **arguments)


def prepare(made, data_dir, *, num_workers=0, verify=True, skip_bad=False, said=None):
  """Prepares; the lines of the report go to `said`."""
  report = ([] if said is None else said).append
  return engine.prepare(
    made, str(data_dir), num_workers=num_workers, verify=verify, skip_bad=skip_bad, report=report
  )


def read(directory, split):
  """Returns the examples of a split in order, the images still encoded, by TFDS's own reader."""
  builder = tfds.builder_from_directory(directory)
  return list(builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()}))


def opened(prepared, split="train"):
  """Returns the split as training opens it."""
  place = dict(dataset=str(prepared.directory), data_dir=None, label=None)
  return sources.open_source(split=split, **place)


def tar(members):
  """Returns the bytes of a tar of (name, bytes) members."""
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w") as archive:
    for name, data in members:
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return file.getvalue()
