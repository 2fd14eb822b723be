"""Prepares a data set: a TFDS data set stored as ArrayRecord, which is read without TensorFlow.

python -m mixer_jax.tools.prepare --from_folder=DIR [--held_out=10%]   # DIR/CLASS/… or DIR/SPLIT/CLASS/…
python -m mixer_jax.tools.prepare --from_tsv=FILE [--names=FILE]       # lines of path<TAB>label[,label…]
python -m mixer_jax.tools.prepare --from_videos=DIR or FILE.tsv        # likewise, of videos
python -m mixer_jax.tools.prepare --from_tfds=DIR                      # stored as TFRecord
python -m mixer_jax.tools.prepare --from_imagenet=DIR                  # with ILSVRC2012_img_{train,val}.tar
python -m mixer_jax.tools.prepare NAME                                 # by TFDS's builder; cifar10, vtab/dmlab

The same command resumes after an interruption. Exit status: 0 prepared, 2 bad input or bad images, 130
stopped by Ctrl-C. Most of TFDS's own builders need TensorFlow: pip install '.[prepare]'.
"""

import os
import pathlib
import re
import shlex
import sys

from absl import flags

from mixer_jax.data import builders, datasets, videos
from mixer_jax.errors import InputError, installing
from mixer_jax.parallel import processes
from mixer_jax.tools import command
from mixer_jax.tools.preparation import (
  archives,
  catalogue,
  engine,
  folders,
  images,
  shards,
  tables,
  tfrecords,
)

_FROM_FOLDER = flags.DEFINE_string("from_folder", None, "Folder with one folder per class.")
_FROM_TSV = flags.DEFINE_string("from_tsv", None, "Table with lines of path<TAB>label[,label…].")
_NAMES = flags.DEFINE_string(
  "names", None, "With a table: file with one class name per line, in the order of their indices."
)
_FROM_VIDEOS = flags.DEFINE_string(
  "from_videos", None, "Folder with one folder of videos per class, or a table as for --from_tsv."
)
_SHORT_SIDE = flags.DEFINE_integer(
  "short_side",
  None,
  f"With --from_videos: pixels of the shorter side that larger frames are reduced to. Default: {videos.SHORT_SIDE}.",
  lower_bound=1,
  upper_bound=4096,
)
_FPS = flags.DEFINE_float(
  "fps",
  None,
  "With --from_videos: frames to keep per second of video. Default: all frames of the file.",
  lower_bound=0.001,
  upper_bound=1000,
)
_FROM_TFDS = flags.DEFINE_string(
  "from_tfds", None, "Directory of a TFDS data set stored as TFRecord."
)
_FROM_IMAGENET = flags.DEFINE_string(
  "from_imagenet", None, "Directory that contains ImageNet's two archives."
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir",
  None,
  "Directory to keep the data set in. Default: $TFDS_DATA_DIR or ~/tensorflow_datasets.",
)
_NAME = flags.DEFINE_string(
  "name", None, "Name of the data set. Default: the name of the folder or the table."
)
_HELD_OUT = flags.DEFINE_string(
  "held_out",
  None,
  "Share of each class's training images to hold out as the split 'validation', such as 10%.",
)
_SEED = flags.DEFINE_integer("seed", 0, "With --held_out: seed that chooses the held-out images.")
_NUM_SHARDS = flags.DEFINE_integer(
  "num_shards",
  None,
  "Number of files of the largest split. Default: files of about 256 MiB.",
  lower_bound=1,
)
_NUM_WORKERS = flags.DEFINE_integer(
  "num_workers",
  None,
  "Number of worker processes. Default: one per core. With 0, this process does the work.",
  lower_bound=0,
)
_VERIFY = flags.DEFINE_bool("verify", True, "Decode every image to find the bad ones.")
_ON_BAD_RECORD = flags.DEFINE_enum(
  "on_bad_record",
  "stop",
  ["stop", "skip"],
  "What to do about bad images: stop at the end, or skip them.",
)
_MAX_CLASSES_SHOWN = 20


def main(argv: list[str]) -> None:
  given = [
    f.name for f in (_FROM_FOLDER, _FROM_TSV, _FROM_VIDEOS, _FROM_TFDS, _FROM_IMAGENET) if f.value
  ]
  if len(given) + len(argv[1:]) != 1:
    raise InputError(
      "give one of --from_folder, --from_tsv, --from_videos, --from_tfds, --from_imagenet, or the name of a TFDS data set."
    )
  if not given:
    _prepare_by_builder(argv[1])
    return
  plan = _plan()
  total = sum(plan.num_examples.values())
  print(
    f"found {total:,} {plan.what} of {len(plan.classes):,} classes, {plan.num_bytes / 1e6:,.0f} MB"
  )
  data_dir = _DATA_DIR.value or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  try:
    prepared = engine.prepare(
      plan,
      data_dir,
      num_workers=processes.num_cores() if _NUM_WORKERS.value is None else _NUM_WORKERS.value,
      verify=_VERIFY.value,
      skip_bad=_ON_BAD_RECORD.value == "skip",
      report=lambda line: print(line, flush=True),
    )
  except KeyboardInterrupt:
    print("stopped; the same command resumes", file=sys.stderr)
    sys.exit(130)
  _show(prepared, plan)


def _prepare_by_builder(name: str) -> None:
  try:
    print(f"{name} is prepared in {builders.prepare(datasets.find(name).tfds, _DATA_DIR.value)}")
  except (InputError, MemoryError):
    raise
  except ImportError as e:
    raise InputError(
      f"{name} needs {e.name}. {_other_way(name)}, or {installing('prepare')}."
    ) from e
  except Exception as e:  # each says in its own way which archives or network it lacks
    raise InputError(
      f"TFDS's builder cannot prepare {name}: {builders.first_line(e).rstrip(':. ')}. Two ways out: {_other_way(name)}; or give the "
      "builder what it lacks (a network, or archives as https://www.tensorflow.org/datasets says) and repeat the command."
    ) from e


