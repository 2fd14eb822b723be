"""Videos to their frames as JPEG, by PyAV, from untrusted files; memory does not grow with a video's length.

Frames are decoded one after the other by one thread. They are turned upright as the file says, their shorter side is
limited, and they are encoded at once. A video is bad as soon as FFmpeg reports an error: its decoders go on
behind damage, with made-up pixels.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
import simplejpeg
from jaxtyping import UInt8

from mixer_jax.data import decode, photos
from mixer_jax.errors import BadRecordError, InputError, installing

SHORT_SIDE = 256  # pixels, what recipes for Kinetics resize to
QUALITY = 90  # of JPEG

MAX_SIDE = 2**14
MAX_PIXELS = 40_000_000  # of a frame: 8K video has 33 million
MAX_FRAMES = 10_000  # that are kept of a video
MAX_BYTES = 1 << 28  # of these as JPEG

_FORMATS = "mov,mp4,matroska,webm,avi,gif"  # no playlists, which would open other files
_ALIVE_EVERY = 100  # frames
_ERROR = 16  # FFmpeg's level of a message, AV_LOG_ERROR; worse ones are lower


def check_installed() -> None:
  """Raises InputError if PyAV is missing."""
  try:
    import av  # noqa: F401
  except ImportError as e:
    raise InputError(f"videos need PyAV: {installing('video')} ({e})") from e


def read(
  path: str,
  *,
  short_side: int = SHORT_SIDE,
  fps: float | None = None,
  alive: Callable[[], None] = lambda: None,
) -> list[bytes]:
  """Returns the frames of a video as JPEG, all of one size.

  Args:
    path: of a file, or of a folder of numbered images.
    short_side: in pixels, to which larger frames are reduced; smaller ones stay as they are.
    fps: frames to keep a second of the video. A frame is left out, or kept twice, as the times of the file say. If
      None, all frames are kept, whatever their times.
    alive: called now and then.

  Raises:
    BadRecordError: empty, truncated, damaged, without video, of another format, or more than the limits above.
    InputError: PyAV is missing, or the storage fails.
  """
  check_installed()
  kept: list[bytes] = []
  size = 0
  for jpeg, times in _encoded(path, short_side, fps, alive):
    size += times * len(jpeg)
    if len(kept) + times > MAX_FRAMES or size > MAX_BYTES:
      raise BadRecordError(
        f"a video of more than {MAX_FRAMES:,} frames, or {MAX_BYTES >> 20} MiB as JPEG: cut it into clips, or keep "
        "fewer frames a second with --fps"
      )
    kept += [jpeg] * times
  if not kept:
    raise BadRecordError("a video without frames")
  return kept


def _encoded(
  path: str, short_side: int, fps: float | None, alive: Callable[[], None]
) -> Iterator[tuple[bytes, int]]:
  """Yields frames as JPEG, and how often each is kept."""
  from av.video.reformatter import VideoReformatter

  converter, shape = VideoReformatter(), None
  with _frames(path, fps, alive) as frames:
    for frame, times in frames:
      image = _upright(converter, frame, short_side)
      if shape not in (None, image.shape):
        raise BadRecordError(f"frames of several sizes: {shape[:2]} and {image.shape[:2]} pixels")
      shape = image.shape
      yield simplejpeg.encode_jpeg(image, quality=QUALITY, colorsubsampling="420"), times


@contextlib.contextmanager
def _frames(
  path: str, fps: float | None, alive: Callable[[], None]
) -> Iterator[Iterable[tuple[Any, int]]]:
  """Opens a video; gives its frames, and how often each is kept."""
  if os.path.isdir(path):
    yield ((frame, 1) for frame in _of_folder(path, fps, alive))
    return
  # FFmpeg gets no name, which might be one that it opens others by.
  with photos.opened(path) as file, _reported(path), _stream(file) as (container, stream):
    frames = _checked(container, stream, alive)
    yield _at_rate(frames, stream, fps) if fps else ((frame, 1) for frame in frames)


def _of_folder(path: str, fps: float | None, alive: Callable[[], None]) -> Iterator[Any]:
  """Yields numbered images as frames."""
  from av import VideoFrame

  if not (numbered := photos.find_frames(path)):
    raise BadRecordError("a folder, but not of numbered images alone")
  if fps:
    raise BadRecordError("frames without a time: leave out --fps")
  for expected, (number, name) in enumerate(numbered, numbered[0][0]):
    if number != expected:
      raise BadRecordError(f"a video with a gap: {name} where frame {expected} should be")
    alive()
    try:
      with photos.opened(os.path.join(path, name)) as file:
        pixels = decode.decode_image(file.read(MAX_BYTES))
    except BadRecordError as e:
      raise BadRecordError(f"{name}: {e}") from e
    yield VideoFrame.from_ndarray(pixels, "rgb24")


@contextlib.contextmanager
def _reported(path: str) -> Iterator[None]:
  """Keeps FFmpeg's messages, and raises BadRecordError with the first error among them."""
  from av import error, logging

  logging.set_level(logging.ERROR)
  logging.set_skip_repeated(False)
  with logging.Capture() as messages:

    def first(otherwise: str) -> str:
      return next((text.strip() for level, _, text in messages if level <= _ERROR), otherwise)

    try:
      yield
    except error.FFmpegError as e:
      if not os.path.getsize(path):
        raise BadRecordError("an empty file") from e
      raise BadRecordError(f"no whole video: {first(e.strerror or str(e))}") from e
    if damage := first(""):
      raise BadRecordError(f"a damaged video: {damage}")


