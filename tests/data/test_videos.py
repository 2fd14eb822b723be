"""Video files to frames, against PyAV's own decode; what is no good video is named and never cut short in silence."""

import contextlib
import os
import random
import struct
import sys

import cv2
import numpy as np
import pytest
import simplejpeg

from mixer_jax.data import videos
from mixer_jax.data.decode import decode_image
from mixer_jax.errors import BadRecordError, InputError
from tests import video_files
from tests.marks import long

SHAPE = (48, 64)


def jpeg(pixels):
  pixels = np.ascontiguousarray(pixels)
  return simplejpeg.encode_jpeg(pixels, quality=videos.QUALITY, colorsubsampling="420")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """{suffix: a good video of 24 frames}; of .mp4 the index comes first, so that it can be cut."""
  root, video_files_ = tmp_path_factory.mktemp("videos"), video_files.library() and video_files
  first = {"movflags": "faststart"}
  return {
    s: video_files_.write(
      root / f"good{s}", video_files.moving(), options=first if s == ".mp4" else {}
    )
    for s in video_files.CODECS
  }


@pytest.mark.parametrize("suffix", video_files.CODECS)
def test_frames_are_those_of_pyav(files, suffix):
  frames = video_files.decoded(files[suffix])
  assert len(frames) == 24
  assert videos.read(str(files[suffix])) == [jpeg(f) for f in frames]


def test_larger_frames_are_reduced_and_smaller_ones_stay(files):
  frames = video_files.decoded(files[".mp4"])
  for side, shape in ((24, (24, 32)), (17, (17, 23)), (48, SHAPE), (400, SHAPE)):
    got = [decode_image(data) for data in videos.read(str(files[".mp4"]), short_side=side)]
    wanted = [cv2.resize(f, shape[::-1], interpolation=cv2.INTER_AREA) for f in frames]
    assert np.abs(np.subtract(got, wanted, dtype=float)).mean() < 6


