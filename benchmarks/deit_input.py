"""The DeiT recipe's operations on images beside timm's own (torchvision, Pillow), in turns on one core.

    python -m benchmarks.deit_input                            # some minutes, prints a table
    python -m benchmarks.deit_input --python=ENV/bin/python    # where timm is installed already

Both start from the same JPEGs in memory and end with uint8 pixels; the operations are the same to the bit, and the
draws are each one's own. Compared are the medians of CPU seconds an image. Works: the recipe's training and
evaluation, and training with colour jitter in place of RandAugment.
"""

import argparse
import io
import itertools
import os
import pathlib
import statistics
import sys
from collections.abc import Callable
from typing import Any

if __package__:
  from benchmarks import photos, turns
else:
  import turns  # started as a contestant

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("torch==2.13.0", "torchvision==0.28.0", "timm==1.0.31", "pillow==13.0.0")
SIZE, POLICY, TARGET = 224, "rand-m9-mstd0.5-inc1", 1.0
CROP = "decode(mode='pillow')|random_resized_crop|flip"
OPS = {
  "randaugment": f"{CROP}|timm_randaugment('{POLICY}')",
  "jitter": f"{CROP}|color_jitter",
  "evaluation": "decode(mode='pillow')|resize_short|central_crop(rounding='even')",
}


def main() -> None:
  parser = argparse.ArgumentParser(description="the DeiT recipe's input beside timm's, on one core")
  parser.add_argument("--workdir", type=pathlib.Path, default="workdir/benchmark")
  parser.add_argument("--python", type=pathlib.Path, help="that has timm; default: an own one")
  parser.add_argument("--photos", type=int, default=100, help="of 500x375 pixels")
  parser.add_argument("--repeats", type=int, default=7)
  parser.add_argument("--min_secs", type=float, default=2.0, help="of each turn")
  args = parser.parse_args()
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # which the contestants inherit
  directory = args.workdir / "deit-photos"
  prepare(directory, args.photos)
  python = args.python or turns.make_environment(args.workdir / "timm-env", PACKAGES)
  env = os.environ | {"PYTHONPATH": str(ROOT)}

  def contestant(name: str, python: pathlib.Path | str) -> turns.Contestant:
    command = [python, __file__, name, directory]
    return turns.Contestant(name, command, env, args.workdir / f"deit_input-{name}.log")

  with contestant("ours", sys.executable) as ours, contestant("timm", python) as timm:
    for work in OPS:
      compare(ours, timm, work, args.repeats, args.min_secs)


def prepare(directory: pathlib.Path, count: int) -> None:
  """Makes the photos, of those that scikit-learn ships, where they are absent."""
  import sklearn

  if directory.exists() and len(list(directory.iterdir())) == count:
    return
  directory.mkdir(parents=True, exist_ok=True)
  originals = pathlib.Path(sklearn.__file__).parent / "datasets" / "images"
  for i, photo in enumerate(photos.make("500x375", count, [originals])):
    (directory / f"{i:05}.jpg").write_bytes(photo)


def compare(
  ours: turns.Contestant, timm: turns.Contestant, work: str, repeats: int, min_secs: float
) -> None:
  """Lets both take turns and prints their medians and the range of the ratio over the turns."""
  pairs = [
    tuple(c.measure(work, 1, min_secs)["cpu_s"] for c in (ours, timm)) for _ in range(repeats)
  ]
  mine, theirs = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
  ratios = [b / a for a, b in pairs]
  print(
    f"{work:12} ours {mine:6.3f} ms CPU  timm {theirs:6.3f} ms CPU  ratio {theirs / mine:.2f} "
    f"({min(ratios):.2f}–{max(ratios):.2f})  target {TARGET:.2f}",
    flush=True,
  )


# --- contestants ------------------------------------------------------------------------------------


def make_ours(data: list[bytes]) -> Callable[[str, int], turns.Run]:
  import cv2
  import numpy as np

  from mixer_jax.data.preprocess import Preprocess

  cv2.setNumThreads(1)
  rng = np.random.default_rng(0)

  def prepare_work(work: str, _batch_size: int) -> turns.Run:
    preprocess = Preprocess(OPS[work], (SIZE, SIZE, 3))
    return repeated(data, lambda photo: preprocess({"image": photo, "label": 0}, rng))

  return prepare_work


def make_timm(data: list[bytes]) -> Callable[[str, int], turns.Run]:
  import rival_timm
  import torch
  from PIL import Image, ImageOps

  # Magnitude 10 keeps no bits, which this Pillow refuses: one bit costs as much.
  posterize = ImageOps.posterize
  ImageOps.posterize = lambda image, bits: posterize(image, max(bits, 1))
  torch.set_num_threads(1)
  rival_timm.import_timm()
  from timm.data import create_transform

  def prepare_work(work: str, _batch_size: int) -> turns.Run:
    transform = create_transform(
      SIZE, is_training=work != "evaluation", interpolation="bicubic", crop_pct=0.875, use_prefetcher=True,
      auto_augment=POLICY if work == "randaugment" else None, color_jitter=0.4,
    )  # fmt: skip
    return repeated(data, lambda photo: transform(Image.open(io.BytesIO(photo)).convert("RGB")))

  return prepare_work


def repeated(data: list[bytes], call: Callable[[bytes], Any]) -> turns.Run:
  photos_in_turn = itertools.cycle(data)

  def run(calls: int) -> None:
    for photo in itertools.islice(photos_in_turn, calls):
      call(photo)

  return run


if __name__ == "__main__":
  if __package__:
    main()
  else:
    name, directory = sys.argv[1:]
    data = [path.read_bytes() for path in sorted(pathlib.Path(directory).iterdir())]
    turns.serve(lambda: {"ours": make_ours, "timm": make_timm}[name](data))