@contextlib.contextmanager
def _stream(file: BinaryIO) -> Iterator[tuple[Any, Any]]:
  """Opens the container, and its video with a decoder that takes no more than the limits."""
  import av
  from av.stream import Disposition

  options = {"format_whitelist": _FORMATS, "max_pixels": str(MAX_PIXELS)}
  with av.open(file, options=options, metadata_errors="replace", buffer_size=1 << 20) as container:
    # The cover of a sound file is a stream of video, too.
    moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not moving:
      kinds = (
        ", ".join(sorted({s.type for s in container.streams if s.type != "video"})) or "nothing"
      )
      raise BadRecordError(f"no video in it, but {kinds}")
    stream = moving[0]
    codec = stream.codec_context
    if codec is None:
      raise BadRecordError("a video of an unknown codec")
    _check_size(codec.width, codec.height)
    codec.thread_count = 1
    codec.options = {"max_pixels": str(MAX_PIXELS)}
    yield container, stream


def _check_size(width: int, height: int) -> None:
  if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
    raise BadRecordError(
      f"a video of {width}×{height} pixels; {MAX_PIXELS:,} at most, and sides of {MAX_SIDE}"
    )


def _checked(container: Any, stream: Any, alive: Callable[[], None]) -> Iterator[Any]:
  """Yields all frames; raises BadRecordError if there are fewer than the file says."""
  number = -1
  for number, frame in enumerate(container.decode(stream)):
    if number % _ALIVE_EVERY == 0:
      alive()
    if frame.is_corrupt:
      raise BadRecordError(f"a damaged video: frame {number}")
    _check_size(frame.width, frame.height)
    yield frame
  if number + 1 < stream.frames:
    raise BadRecordError(f"a truncated video: {number + 1} of {stream.frames} frames")


def _at_rate(frames: Iterable[Any], stream: Any, fps: float) -> Iterator[tuple[Any, int]]:
  """Yields (frame, how many multiples of 1/fps seconds from the first frame on it is shown at)."""
  rate, start, count = Fraction(fps), None, 0
  shown, end = None, Fraction(0)
  for frame in frames:
    if frame.pts is None:
      raise BadRecordError("frames without a time: leave out --fps")
    time = frame.pts * frame.time_base
    start = time if start is None else start
    due = math.ceil((time - start) * rate)
    if shown is not None and due > count:
      yield shown, due - count
      count = due
    lasts = frame.duration * frame.time_base if frame.duration else 1 / (stream.guessed_rate or 25)
    shown, end = frame, time - start + lasts
  if shown is not None and (left := max(math.ceil(end * rate), 1) - count) > 0:
    yield shown, left


def _upright(converter: Any, frame: Any, short_side: int) -> UInt8[np.ndarray, "h w 3"]:
  """Returns a frame as RGB, reduced and turned."""
  turns, rest = divmod(round(frame.rotation), 90)
  if rest:
    raise BadRecordError(f"a video that is turned by {frame.rotation}°, no multiple of 90°")
  scale = min(short_side / min(frame.width, frame.height), 1)
  width, height = (max(round(n * scale), 1) for n in (frame.width, frame.height))
  filtered = {"interpolation": "BICUBIC"} if scale < 1 else {}
  image = converter.reformat(frame, width, height, "rgb24", **filtered).to_ndarray()
  return np.ascontiguousarray(np.rot90(image, turns))
