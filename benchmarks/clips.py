"""The input of clips beside PyAV alone, on one core, and the memory that preparing a long video takes.

    python -m benchmarks.clips                    # some three minutes, prints tables; needs the extra video

It makes its videos of the two photos that scikit-learn ships: a camera pans and zooms over them, with some noise, for
10 seconds at 30 frames a second, 340×256 pixels. Contestants take turns, and medians of CPU milliseconds a clip are
compared. A clip has 16 frames: every fourth of a window at a random place, or one of each of 16 segments.
"""

import argparse
import io
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import av
import cv2
import numpy as np
import simplejpeg
from sklearn.datasets import load_sample_image

from mixer_jax.data import sources, videos
from mixer_jax.data.preprocess import Preprocess
from mixer_jax.tools.preparation import catalogue, engine, folders, images

FRAMES, STRIDE, RATE, SECONDS, HEIGHT, WIDTH = 16, 4, 30, 10, 256, 340
SHAPE = (FRAMES, 224, 224, 3)
CODECS = {
  "mp4": ("libx264", {"crf": "23"}),
  "webm": ("libvpx-vp9", {"crf": "32", "b": "0", "deadline": "realtime", "cpu-used": "8"}),
}
TEXTS = {
  "JPEG: decode": f"window({STRIDE})|decode|random_crop",
  "JPEG: crop and flip, exact": f"window({STRIDE})|decode|inception_crop|flip",
  "JPEG: crop and flip, fast": f"window({STRIDE})|decode('fast')|inception_crop|flip",
}


def main() -> None:
  parser = argparse.ArgumentParser(description="the input of clips beside PyAV alone")
  parser.add_argument("--workdir", type=pathlib.Path, default="workdir/benchmark-clips")
  parser.add_argument("--videos", type=int, default=8)
  parser.add_argument("--turns", type=int, default=5)
  args = parser.parse_args()
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  cv2.setNumThreads(1)
  for suffix in CODECS:
    folder = args.workdir / suffix
    paths = [folder / "pan" / f"{i}.{suffix}" for i in range(args.videos)]
    for i, path in enumerate(paths):
      write(path, i, RATE * SECONDS, HEIGHT, WIDTH, suffix)
    compare(suffix, paths, prepare(folder), args.turns)
  sizes(args.workdir / "mp4" / "pan" / "0.mp4")
  memory(args.workdir)


def write(path: pathlib.Path, seed: int, count: int, height: int, width: int, suffix: str) -> None:
  """Writes a video unless it is there."""
  if path.exists():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  rng, codec = np.random.default_rng(seed), CODECS[suffix]
  photo = cv2.resize(load_sample_image(("china.jpg", "flower.jpg")[seed % 2]), None, fx=1.6, fy=1.6)
  phase = rng.uniform(0, 6, 3)
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec[0], rate=RATE)
    stream.height, stream.width, stream.pix_fmt, stream.options = height, width, "yuv420p", codec[1]
    for i in range(count):
      zoom, y, x = np.sin(phase + np.array([6, 11, 9]) * i / 300)
      h, w = (int(n * (1.2 + 0.2 * zoom)) for n in (height, width))
      top, left = ((photo.shape[k] - n) * (0.5 + 0.45 * s) for k, n, s in ((0, h, y), (1, w, x)))
      cut = photo[int(top) : int(top) + h, int(left) : int(left) + w]
      pixels = cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA)
      noise = rng.normal(0, 3, (height, width, 1)).astype(np.int16)
      frame = np.clip(pixels.astype(np.int16) + noise, 0, 255).astype(np.uint8)
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
    container.mux(stream.encode())


def prepare(folder: pathlib.Path) -> sources.Source:
  collection = folders.read(str(folder), "pan", catalogue.Videos(videos.SHORT_SIDE, None))
  done = engine.prepare(
    images.plan(collection), str(folder.parent / f"{folder.name}-prepared"), num_workers=0, verify=True, skip_bad=False
  )  # fmt: skip
  return sources.open_source(dataset=str(done.directory), data_dir=None, split="train", label=None)


