"""TFDS splits as random-access sources of encoded images, read without TensorFlow.

Data sets must be prepared as ArrayRecord; `python -m mixer_jax.tools.prepare NAME` does it. Only the
embedded digits are prepared on first use.
"""

import contextlib
import fcntl
import io
import pathlib
from collections.abc import Iterator
from typing import Any

from etils import epath

from mixer_jax import configuration
from mixer_jax.errors import InputError

EMBEDDED = ("digits",)


class BadRecordError(ValueError):
  """A record that cannot be used: unreadable, no whole image, or an impossible label."""


def _first_line(error: Exception) -> str:
  return f"{type(error).__name__}: {error}".strip().splitlines()[0]


class Source:
  """A split: `source[i]` is {"image": bytes, "label": int}; picklable, opened anew in each process."""

  def __init__(self, name: str, data_source: Any, num_classes: int | None):
    self.name = name
    self.num_classes = num_classes
    self._data_source = data_source

  def __len__(self) -> int:
    return len(self._data_source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Returns the example; raises BadRecordError if the file or the label is damaged."""
    try:
      record = self._data_source[int(index)]
      return {"image": record["image"], "label": int(record["label"])}
    except (OSError, RuntimeError, ValueError, TypeError, IndexError) as e:
      raise BadRecordError(f"unreadable: {_first_line(e)}") from e


def open_source(*, dataset: str, data_dir: str | None, split: str) -> Source:
  """Opens a split of a prepared TFDS data set.

  Args:
    dataset: TFDS name ("imagenet2012", "imagenet_v2/matched-frequency:3.0.0"), or the directory of a
      prepared version, which starts with / or . or ~ or a scheme.
    data_dir: where TFDS keeps its data; None: $TFDS_DATA_DIR or ~/tensorflow_datasets.
    split: split in TFDS's syntax, with sub-splits: "train[:99%]".

  Raises:
    InputError: unknown data set, not prepared or not as ArrayRecord, unknown split, or without the
      features "image" and "label".
  """
  import tensorflow_datasets as tfds  # Takes seconds to import, and only opening a source needs it.

  try:
    if dataset in EMBEDDED:
      prepare(dataset, data_dir)
    builder = _builder(dataset, data_dir)
  except OSError as e:
    raise InputError(f"data set {dataset!r} cannot be opened or prepared: {e}") from e
  if not builder.info.splits:
    where = builder.data_dir
    raise InputError(
      f"data set {dataset!r} is not prepared in {where}. Prepare it with\n"
      f"  python -m mixer_jax.tools.prepare {dataset}"
      + (f" --data_dir={data_dir}" if data_dir else "")
    )
  features = builder.info.features
  if features is None or not {"image", "label"} <= set(features):
    raise InputError(f"data set {dataset!r} has no features 'image' and 'label': {features}.")
  try:
    data_source = builder.as_data_source(
      split=split, decoders={"image": tfds.decode.SkipDecoding()}
    )
  except NotImplementedError as e:
    raise InputError(
      f"data set {dataset!r} in {builder.data_dir} is not stored as ArrayRecord; prepare it anew with "
      f"python -m mixer_jax.tools.prepare {dataset} --data_dir=ANOTHER_DIRECTORY"
    ) from e
  except (RuntimeError, OSError) as e:
    raise InputError(
      f"data set {dataset!r} in {builder.data_dir} is damaged: {_first_line(e)}"
    ) from e
  except (ValueError, AssertionError) as e:
    known = configuration.nearest(split, builder.info.splits)
    raise InputError(f"split {split!r} of data set {dataset!r} cannot be read: {e}.{known}") from e
  num_classes = getattr(features["label"], "num_classes", None)
  return Source(f"{dataset} {split}", data_source, num_classes)


def class_names(*, dataset: str, data_dir: str | None) -> list[str]:
  """Returns the names of a data set's classes, [] if it has none; the data need not be prepared.

  Raises:
    InputError: unknown data set.
  """
  features = _builder(dataset, data_dir).info.features
  label = features["label"] if features is not None and "label" in features else None
  return list(getattr(label, "names", None) or [])


def _builder(dataset: str, data_dir: str | None, **options: Any) -> Any:
  import tensorflow_datasets as tfds

  if dataset.startswith(("/", ".", "~")) or "://" in dataset:
    if not (epath.Path(dataset) / "dataset_info.json").exists():
      raise InputError(f"{dataset} is not the directory of a prepared TFDS data set.")
    try:
      return tfds.builder_from_directory(dataset)
    except Exception as e:  # whatever TFDS makes of a damaged description
      raise InputError(f"{dataset} is damaged: {_first_line(e)}") from e
  if dataset == "digits":
    from mixer_jax.data import digits

    return digits.Digits(data_dir=data_dir, file_format="array_record")
  try:
    return tfds.builder(dataset, data_dir=data_dir, try_gcs=False, **options)
  except AssertionError as e:
    raise InputError(f"data set {dataset!r}: {e}") from e
  except tfds.core.DatasetNotFoundError as e:
    known = [*EMBEDDED, *tfds.list_builders(with_community_datasets=False)]
    hint = configuration.nearest(dataset, known)
    raise InputError(
      f"data set {dataset!r} is not known to TFDS; give the name of a TFDS data set, or the directory "
      "of a prepared one." + (hint if "Did you mean" in hint else "")
    ) from e


def prepare(dataset: str, data_dir: str | None) -> str:
  """Prepares a data set as ArrayRecord with TFDS's own builder, once; returns its directory."""
  builder = _builder(dataset, data_dir, file_format="array_record")
  if pathlib.Path(builder.data_dir).exists():
    return str(builder.data_dir)
  with _lock(pathlib.Path(builder.data_dir)):
    if not pathlib.Path(builder.data_dir).exists():
      with _quiet() if dataset in EMBEDDED else contextlib.nullcontext():
        builder.download_and_prepare()
  return str(builder.data_dir)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Hides TFDS's announcement of a download and its bars: the embedded data are there in a second."""
  import tensorflow_datasets as tfds

  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):
    yield
  tfds.enable_progress_bar()


@contextlib.contextmanager
def _lock(directory: pathlib.Path) -> Iterator[None]:
  """Lets one process at a time prepare a data set; the lock goes with the process that holds it."""
  directory.parent.mkdir(parents=True, exist_ok=True)
  with (directory.parent / f".{directory.name}.lock").open("w") as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    yield
