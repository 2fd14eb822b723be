"""The input pipeline against the authors' in tf.data, side by side on one core.

    python -m benchmarks.input_pipeline                       # some ten minutes, prints a table
    python -m benchmarks.input_pipeline --json=FILE --kind=500x375 --repeats=3

The first run makes the photos, an ArrayRecord data set of them, and the rival's environment
(TensorFlow, scikit-image) below --workdir. Contestants take turns on one core, and the medians of their
CPU seconds per image are compared, since other programs may want the core too; the table's wall column
tells how much they got in the way. Works: (a) decode, crop, flip and resize; (b) with RandAugment; (c)
either through the loader into batches of 64, with 0, 1 and 2 worker processes.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import cv2
import numpy as np

from benchmarks import photos, turns
from mixer_jax.data import loading, pipeline, sources, turbojpeg
from mixer_jax.data.preprocess import Preprocess
from mixer_jax.tools.preparation import engine, folders, images

RIVAL_PACKAGES = ("tensorflow-cpu==2.21.0", "scikit-image==0.26.0")
BATCH, SIZE = 64, 224
WORKS = ("crop", "randaugment", "load", "load_randaugment")
AUGMENT = "|randaugment(2, 15)"

# Images per CPU second against the rival's, by (work, kind) and mode.
TARGETS = {
  ("crop", "500x375"): {"exact": 1.2, "fast": 1.5},
  ("crop", "1280x960"): {"exact": 1.0, "fast": 1.3},
  ("load", None): {"exact": 1.15, "fast": 1.15},
  ("load_randaugment", None): {"exact": 2.5, "fast": 2.5},
}


def main() -> None:
  parser = argparse.ArgumentParser(description="the input pipeline against tf.data, on one core")
  parser.add_argument("--workdir", type=pathlib.Path, default="workdir/benchmark")
  parser.add_argument("--kind", choices=[*photos.KINDS], action="append", help="default: both")
  parser.add_argument("--work", choices=WORKS, action="append", help="default: all")
  parser.add_argument("--photos", type=int, default=300, help="of each kind")
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--images", type=int, default=256, help="in each turn of a contestant")
  parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
  parser.add_argument("--json", type=pathlib.Path, help="write the table to this file too")
  args = parser.parse_args()
  core = min(os.sched_getaffinity(0))
  os.sched_setaffinity(0, {core})  # for the rival and the workers, too, which inherit it
  cv2.setNumThreads(1)
  kinds = args.kind or [*photos.KINDS]
  args.workdir.mkdir(parents=True, exist_ok=True)
  python = turns.make_environment(args.workdir / "rival-env", RIVAL_PACKAGES)
  prepare(args.workdir, python, kinds, args.photos)
  print(f"TurboJPEG 3: {'yes' if turbojpeg.available() else 'no'}; core {core}", flush=True)
  rows = []
  command = [python, pathlib.Path(__file__).with_name("rival.py"), args.workdir]
  log = args.workdir / "input_pipeline-rival.log"
  with turns.Contestant("tf.data", command, os.environ, log) as rival:
    for kind in kinds:
      source = open_source(args.workdir, kind)
      for work in args.work or WORKS:
        rows += compare(args, rival, source, kind, work)
  if args.json:
    args.json.write_text(json.dumps(rows, indent=1) + "\n")


def compare(
  args: argparse.Namespace, rival: turns.Contestant, source: sources.Source, kind: str, work: str
) -> list[dict[str, Any]]:
  """Lets the contestants take turns; prints and returns a row for each."""
  contestants: dict[str, Callable[[], tuple[float, float]]] = {
    "tf.data": lambda: measure_rival(rival, kind, work, args.images)
  }
  for mode in ("exact", "fast"):
    text = f"decode(mode={mode!r})|inception_crop|flip"
    spec = Preprocess(text + (AUGMENT if work.endswith("randaugment") else ""), (SIZE, SIZE, 3))
    if work.startswith("load"):
      for workers in args.workers:
        contestants[f"{mode}, {workers} workers"] = lambda s=spec, w=workers: measure_loader(
          source, s, w, args.images
        )
      continue
    contestants[mode] = lambda s=spec: measure_ops(source, s, args.images)
    if turbojpeg.available():
      contestants[f"{mode}, simplejpeg alone"] = lambda s=spec: without_turbojpeg(
        lambda: measure_ops(source, s, args.images)
      )
  taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
  for _ in range(args.repeats):
    for name, measure in contestants.items():
      taken[name].append(measure())
  cpu = {name: statistics.median(t[0] for t in turn) for name, turn in taken.items()}
  rows = []
  for name, turn in taken.items():
    wanted = TARGETS.get((work, kind), TARGETS.get((work, None), {}))
    rows.append(
      {
        "kind": kind, "work": work, "contestant": name, "cpu_ms": 1000 * cpu[name],
        "wall_ms": 1000 * statistics.median(t[1] for t in turn),
        "images_per_cpu_s": 1 / cpu[name], "ratio": cpu["tf.data"] / cpu[name],
        "target": wanted.get(name.split(",")[0]) if "alone" not in name else None,
      }
    )  # fmt: skip
    print(render(rows[-1]), flush=True)
  return rows


def render(row: dict[str, Any]) -> str:
  target = "" if row["target"] is None else f"target {row['target']:.2f}"
  return (
    f"{row['kind']:9} {row['work']:16} {row['contestant']:24} {row['cpu_ms']:7.3f} ms CPU"
    f" {row['wall_ms']:7.3f} ms wall {row['images_per_cpu_s']:6.0f} images/s"
    f"  ratio {row['ratio']:.2f} {target}"
  )


# --- contestants ------------------------------------------------------------------------------------


def cpu_s() -> float:
  """Returns the CPU seconds of this process and its living children, workers among them."""
  ticks = 0
  for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
      pid, rest = stat.parent.name, stat.read_text().rpartition(")")[2].split()
    except OSError:
      continue  # it has just ended
    if int(pid) != os.getpid() and int(rest[1]) == os.getpid():
      ticks += int(rest[11]) + int(rest[12])
  return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def measure_ops(source: sources.Source, spec: Preprocess, count: int) -> tuple[float, float]:
  """Returns CPU and wall seconds an image, of the operations alone."""
  examples = [source[i % len(source)] for i in range(count)]
  rng = np.random.default_rng(0)
  cpu, wall = time.process_time(), time.perf_counter()
  for example in examples:
    spec(example, rng)
  return (time.process_time() - cpu) / count, (time.perf_counter() - wall) / count


def measure_rival(rival: turns.Contestant, kind: str, work: str, count: int) -> tuple[float, float]:
  answer = rival.ask({"kind": kind, "work": work, "count": count})
  return answer["cpu_s"] / answer["images"], answer["wall_s"] / answer["images"]


def without_turbojpeg(measure: Callable[[], tuple[float, float]]) -> tuple[float, float]:
  with mock.patch.object(turbojpeg, "decode_region", return_value=None):
    return measure()


class Repeated:
  """The photos as often as ImageNet has images: shuffling a few hundred costs thirty times as much each.

  Grain's shuffle enciphers numbers of 16 bits or more until one lies within the data set.
  """

  def __init__(self, source: sources.Source):
    self._source, self.name = source, source.name

  def __len__(self) -> int:
    return 1_281_167

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._source[index % len(self._source)]


def measure_loader(
  source: sources.Source, spec: Preprocess, num_workers: int, count: int
) -> tuple[float, float]:
  """Returns CPU and wall seconds an image, in the middle of a run, when what is loaded ahead is full."""
  before = 3 * (num_workers + 1)
  measured = max(-(-count // BATCH), 4 * before)  # much more than what was loaded ahead
  many: Any = Repeated(source)
  split = pipeline.SplitSpec(
    dataset="", data_dir=None, split="train", label=None, num_examples=len(many), num_classes=10,
    labels_per_image=1, ops=spec, on_bad_record="stop",
  )  # fmt: skip
  batches = pipeline.TrainBatches(
    split, many, seed=0, batch_size=BATCH, rows=np.arange(BATCH), total_steps=10**6
  )
  with loading.iterate(batches, num_workers=num_workers) as loaded:
    for _ in range(before):
      next(loaded)
    cpu, wall = cpu_s(), time.perf_counter()
    for _ in range(measured):
      next(loaded)
    cpu, wall = cpu_s() - cpu, time.perf_counter() - wall
  return cpu / (measured * BATCH), wall / (measured * BATCH)


# --- what is needed before --------------------------------------------------------------------------


def prepare(workdir: pathlib.Path, python: pathlib.Path, kinds: list[str], count: int) -> None:
  """Makes the photos where they are absent; scikit-image, whose photos they are, is the rival's."""
  find = "import skimage, pathlib; print(pathlib.Path(skimage.__file__).parent / 'data')"
  skimage = subprocess.run([python, "-c", find], check=True, capture_output=True, text=True)
  import sklearn

  sklearn_images = pathlib.Path(sklearn.__file__).parent / "datasets" / "images"
  for kind in kinds:
    folder = workdir / kind / "photos"  # of the only class
    if len(list(folder.glob("*.jpg"))) != count:
      print(f"making {count} photos of {kind}", flush=True)
      folder.mkdir(parents=True, exist_ok=True)
      (workdir / f"{kind}.tfrecord").unlink(missing_ok=True)
      made = photos.make(kind, count, [sklearn_images, pathlib.Path(skimage.stdout.strip())])
      for i, photo in enumerate(made):
        (folder / f"{i:05}.jpg").write_bytes(photo)


def open_source(workdir: pathlib.Path, kind: str) -> sources.Source:
  """Returns the photos as a TFDS data set in ArrayRecord, which is prepared on first use."""
  plan = images.plan(folders.read(str(workdir / kind), f"photos_{kind}"))
  data_dir = str(workdir / f"tfds-{plan.num_examples['train']}")
  prepared = engine.prepare(plan, data_dir, num_workers=0, verify=False, skip_bad=False)
  return sources.open_source(
    dataset=str(prepared.directory), data_dir=None, split="train", label=None
  )


if __name__ == "__main__":
  main()