def _other_way(name: str) -> str:
  if name.startswith("imagenet2012"):
    return "give --from_imagenet=DIR, which reads ILSVRC2012_img_{train,val}.tar without TensorFlow and network"
  return "prepare the images with --from_folder, --from_tsv or --from_tfds, without TensorFlow and network"


def _plan() -> shards.Plan:
  table = _FROM_TSV.value or (
    _FROM_VIDEOS.value if os.path.isfile(_FROM_VIDEOS.value or "") else None
  )
  if _NAMES.value and not table:
    raise InputError("--names goes with --from_tsv, or with a table of --from_videos.")
  of_videos = _videos()
  if _FROM_TFDS.value:
    fixed = (_NAME, _HELD_OUT, _NUM_SHARDS)
    if changed := [f.name for f in fixed if f.value is not None]:
      raise InputError(
        f"--from_tfds keeps names, splits and shards as they are: no --{changed[0]}."
      )
    return tfrecords.plan(_FROM_TFDS.value)
  if table:
    collection = tables.read(table, _name(table), _NAMES.value, of_videos)
  elif folder := _FROM_FOLDER.value or _FROM_VIDEOS.value:
    collection = folders.read(folder, _name(folder), of_videos)
  elif _NAME.value:
    raise InputError("--from_imagenet prepares imagenet2012: no --name.")
  else:
    collection = archives.read(str(_FROM_IMAGENET.value))
  return images.plan(
    collection, held_out=_fraction(), seed=_SEED.value, num_shards=_NUM_SHARDS.value
  )


def _videos() -> catalogue.Videos | None:
  """Returns what becomes of videos, None if images are prepared; raises InputError for flags that do not fit."""
  if not _FROM_VIDEOS.value:
    if given := [f.name for f in (_SHORT_SIDE, _FPS) if f.value is not None]:
      raise InputError(f"--{given[0]} goes with --from_videos.")
    return None
  if not _VERIFY.value:
    raise InputError("--noverify is for images: videos are decoded to be stored.")
  videos.check_installed()
  return catalogue.Videos(_SHORT_SIDE.value or videos.SHORT_SIDE, _FPS.value)


def _name(path: str) -> str:
  """Returns a name as TFDS has them: lower case, digits and underscores, from a letter on."""
  name = _NAME.value
  if name is None:
    stem = pathlib.Path(path).absolute().stem.lower()
    name = re.sub(r"[^a-z0-9]+", "_", stem).strip("_")
  if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
    raise InputError(
      f"{name!r} cannot be the name of a data set; give one like --name=letters_digits_1."
    )
  return name


def _fraction() -> float:
  text = _HELD_OUT.value
  if text is None:
    return 0.0
  try:
    fraction = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
  except ValueError:
    fraction = 0.0
  if not 0 < fraction < 1:
    raise InputError(f"--held_out={text} is not a share; give one like 10% or 0.1.")
  return fraction


def _show(prepared: engine.Prepared, plan: shards.Plan) -> None:
  for split, counts in prepared.classes.items():
    print(f"{split}: {prepared.splits[split]:,} {plan.what}; {_counts(counts)}")
  if prepared.num_bad or prepared.num_ignored:
    print(
      f"left out: {prepared.num_bad:,} bad {plan.what}, {prepared.num_ignored:,} other files, listed in "
      f"{prepared.directory / engine.QUARANTINE}"
    )
  print(f"{'already ' * prepared.again}prepared in {prepared.directory}")
  if list(prepared.splits) == ["train"]:
    print(
      "nothing is held out: these flags evaluate on what is trained on. --held_out=10% with another --name holds out a tenth"
    )
  print("train and evaluate with\n  " + " \\\n  ".join(_train_flags(prepared, plan)))


def _counts(counts: dict[str, int]) -> str:
  if len(counts) <= _MAX_CLASSES_SHOWN:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
  by_count = sorted(counts.items(), key=lambda item: item[1])
  (least, fewest), (most, largest) = by_count[0], by_count[-1]
  return f"{len(counts):,} classes, from {least} {fewest:,} to {most} {largest:,}"


def _train_flags(prepared: engine.Prepared, plan: shards.Plan) -> list[str]:
  if plan.name == "imagenet2012":
    data_dir = prepared.directory.parent.parent
    return ["--config=configs/imagenet.py:B/16", shlex.quote(f"--config.data.data_dir={data_dir}")]
  train = "train" if "train" in prepared.splits else next(iter(prepared.splits))
  tests = [s for s in prepared.splits if s != train]
  evaluated = sorted(tests, key=lambda s: (s == "test", s))[0] if tests else train
  lines = [
    shlex.quote(f"--config.data.dataset={prepared.directory}"),
    f"--config.data.split={train} --config.data.num_examples={prepared.splits[train]}",
    f"--config.evaluators.val.split={evaluated} "
    f"--config.evaluators.val.num_examples={prepared.splits[evaluated]}",
    f"--config.num_classes={len(plan.classes)}",
  ]
  if plan.labels_per_image != 1:
    most = plan.labels_per_image or "MOST_LABELS_OF_AN_IMAGE"
    lines += [
      f"--config.data.labels_per_image={most} --config.evaluators.val.labels_per_image={most}",
      "--config.loss=sigmoid_xent",
    ]
  return lines


if __name__ == "__main__":
  command.run(main)
