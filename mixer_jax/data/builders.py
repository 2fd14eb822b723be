"""TFDS builders: found by name or directory, and run once to prepare a data set as ArrayRecord."""

import contextlib
import functools
import io
import os
import pathlib
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from etils import epath

from mixer_jax import configuration, files
from mixer_jax.data import buckets, datasets
from mixer_jax.errors import InputError, installing

_DESCRIBES = ("dataset_info.json", "features.json", ".labels.txt")  # ends of names of TFDS's files
EMBEDDED = ("digits", "digits_0_4", "digits_5_9", "fashion_mnist_debian")
"""Data sets that need no network: they are prepared where they are first opened."""


def first_line(error: Exception) -> str:
  """Returns an exception's type and the first line of what it says."""
  return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def is_directory(dataset: str) -> bool:
  """Returns whether a data set is given by its directory: "mine/1.0.0" is one if a prepared data set is there."""
  return (
    dataset.startswith(("/", ".", "~"))
    or "://" in dataset
    or ("/" in dataset and pathlib.Path(dataset, "dataset_info.json").is_file())
  )


@functools.cache
def tfds_of_own_features() -> Any:
  """Returns TFDS, which from then on loads its own feature classes alone.

  A prepared data set's description names the class of each feature. TFDS would import the module of any such name,
  and run its code.
  """
  import tensorflow_datasets as tfds

  find_class = tfds.features.FeatureConnector.cls_from_name

  def find_own(name: str) -> Any:
    if not re.fullmatch(r"tensorflow_datasets\.core\.features\.\w+\.\w+", name, re.ASCII):
      raise InputError(
        f"the data set's description names the feature class {name!r}, which is not TFDS's own: loading it would "
        "run another's code. Prepare the data set with TFDS's features (python -m mixer_jax.tools.prepare --help)."
      )
    return find_class(name)

  setattr(tfds.features.FeatureConnector, "cls_from_name", staticmethod(find_own))  # noqa: B010
  return tfds


def list_checksums(directory: pathlib.Path) -> None:
  """Lists the checksums of what describes a prepared data set: names of classes, features, splits."""
  files.list_checksums(
    directory, (p.name for p in sorted(directory.iterdir()) if p.name.endswith(_DESCRIBES))
  )


def _check_description(directory: epath.Path) -> None:
  """Raises InputError if a file that describes a prepared data set is another than was written, or is missing."""
  path = directory / files.CHECKSUMS
  try:
    for name in files.listed_checksums(directory):
      if name.endswith(_DESCRIBES):  # a user may have listed the records, too
        path = directory / name
        files.read_listed(path)
  except (OSError, ValueError) as e:
    raise InputError(f"{path} is damaged: {e}.") from e


def from_directory(directory: str) -> Any:
  """Returns the builder of a prepared data set's directory; raises InputError if TFDS cannot load it, or must not."""
  _check_description(epath.Path(directory))
  try:
    return tfds_of_own_features().builder_from_directory(directory)
  except InputError as e:
    raise InputError(f"{directory}: {e}") from e
  except ImportError as e:  # TFDS's Video needs TensorFlow
    raise InputError(
      f"{directory} has features that TFDS needs {e.name} for: {installing('prepare')}"
    ) from e
  except Exception as e:  # whatever TFDS makes of a damaged description
    raise InputError(f"{directory} is damaged: {first_line(e)}") from e


def _meant(dataset: str, tfds: Any) -> str:
  """Returns ' Did you mean …?' with a data set that was prepared below the current directory, or one of TFDS's."""
  prepared = [str(p.parent) for p in sorted(pathlib.Path().glob("*/*/dataset_info.json"))]
  if own := [name for name in prepared if name.startswith(f"{dataset}/")]:
    return f" Did you mean {own[-1]!r}?"
  if folder := _of_folder(dataset):
    return folder
  known = [*prepared, *EMBEDDED, *tfds.list_builders(with_community_datasets=False)]
  hint = configuration.nearest(dataset, known, alike=0.7)
  return hint if "Did you mean" in hint else ""


