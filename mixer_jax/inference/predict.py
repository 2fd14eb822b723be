"""Predictions for image and video files, which come from anywhere: bad ones are named, the others predicted."""

import glob
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import jax
import numpy as np
from jaxtyping import UInt8

from mixer_jax import figures, files, losses, printing, tables
from mixer_jax.data import decode, photos, videos
from mixer_jax.data.preprocess import Preprocess
from mixer_jax.errors import BadRecordError, InputError
from mixer_jax.figures import curves
from mixer_jax.inference import trained as trained_lib
from mixer_jax.parallel import sharding
from mixer_jax.training import experiment

MAX_FILE_BYTES = 1 << 28
_MAX_DRAWN = 48
MAX_ASPECT = 100  # resizing the short side of a line to 256 pixels would

Prediction = dict[str, Any]  # "file", and "predictions" or "error"


def find_images(
  arguments: Sequence[str], ignored: photos.Ignored | None = None, kind: photos.Kind = photos.IMAGES
) -> list[str]:
  """Returns the paths that files, directories (with all below them) and globs stand for, each once.

  What stands for nothing is returned as it is, to be reported as missing.

  Args:
    arguments: files, directories and globs.
    ignored: (path, why) of what is found beside the photos is added to it.
    kind: what is looked for in directories.
  """
  paths: list[str] = []
  ignored = [] if ignored is None else ignored
  for argument in arguments:
    if os.path.isdir(argument) and not photos.find_frames(argument, kind):
      paths += list(photos.find(argument, ignored, kind)) or [argument]
    elif os.path.exists(argument):
      paths.append(argument)
    else:
      found = _matches(pathlib.Path(argument))
      foreign = [p for p in found if files.is_foreign(os.path.basename(p))]
      ignored += [(p, "of another program, by its name") for p in foreign]
      paths += [p for p in found if p not in foreign] or [argument]
  return list(dict.fromkeys(paths))


def _matches(pattern: pathlib.Path) -> list[str]:
  """Returns the paths that a glob stands for; directories that there are, are no part of the pattern."""
  root = next((p for p in pattern.parents if p.is_dir()), pathlib.Path())
  found = glob.glob(str(pattern.relative_to(root)), root_dir=root, recursive=True)
  return sorted(str(root / name) for name in found)


def kind_of(setup: experiment.ModelSetup) -> photos.Kind:
  """Returns what the model takes."""
  return photos.IMAGES if setup.options.frames is None else photos.VIDEOS


def load_image(image: str | np.ndarray, pipeline: Preprocess) -> UInt8[np.ndarray, "*t h w c"]:
  """Returns the pre-processed image, or the view of a video in the middle.

  Args:
    image: path of a file, or an image's pixels, uint8 (height, width, channels), grey (height, width).
    pipeline: the pre-processing.

  Raises:
    BadRecordError: it is no usable image or video.
    InputError: the storage fails.
  """
  try:
    example = {"image": _unprocessed(image, pipeline.input_shape), "label": 0}
    return pipeline(example, np.random.default_rng(0), pipeline.middle)["image"]
  except InputError as e:  # too small for the configuration's crop
    raise BadRecordError(str(e)) from e


def _unprocessed(image: str | np.ndarray, input_shape: tuple[int, ...]) -> Any:
  """Returns an image's bytes or pixels, or a video's frames; raises BadRecordError, and InputError of the storage."""
  if len(input_shape) == 4:
    if isinstance(image, np.ndarray):
      raise BadRecordError("the model takes clips, which are read from video files: give a path")
    return videos.read(_file(image, photos.VIDEOS))
  if isinstance(image, np.ndarray):
    data, shape = (pixels := _pixels(image, input_shape[-1])), pixels.shape
  else:
    data = _read_image(image)
    shape = (header := decode.read_header(data)).height, header.width
  height, width = shape[:2]
  if max(height, width) > MAX_ASPECT * min(height, width):
    raise BadRecordError(f"{height}x{width} pixels: sides differ by more than {MAX_ASPECT} times")
  return data


def _pixels(image: np.ndarray, channels: int) -> UInt8[np.ndarray, "h w c"]:
  """Returns the image with its channels as the last axis, grey as three if the model takes these; raises BadRecordError."""
  pixels = image[..., None] if image.ndim == 2 else image
  if pixels.shape[-1] == 1 and channels == 3:
    pixels = np.repeat(pixels, 3, axis=-1)
  if (
    pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != channels or not pixels.size
  ):
    raise BadRecordError(
      f"{image.dtype} {image.shape}; expected levels of 0 to 255, uint8 (height, width, {channels})"
    )
  return np.ascontiguousarray(pixels)


