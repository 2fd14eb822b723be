"""Small video files for tests, written by PyAV; tests that need them are skipped where it is missing."""

import numpy as np
import pytest

CODECS = {
  ".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9", ".avi": "mpeg4", ".gif": "gif",
}  # fmt: skip


def library():
  """Returns PyAV, or skips the test."""
  return pytest.importorskip("av", reason="PyAV is missing: pip install '.[video]'")


def moving(count=24, height=48, width=64, seed=0):
  """Returns uint8 (count, height, width, 3): waves that move over noise, so that frames differ."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:height, :width]
  still = rng.integers(0, 30, (height, width, 3))
  waves = [np.sin((x + 3 * i) / 7) + np.cos((y - 2 * i) / 5 + seed) for i in range(count)]
  frames = [still + ((w[..., None] + 2) * (40, 50, 30)).astype(int) for w in waves]
  return np.stack(frames).astype(np.uint8)


def write(path, frames, *, rate=30, times=None, audio=False, options=None):
  """Writes the frames as the codec that goes with the suffix.

  Args:
    times: of the frames, in 1/rate seconds. Default: one after the other.
    audio: with a second of silence, alone if there are no frames.
    options: of the container.
  """
  av = library()
  with av.open(str(path), "w", options=options or {}) as container:
    if len(frames):
      stream = container.add_stream(CODECS[path.suffix], rate=rate)
      stream.height, stream.width = frames[0].shape[:2]
      stream.pix_fmt = "rgb8" if path.suffix == ".gif" else "yuv420p"
      stream.options = {"threads": "1"}
    sound = container.add_stream("aac", rate=16000) if audio else None
    for i, pixels in enumerate(frames):
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
      frame.pts = i if times is None else times[i]
      container.mux(stream.encode(frame))
    if len(frames):
      container.mux(stream.encode())
    if sound:
      silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
      silence.sample_rate = 16000
      container.mux([*sound.encode(silence), *sound.encode()])
  return path


def write_cover(path):
  """Writes a second of silence with a picture, as music has."""
  av = library()
  with av.open(str(path), "w") as container:
    sound = container.add_stream("aac", rate=16000)
    cover = container.add_stream("mjpeg", rate=1)
    cover.height, cover.width, cover.pix_fmt = 48, 64, "yuvj420p"
    cover.disposition = av.stream.Disposition.attached_pic
    frame = av.VideoFrame.from_ndarray(moving(1)[0], "rgb24")
    container.mux([*cover.encode(frame), *cover.encode()])
    silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
    silence.sample_rate = 16000
    container.mux([*sound.encode(silence), *sound.encode()])
  return path


def decoded(path):
  """Returns the frames as PyAV decodes them."""
  with library().open(str(path)) as container:
    return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