def turned(path, rotation):
  """Writes an MP4 again with a matrix of its track that turns it clockwise."""
  matrix = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[rotation]
  a, b, c, d = (65536 * n for n in matrix)
  data = bytearray(path.read_bytes())
  start = data.find(b"tkhd") + 4 + 40
  data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
  new = path.with_name(f"turned{rotation}.mp4")
  new.write_bytes(data)
  return new


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_frames_are_upright_as_the_file_says(files, rotation):
  path = turned(files[".mp4"], rotation)
  frames = [np.rot90(f, -rotation // 90) for f in video_files.decoded(path)]
  assert videos.read(str(path)) == [jpeg(f) for f in frames]


@pytest.mark.parametrize(
  ("rate", "times", "fps", "wanted"),
  [
    (30, range(24), 10, range(0, 24, 3)),
    (30, range(6), 45, [0, 0, 1, 2, 2, 3, 4, 4, 5]),
    (10, [0, 1, 2, 10, 11], 5, [0, 2, 2, 2, 2, 3]),
    (7, range(5), 100, [i * 7 // 100 for i in range(72)]),
    (30, [0], 1, [0]),
  ],
)
def test_frames_a_second_go_by_the_times_of_the_file(tmp_path, rate, times, fps, wanted):
  path = tmp_path / "timed.mp4"
  video_files.write(path, video_files.moving(len(times)), rate=rate, times=[*times])
  frames = videos.read(str(path))
  assert videos.read(str(path), fps=fps) == [frames[i] for i in wanted]


def test_one_frame_is_a_video_and_sound_may_go_with_it(tmp_path):
  path = video_files.write(tmp_path / "one.mp4", video_files.moving(1), audio=True)
  assert videos.read(str(path)) == [jpeg(f) for f in video_files.decoded(path)]


def test_a_long_video_is_refused_with_the_way_out(tmp_path, monkeypatch):
  monkeypatch.setattr(videos, "MAX_FRAMES", 50)
  path = video_files.write(tmp_path / "long.mp4", video_files.moving(60))
  with pytest.raises(BadRecordError, match="--fps"):
    videos.read(str(path))
  assert len(videos.read(str(path), fps=10)) == 20
  with pytest.raises(BadRecordError, match="--fps"):
    videos.read(str(path), fps=1000)
  monkeypatch.setattr(videos, "MAX_PIXELS", 48 * 64 - 1)
  with pytest.raises(BadRecordError, match="64×48 pixels"):
    videos.read(str(path))


@pytest.mark.parametrize("suffix", [s for s in video_files.CODECS if s != ".mov"])
def test_a_truncated_video_is_bad(files, tmp_path, suffix, capfd):
  """Also between two frames, where an AVI may end."""
  data, path = files[suffix].read_bytes(), tmp_path / f"cut{suffix}"
  ends = [int(len(data) * share) for share in (0.3, 0.66, 0.9)]
  for end in [*ends, data.rfind(b"00dc", 0, data.find(b"idx1"))] if suffix == ".avi" else ends:
    path.write_bytes(data[:end])
    with pytest.raises(BadRecordError):
      videos.read(str(path))
  assert capfd.readouterr() == ("", "")


def test_what_is_no_video_is_named(files, tmp_path, capfd, monkeypatch):
  """Lists of other files among them, which FFmpeg would open."""
  monkeypatch.chdir(files[".mp4"].parent)

  def written(name, data):
    (tmp_path / name).write_bytes(data)
    return tmp_path / name

  os.mkfifo(tmp_path / "pipe.mp4")
  sound = video_files.write(tmp_path / "sound.mp4", (), audio=True)
  with_cover = video_files.write_cover(tmp_path / "cover.mp4")
  flipped = bytearray(files[".mp4"].read_bytes())
  for place in range(len(flipped) // 2, len(flipped), 97):
    flipped[place] ^= 0xFF
  playlist = f"#EXTM3U\n#EXTINF:1,\n{files['.mp4']}\n#EXT-X-ENDLIST\n".encode()
  for path, message in (
    (written("empty.mp4", b""), "an empty file"),
    (written("text.mp4", b"<html>not found</html>" * 100), "no whole video"),
    (written("list.mp4", playlist), "no whole video"),
    (
      written("ffconcat.mp4", b"ffconcat version 1.0\nfile good.mp4\n"),
      "no whole",
    ),
    (written("flipped.mp4", bytes(flipped)), "no whole video|damaged video"),
    (sound, "no video in it, but audio"),
    (with_cover, "no video in it, but audio$"),
    (tmp_path / "pipe.mp4", "not a file"),
    (tmp_path / "absent.mp4", "No such file"),
    (tmp_path, "not of numbered images alone"),
  ):
    with pytest.raises(BadRecordError, match=message):
      videos.read(str(path))
  assert capfd.readouterr() == ("", "")


def test_a_folder_of_numbered_images_is_a_video(files, tmp_path):
  """It is stored as the file whose frames it has."""
  frames = video_files.decoded(files[".mp4"])
  for number, frame in enumerate(frames, 7):  # the 10th comes before the 7th by its name
    cv2.imwrite(str(tmp_path / f"img_{number}.png"), frame[..., ::-1])
  (tmp_path / ".hidden").touch()
  assert videos.read(str(tmp_path)) == videos.read(str(files[".mp4"]))
  got = [decode_image(data) for data in videos.read(str(tmp_path), short_side=24)]
  wanted = [cv2.resize(f, (32, 24), interpolation=cv2.INTER_AREA) for f in frames]
  assert np.abs(np.subtract(got, wanted, dtype=float)).mean() < 6

  def assert_bad(message, **arguments):
    with pytest.raises(BadRecordError, match=message):
      videos.read(str(tmp_path), **arguments)

  assert_bad("--fps", fps=10)
  (tmp_path / "img_012.png").write_bytes((tmp_path / "img_12.png").read_bytes())
  assert_bad("img_12.png where frame 13 should be")
  (tmp_path / "img_12.png").unlink()
  (tmp_path / "img_012.png").rename(tmp_path / "img_31.png")
  assert_bad("img_13.png where frame 12 should be")
  (tmp_path / "img_31.png").rename(tmp_path / "img_12.png").write_bytes(b"<html>")
  assert_bad("img_12.png: .*HTML")
  cv2.imwrite(str(tmp_path / "img_12.png"), frames[0][:-1])
  assert_bad("several sizes")
  (tmp_path / "flow_12.png").touch()
  assert_bad("not of numbered images alone")


def test_without_pyav_the_way_out_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "av", None)
  with pytest.raises(InputError, match=r"pip install '(av>=|\.\[video\])"):
    videos.check_installed()


@pytest.mark.parametrize("tries", [60, long(3000)])
def test_damaged_bytes_are_read_or_refused(files, tmp_path, tries, capfd):
  rng, path = random.Random(1), tmp_path / "damaged"
  whole = [f.read_bytes() for f in files.values()]
  for _ in range(tries):
    data = bytearray(rng.choice(whole))
    for _ in range(rng.choice([1, 3, 30])):
      data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data)
    with contextlib.suppress(BadRecordError):
      assert videos.read(str(path), fps=rng.choice([None, 15.0]))
  assert capfd.readouterr() == ("", "")