def _file(path: str, kind: photos.Kind) -> str:
  """Returns the path; raises BadRecordError if no file is there, nor a video's folder."""
  if photos.find_frames(path, kind):
    return path
  if os.path.isdir(path):
    raise BadRecordError(f"no {kind.name} ({', '.join(kind.suffixes)}) in this directory")
  if not os.path.isfile(path):
    raise BadRecordError("no such file")
  return path


def _read_image(path: str) -> bytes:
  try:
    if os.path.getsize(_file(path, photos.IMAGES)) > MAX_FILE_BYTES:
      raise BadRecordError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
    return pathlib.Path(path).read_bytes()
  except OSError as e:
    raise photos.unreadable(path, e) from e


def make_top_step(setup: experiment.ModelSetup, top: int) -> Any:
  """Returns the jitted (variables, batch) -> (probabilities, classes), (b, top) each.

  Probabilities are those that the configuration's loss trains: sigmoids, or a softmax.
  """
  activation = losses.PROBABILITIES[setup.options.loss]
  top = min(top, setup.options.num_classes)
  return experiment.make_predict_step(
    setup, lambda _, outputs: jax.lax.top_k(activation(outputs["logits"]), top)
  )


def predict(
  trained: trained_lib.Trained,
  images: Sequence[str | np.ndarray],
  class_names: Sequence[str],
  *,
  top: int,
  batch_size: int,
  strips: pathlib.Path | None = None,
) -> Iterator[Prediction]:
  """Yields a prediction, or an error, for each file, in order.

  Args:
    trained, images, batch_size, strips: see `outputs`.
    class_names: of all classes.
    top: classes for each image.
  """
  step = trained.jitted(make_top_step, top)
  for file, row in outputs(trained, images, step, batch_size=batch_size, strips=strips):
    if isinstance(row, BadRecordError):
      yield {"file": file, "error": str(row)}
    else:
      named = [
        {"class": int(c), "name": class_names[c], "probability": float(p)}
        for p, c in zip(*row, strict=True)
      ]
      yield {"file": file, "predictions": named}


def listed(images: Any, kind: photos.Kind) -> list[str | np.ndarray]:
  """Returns the images one by one: files as paths, others as pixels; raises InputError if there are none."""
  if isinstance(images, str | os.PathLike):
    images = [images]
  if not isinstance(images, list | tuple):
    pixels = np.asarray(images)
    return [*pixels] if pixels.ndim == 4 and len(pixels) else [pixels]
  if not images:
    raise InputError("give at least one image.")
  if isinstance(images[0], str | os.PathLike):
    return [*find_images([*map(os.fspath, images)], kind=kind)]
  return [np.asarray(x) for x in images]


def good(name: str, error: Any, row: Any) -> Any:
  """Returns the row; raises InputError if there is an error instead."""
  if error is not None:
    raise InputError(f"{name} cannot be used: {error}.")
  return row