def _of_folder(dataset: str) -> str:
  """Returns the command that prepares a folder of images, "" if there is no such folder."""
  if not pathlib.Path(dataset).is_dir():
    return ""
  command = f"python -m mixer_jax.tools.prepare {shlex.quote(f'--from_folder={dataset}')}"
  return f" Prepare a folder of images with {command}"


def find(dataset: str, data_dir: str | None, **options: Any) -> Any:
  """Returns the TFDS builder of a data set, prepared or not.

  Args:
    dataset, data_dir: see sources.open_source.
    options: of the builder, where the data set has a name.

  Raises:
    InputError: unknown, or not the directory of a prepared data set.
  """
  if is_directory(dataset):
    buckets.check(dataset)
    dataset = str(files.path_of(dataset, "the data set"))
    if not (epath.Path(dataset) / "dataset_info.json").exists():
      raise InputError(
        f"{dataset} is not the directory of a prepared TFDS data set.{_of_folder(dataset)}"
      )
    return from_directory(dataset)
  data_dir = _data_dir(data_dir)
  if dataset in EMBEDDED:
    from mixer_jax.data import digits, fashion_mnist

    known = {**digits.BUILDERS, **fashion_mnist.BUILDERS}
    with _without_leftovers():
      builder = known[dataset](data_dir=data_dir, file_format="array_record")
    _check_description(epath.Path(builder.data_dir))
    return builder
  tfds = tfds_of_own_features()
  try:
    with _without_leftovers():
      builder = tfds.builder(dataset, data_dir=data_dir, try_gcs=False, **options)
  except (AssertionError, TypeError) as e:  # of arguments in the name
    raise InputError(f"data set {dataset!r}: {e}") from e
  except ValueError as e:
    unknown = isinstance(e, tfds.core.DatasetNotFoundError) or str(e).startswith("Parsing builder")
    if not unknown:
      raise InputError(f"data set {dataset!r}: {first_line(e)}") from e
    if dataset in {entry.tfds for entry in datasets.DATASETS.values()}:
      raise InputError(
        f"data set {dataset!r} is not prepared in {data_dir or 'the default data_dir'}, and TFDS cannot prepare it. Prepare "
        f"it from its files: python -m mixer_jax.tools.prepare --name={dataset}, with --from_folder=DIR or, of videos, "
        "--from_videos=DIR."
      ) from e
    raise InputError(
      f"data set {dataset!r} is not known to TFDS; give the name of a TFDS data set, or the directory "
      f"of a prepared one, NAME/VERSION.{_meant(dataset, tfds)}"
    ) from e
  _check_description(epath.Path(builder.data_dir))
  return builder


def _data_dir(given: str | None) -> str | None:
  """Returns the directory as TFDS wants it, None for its own default; raises InputError if there is none by that name."""
  default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  path = str(files.path_of(default if given is None else given, "data_dir"))
  return None if given is None else path


@contextlib.contextmanager
def _without_leftovers() -> Iterator[None]:
  """Removes the temporary directory that a builder makes, and leaves behind, for data that are not prepared yet."""
  before = tempfile.tempdir
  with tempfile.TemporaryDirectory() as tempfile.tempdir:
    try:
      yield
    finally:
      tempfile.tempdir = before


def prepare(dataset: str, data_dir: str | None) -> str:
  """Prepares a data set as ArrayRecord with TFDS's own builder, once; returns its directory.

  Of an embedded one TFDS's announcement of a download and its bars are hidden.
  """
  if "://" in (data_dir or ""):
    raise InputError(f"--data_dir={data_dir}: prepare on a local disk, and copy the result there.")
  builder = find(dataset, data_dir, file_format="array_record")
  quiet, directory = dataset in EMBEDDED, pathlib.Path(builder.data_dir)
  if not directory.exists():
    directory.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(directory.parent / f".{directory.name}.lock"):
      if not directory.exists():
        if quiet:
          print(
            f"preparing {builder.name} in {directory} (elsewhere: data_dir or $TFDS_DATA_DIR)",
            file=sys.stderr,
          )
        with _quiet() if quiet else contextlib.nullcontext():
          builder.download_and_prepare()
        list_checksums(directory)
  return str(directory)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  import tensorflow_datasets as tfds

  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):
    yield
  tfds.enable_progress_bar()
