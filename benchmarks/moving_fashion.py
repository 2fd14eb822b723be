"""Moving Fashion-MNIST: real images that move over a canvas, as mp4 files whose class is the order of four motions.

    python -m benchmarks.moving_fashion --workdir=workdir/moving_fashion

Makes the files, prepares them (docs/video.md), and trains configs/moving_fashion.py with time mixing and without. The
first must learn the classes, the second stay at chance: in each clip a piece of clothing moves to the right, down, to the
left and up, each for the frames of one tubelet and from a new place, which is drawn without regard to the class. So
the tubelets of a clip are distributed alike in all classes; only their order differs. Finished parts are kept.

Each frame is encoded by itself and at the same quality, so that none tells of its place either.
"""

import argparse
import io
import itertools
import pathlib
import subprocess
import sys

import cv2
import numpy as np
from jaxtyping import UInt8

from mixer_jax import tables
from mixer_jax.configs import moving_fashion
from mixer_jax.data import fashion_mnist
from mixer_jax.models import mlp_3d
from mixer_jax.training import loop

SIDE_PX, CLOTHING_PX, STEP_PX = 32, 14, 3
FRAMES = 4 * mlp_3d.TUBELET
MOTIONS = {"right": (0, 1), "down": (1, 0), "left": (0, -1), "up": (-1, 0)}
"""Name -> direction (down, right)."""
CLASSES = tuple(("right", *rest) for rest in itertools.permutations(("down", "left", "up")))
"""The orders of the motions that no rotation in time makes the same."""
VIDEOS = {"train": 1200, "test": 600}


def clip(
  image: UInt8[np.ndarray, "28 28"], rng: np.random.Generator, order: tuple[str, ...]
) -> UInt8[np.ndarray, "16 32 32"]:
  """Returns the frames; what `rng` draws depends on the motions, and not on their order."""
  clothing = cv2.resize(image, (CLOTHING_PX, CLOTHING_PX), interpolation=cv2.INTER_AREA)
  parts = {name: _moving(clothing, rng, np.array(MOTIONS[name])) for name in MOTIONS}
  return np.concatenate([parts[name] for name in order])


def _moving(
  clothing: np.ndarray, rng: np.random.Generator, direction: np.ndarray
) -> UInt8[np.ndarray, "4 32 32"]:
  path = STEP_PX * np.arange(mlp_3d.TUBELET)[:, None] * direction
  free = SIDE_PX - CLOTHING_PX
  start = rng.integers(-path.min(0), free - path.max(0) + 1)
  frames = np.zeros((len(path), SIDE_PX, SIDE_PX), np.uint8)
  for frame, (y, x) in zip(frames, start + path, strict=True):
    frame[y : y + CLOTHING_PX, x : x + CLOTHING_PX] = clothing
  return frames


def encode(frames: UInt8[np.ndarray, "t h w"]) -> bytes:
  """Returns the frames as mp4: H.264, a key frame each, of a constant quality."""
  import av

  content = io.BytesIO()
  with av.open(content, "w", format="mp4") as video:
    options = {"qp": "10", "g": "1", "preset": "veryfast"}
    stream = video.add_stream("libx264", rate=8, options=options)
    stream.height, stream.width, stream.pix_fmt = *frames.shape[1:], "yuv420p"
    for frame in frames:
      video.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "gray").reformat(format="yuv420p")))
    video.mux(stream.encode())
  return content.getvalue()


def make(directory: pathlib.Path, split: str, count: int) -> None:
  """Writes a split's videos, as many of each class, as DIRECTORY/SPLIT/CLASS/NUMBER.mp4; none if the split is there."""
  if (directory / split).exists():
    return
  images, _ = fashion_mnist.read_split(split)
  partial = directory / f"{split}-partial"
  for number in range(count):
    order, rng = CLASSES[number % len(CLASSES)], np.random.default_rng([number, split == "test"])
    frames = clip(images[rng.integers(len(images))], rng, order)
    folder = partial / "-".join(order)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number}.mp4").write_bytes(encode(frames))
  partial.rename(directory / split)


def results(workdir: pathlib.Path) -> dict[str, float]:
  """Returns top-1 of each arrangement of configs/moving_fashion.py; what is in the directory already is not made again."""
  videos, data_dir = workdir / "moving_fashion", workdir / "data"
  for split, count in VIDEOS.items():
    make(videos, split, count)
  prepare = [sys.executable, "-m", "mixer_jax.tools.prepare"]
  subprocess.run([*prepare, f"--from_videos={videos}", f"--data_dir={data_dir}"], check=True)
  top1 = {}
  for mixing in moving_fashion.ARRANGEMENTS:
    config = moving_fashion.get_config(mixing)
    config.data.data_dir = str(data_dir)
    top1[mixing] = loop.train(config, str(workdir / mixing))["top1"]
  return top1


def main() -> None:
  parser = argparse.ArgumentParser(description="an MLP-3D with and without time mixing")
  parser.add_argument("--workdir", type=pathlib.Path, default="workdir/moving_fashion")
  found = results(parser.parse_args().workdir.absolute())
  rows = [(mixing, f"{100 * top1:.2f}") for mixing, top1 in found.items()]
  print(tables.as_markdown(("time mixing", "top-1 (%)"), rows))


if __name__ == "__main__":
  main()