def compare(suffix: str, paths: list[pathlib.Path], source: sources.Source, turns: int) -> None:
  """Prints CPU milliseconds and clips a second of each contestant, by turns."""
  encoded = [path.read_bytes() for path in paths]
  contestants: dict[str, Callable[[int, np.random.Generator], object]] = {
    "PyAV: a window": lambda i, rng: of_window(encoded[i], rng),
    "PyAV: segments": lambda i, _: of_segments(encoded[i]),
    "JPEG: read the record": lambda i, _: source[i],
  }
  for name, text in TEXTS.items():
    ops = Preprocess(text, SHAPE)
    contestants[name] = lambda i, rng, ops=ops: ops(source[i], rng)
  took: dict[str, list[float]] = {name: [] for name in contestants}
  for turn in range(-1, turns):  # the first warms up
    for name, load in contestants.items():
      rng, start = np.random.default_rng(turn + 1), time.process_time()
      for i in range(len(paths)):
        load(i, rng)
      took[name] += [(time.process_time() - start) / len(paths)] * (turn >= 0)
  print(f"\n{suffix}: {np.mean([len(e) for e in encoded]) / 1e3:.0f} kB a video, as frames "
        f"{np.mean([sum(map(len, source[i]['image'])) for i in range(len(paths))]) / 1e3:.0f} kB")  # fmt: skip
  for name, seconds in took.items():
    median = statistics.median(seconds)
    print(f"  {name:30} {median * 1e3:7.1f} ms CPU  {1 / median:6.1f} clips/s and core")


def of_window(data: bytes, rng: np.random.Generator) -> list[np.ndarray]:
  """Returns a random window's frames: PyAV seeks to the key frame before it and decodes from there on."""
  span = STRIDE * (FRAMES - 1)
  first = int(rng.integers(RATE * SECONDS - span))
  with av.open(io.BytesIO(data)) as container:
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    container.seek(int(first / RATE / stream.time_base), stream=stream)
    found = []
    for frame in container.decode(stream):
      number = round(frame.time * RATE)
      if number >= first and (number - first) % STRIDE == 0:
        found.append(frame.to_ndarray(format="rgb24"))
      if number >= first + span:
        return found
  raise AssertionError("the video ended")


def of_segments(data: bytes) -> list[np.ndarray]:
  """Returns one frame of each segment; PyAV decodes the video from the start, for key frames are rare."""
  with av.open(io.BytesIO(data)) as container:
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    every = RATE * SECONDS // FRAMES
    frames = enumerate(container.decode(stream))
    return [f.to_ndarray(format="rgb24") for i, f in frames if i % every == every // 2][:FRAMES]


def sizes(path: pathlib.Path) -> None:
  """Prints bytes of the frames and the time to decode 16 of them, by JPEG's quality."""
  with av.open(str(path)) as container:
    frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
  print(f"\n{path.name}: {path.stat().st_size / 1e3:.0f} kB")
  for quality in (80, 85, 90, 95):
    coded = [simplejpeg.encode_jpeg(f, quality=quality, colorsubsampling="420") for f in frames]
    error = np.mean([np.abs(simplejpeg.decode_jpeg(c).astype(int) - f).mean()
                     for c, f in zip(coded[::30], frames[::30], strict=True)])  # fmt: skip
    start = time.process_time()
    for data in coded[:64:4]:
      simplejpeg.decode_jpeg(data)
    milliseconds = (time.process_time() - start) * 1e3
    print(
      f"  quality {quality}: {sum(map(len, coded)) / 1e3:6.0f} kB  {milliseconds:.1f} ms for 16  levels off {error:.2f}"
    )


def memory(workdir: pathlib.Path) -> None:
  """Prints the peak of a process that reads videos of 10, 100 and 1000 seconds and keeps a frame every 10 seconds."""
  code = (
    "import resource, sys; from mixer_jax.data import videos; frames = videos.read(sys.argv[1], fps=0.1);"
    "print(len(frames), 'frames kept, peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, 'MiB')"
  )
  print()
  for seconds in (10, 100, 1000):
    path = workdir / "long" / f"{seconds}.mp4"
    write(path, 0, RATE * seconds, 96, 128, "mp4")
    done = subprocess.run(
      [sys.executable, "-c", code, path], check=True, text=True, capture_output=True
    )
    print(f"a video of {seconds:5} s: {done.stdout.strip()}", flush=True)


if __name__ == "__main__":
  main()