def outputs(
  trained: trained_lib.Trained,
  images: Sequence[str | np.ndarray],
  step: Any,
  *,
  batch_size: int,
  strips: pathlib.Path | None = None,
) -> Iterator[tuple[str, Any]]:
  """Yields (name as printable text, its part of the step's outputs, or BadRecordError) for each image, in order.

  A file's name is its path, that of pixels "image" and their number.

  Args:
    trained: the model; images meet the pre-processing of its config.best's evaluator.
    images: see load_image.
    step: of experiment.make_predict_step; its outputs have the batch as their first axis.
    batch_size: images computed at once; all batches have this size, so that one program serves them.
    strips: directory for a picture of each video's frames as the model sees them, at the video's place below the folder
      that all have in common. If None, there are none.
  """
  setup = trained.setup
  size = -(-min(batch_size, len(images)) // setup.mesh.size) * setup.mesh.size
  blank = np.zeros(setup.options.input_shape, np.uint8)
  preprocess = trained_lib.preprocess(setup)
  folders = [os.path.dirname(os.path.abspath(str(x))) for x in images] if strips else [""]
  root = os.path.commonpath(folders)

  def load(image: str | np.ndarray) -> np.ndarray | BadRecordError:
    try:
      pixels = load_image(image, preprocess)
      if strips is not None:
        save_strip(strips / f"{os.path.relpath(str(image), root)}.png", pixels)
      return pixels
    except BadRecordError as e:
      return e

  with ThreadPoolExecutor() as threads:
    for start in range(0, len(images), size):
      part = images[start : start + size]
      loaded = list(threads.map(load, part))
      pixels = [blank if isinstance(x, BadRecordError) else x for x in loaded]
      pixels += [blank] * (size - len(part))
      batch = sharding.put_batch(
        {"image": np.stack(pixels)}, setup.shardings.batch, np.arange(size), size
      )
      out = jax.tree.map(np.asarray, step(trained.variables, batch))
      for i, (image, result) in enumerate(zip(part, loaded, strict=True)):
        name = f"image {start + i}" if isinstance(image, np.ndarray) else _shown(image)
        bad = isinstance(result, BadRecordError)
        yield name, result if bad else jax.tree.map(lambda x, i=i: x[i], out)


def _shown(path: str) -> str:
  return printing.printable(os.fsencode(path).decode("utf-8", "backslashreplace"))


def save_strip(path: pathlib.Path, clip: UInt8[np.ndarray, "t h w c"]) -> None:
  """Writes a PNG of the frames, one beside the other, and makes its directory. Raises SaveError."""
  order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[clip.shape[-1]]  # OpenCV's
  with files.replacing(path) as partial:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(cv2.imencode(".png", np.hstack(list(clip))[..., order])[1].tobytes())


def check_strips(path: str, setup: experiment.ModelSetup) -> pathlib.Path:
  """Returns the directory, made where there is none; raises InputError for a model of images."""
  if setup.options.frames is None:
    raise InputError(f"--strips={path} is for a model of clips; this one takes images.")
  directory = pathlib.Path(files.path_of(path, "--strips"))
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise InputError(f"--strips={path} cannot be made: {e.strerror}") from e
  return directory


def read_class_names(path: str, num_classes: int) -> list[str]:
  """Returns the lines of a file; raises InputError unless there is one for each class."""
  try:
    file = files.path_of(path, "--class_names")
    if file.stat().length > MAX_FILE_BYTES:
      raise InputError(f"--class_names={path} is larger than {MAX_FILE_BYTES >> 20} MiB.")
    names = files.read(file).decode("utf-8-sig").splitlines()
  except (OSError, ValueError) as e:
    raise InputError(f"--class_names={path} cannot be read: {e}") from e
  if len(names) != num_classes:
    raise InputError(
      f"--class_names={path} has {len(names)} lines; the model has {num_classes} classes."
    )
  return names


def format_text(prediction: Prediction) -> str:
  """Returns the lines for the terminal."""
  lines = [f"  {p['probability']:.4f}  {p['name']}" for p in prediction["predictions"]]
  return "\n".join([prediction["file"], *lines])


def format_file(predictions: Sequence[Prediction], suffix: str) -> str:
  """Returns the contents of a .json file (everything), or a .csv one (a line for each class named)."""
  if suffix == ".json":
    return json.dumps(predictions, indent=1, ensure_ascii=False) + "\n"
  lines = [
    (one["file"], rank, p["class"], p["name"], p["probability"])
    for one in predictions
    for rank, p in enumerate(one.get("predictions", ()), 1)
  ]
  return tables.as_csv([("file", "rank", "class", "name", "probability"), *lines])


def draw(paths: Sequence[str], predictions: Sequence[Prediction], kind: photos.Kind) -> bytes:
  """Returns a PNG of the first 48 images or videos that were predicted, each below its likeliest class."""
  predicted = [
    (p, one["predictions"][0])
    for p, one in zip(paths, predictions, strict=True)
    if "error" not in one
  ]
  shown = []
  for path, best in predicted[:_MAX_DRAWN]:
    data = videos.read(path) if kind is photos.VIDEOS else _read_image(path)
    alpha = isinstance(data, bytes) and decode.read_header(data).alpha
    image = curves.picture(data, 4 if alpha else 3)
    small = image[:: -(-image.shape[0] // 256), :: -(-image.shape[1] // 256)]
    text = f"{best['name'].partition(' (')[0]} {best['probability']:.2f}"
    shown.append(curves.Sample(small, text, wrong=False))
  return figures.encode(curves.predictions(shown, "likeliest classes", columns=6, width=2.0))


def check_output(path: str, suffixes: Sequence[str] = (".csv", ".json", ".png")) -> pathlib.Path:
  """Returns the path; raises InputError unless a file with one of the suffixes can be written there."""
  output = pathlib.Path(files.path_of(path, "--output"))
  if output.suffix not in suffixes:
    raise InputError(f"--output={path} must end with {' or '.join(suffixes)}.")
  if not os.access(output.parent, os.W_OK):
    raise InputError(f"--output={path}: {output.parent} is not a directory that can be written to.")
  return output


def save(
  output: pathlib.Path,
  predictions: Sequence[Prediction],
  paths: Sequence[str],
  kind: photos.Kind = photos.IMAGES,
) -> None:
  """Writes the predictions for the files of `paths`, all of it or nothing. Raises SaveError."""
  drawn = output.suffix == ".png"
  content = (
    draw(paths, predictions, kind) if drawn else format_file(predictions, output.suffix).encode()
  )
  with files.replacing(output) as partial:
    partial.write_bytes(content)
