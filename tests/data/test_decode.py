"""Decoding against TensorFlow's pixels, regions against the whole, and files from a bad world."""

import io
import random
import resource
import struct
import time

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from mixer_jax.data import decode, turbojpeg
from mixer_jax.errors import BadRecordError
from tests.conftest import GOLDEN
from tests.encoded import (
  SUBSAMPLINGS,
  damaged,
  encode,
  golden_jpeg,
  jpegs,
  png,
  png_chunk,
  resized_jpeg,
  smooth,
  webp,
)

BOMB_PX = 50_000


# --- the pixels -------------------------------------------------------------------------------------


def test_cmyk_is_tensorflows():
  golden = np.load(GOLDEN / "preprocess.npz")["extra_cmyk/decoded"]
  np.testing.assert_array_equal(decode.decode_image(golden_jpeg("extra_cmyk")), golden)


@pytest.mark.parametrize(
  ("name", "off"),
  [("1x3", 0), ("3x1p", 0), ("2x4", 0), ("4x2p", 0), ("2x2_1x2_2x1", 4), ("1x1_2x2_2x2", 4), ("cmyk2", 4)],
)  # fmt: skip
def test_unusual_samplings_are_tensorflows_where_it_interpolates_nothing(name, off):
  """Factors of Y, or of Y, Cb and Cr; p: progressive; of CMYK, all inks but one have half the rows and columns."""
  golden = np.load(GOLDEN / "jpeg_samplings.npz")
  data, want = golden[f"{name}/jpeg"].tobytes(), golden[f"{name}/pixels"]
  have = decode.decode_image(data)
  assert np.abs(have.astype(int) - want).max() == off
  box, header = (3, 5, 20, 21), decode.read_header(data)
  np.testing.assert_array_equal(decode.decode_region(data, header, box), have[3:23, 5:26])
  grey = decode.decode_image(data, 1)
  assert grey.shape == (29, 37, 1)
  assert np.abs(grey[..., 0] - have @ [0.299, 0.587, 0.114]).mean() < 1.5
  with Image.open(io.BytesIO(data)) as picture:
    if picture.mode == "RGB":
      np.testing.assert_array_equal(decode.decode_image(data, dct="accurate"), picture)
  with pytest.raises(BadRecordError):
    decode.decode_image(data[: len(data) // 2] + b"\xff\xd9"[:1])


def test_cmyk_without_adobes_marker_is_plain_ink():
  data = golden_jpeg("extra_cmyk").replace(b"\xff\xee\x00\x0eAdobe", b"\xff\xee\x00\x0eOther")
  cmyk = simplejpeg.decode_jpeg(data, "CMYK", fastdct=True, fastupsample=False)
  ink = 255 - np.asarray(cmyk, int)
  np.testing.assert_array_equal(decode.decode_image(data), ink[..., :3] * ink[..., 3:] // 255)


def test_sixteen_bits_become_the_upper_eight():
  deep = np.random.default_rng(0).integers(0, 1 << 16, (9, 7, 4), np.uint16)
  want = (deep[:, :, 2::-1] >> 8).astype(np.uint8)
  with_alpha = decode.decode_image(encode(".png", deep), 4)
  np.testing.assert_array_equal(with_alpha[..., :3], want)
  np.testing.assert_array_equal(with_alpha[..., 3], deep[..., 3] >> 8)
  np.testing.assert_array_equal(decode.decode_image(encode(".png", deep[:, :, :3])), want)
  grey = decode.decode_image(encode(".png", deep[:, :, 0]))
  np.testing.assert_array_equal(grey, np.repeat((deep[:, :, :1] >> 8).astype(np.uint8), 3, 2))


def test_palette_png():
  palette = np.random.default_rng(0).integers(0, 256, (4, 3), np.uint8)
  indices = np.random.default_rng(1).integers(0, 4, (5, 6), np.uint8)
  rows = b"".join(b"\0" + bytes(row) for row in indices)
  colours = png_chunk(b"PLTE", palette.tobytes())
  opaque = png(6, 5, colours, pixels=rows, kind=3)
  np.testing.assert_array_equal(decode.decode_image(opaque), palette[indices])
  transparent = png(6, 5, colours + png_chunk(b"tRNS", b"\0\x80"), pixels=rows, kind=3)
  got = decode.decode_image(transparent, 4)
  np.testing.assert_array_equal(got[..., :3], palette[indices])
  np.testing.assert_array_equal(got[..., 3], np.array([0, 128, 255, 255])[indices])


ALPHA = {
  "png": (".png", ()), "webp": (".webp", (cv2.IMWRITE_WEBP_QUALITY, 101)),
  "lossy webp": (".webp", (cv2.IMWRITE_WEBP_QUALITY, 80)),
}  # fmt: skip


@pytest.mark.parametrize("name", ALPHA)
def test_alpha_is_refused_unless_asked_for_or_opaque(name):
  extension, options = ALPHA[name]
  image = smooth(12, 18, 4)
  data = encode(extension, image, *options)
  for channels in (1, 3):
    with pytest.raises(BadRecordError, match=f"image_channels is {channels}"):
      decode.decode_image(data, channels)
  np.testing.assert_array_equal(decode.decode_image(data, 4)[..., 3], image[..., 3])
  image[..., 3] = 255
  opaque = encode(extension, image, *options)
  without = encode(extension, image[..., :3], *options)
  for channels in (1, 3):
    np.testing.assert_array_equal(
      decode.decode_image(opaque, channels), decode.decode_image(without, channels)
    )
  with pytest.raises(BadRecordError, match="image_channels is 4"):
    decode.decode_image(without, 4)


def test_a_jpeg_has_no_alpha():
  data = golden_jpeg("photo_china")
  for crop in (lambda: decode.decode_image(data, 4),
               lambda: decode.decode_region(data, decode.read_header(data), (0, 0, 2, 2), 4)):  # fmt: skip
    with pytest.raises(BadRecordError, match="image_channels is 4"):
      crop()


def test_grey_files_stay_grey_and_colours_become_their_luma():
  image = smooth(30, 41)
  for extension in (".jpg", ".png", ".webp"):
    options = (cv2.IMWRITE_WEBP_QUALITY, 101) if extension == ".webp" else ()
    grey = encode(extension, image[..., 0], *options)
    got, three = decode.decode_image(grey, 1), decode.decode_image(grey, 3)
    assert got.shape == (30, 41, 1)
    np.testing.assert_array_equal(three, got.repeat(3, 2))
    assert extension == ".jpg" or (got == image[..., :1]).all()
    colour = encode(extension, image, *options)
    luma = decode.decode_image(colour, 3) @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decode.decode_image(colour, 1)[..., 0] - luma).max() <= (
      2 if extension == ".jpg" else 0.51
    )
  cmyk = golden_jpeg("extra_cmyk")
  luma = decode.decode_image(cmyk, 3) @ np.array([0.299, 0.587, 0.114])
  assert np.abs(decode.decode_image(cmyk, 1)[..., 0] - luma).max() <= 0.51


def test_webp():
  image = smooth(30, 41, 4)
  lossless = encode(".webp", image, cv2.IMWRITE_WEBP_QUALITY, 101)
  np.testing.assert_array_equal(decode.decode_image(lossless, 4), image[:, :, [2, 1, 0, 3]])
  lossy = decode.decode_image(encode(".webp", image[:, :, :3], cv2.IMWRITE_WEBP_QUALITY, 95))
  assert np.abs(lossy.astype(int) - image[:, :, 2::-1]).mean() < 3
  for data in (lossless, encode(".webp", image[:, :, :3], cv2.IMWRITE_WEBP_QUALITY, 95)):
    assert decode.read_header(data)[:3] == ("WebP", 30, 41)
    with pytest.raises(BadRecordError, match="WebP"):
      decode.decode_image(data[:-30], 4 if data == lossless else 3)


def test_warnings_are_accepted_as_by_tensorflow():
  data = golden_jpeg("photo_china")
  early = data[: len(data) // 2] + b"\xff\xd9"
  half = decode.decode_image(early)
  np.testing.assert_array_equal(half[:150], decode.decode_image(data)[:150])
  stray = data[:-2] + b"\x12\x34" + data[-2:] + b"trailing"
  np.testing.assert_array_equal(decode.decode_image(stray), decode.decode_image(data))


PILLOW = {
  "baseline": {}, "progressive": {"progressive": True}, "restarts": {"restart_marker_blocks": 1},
  "RGB": {"keep_rgb": True}, "progressive restarts": {"progressive": True, "restart_marker_rows": 1},
}  # fmt: skip
MARKERS = b"\xff\xda" * 300 + b"\xff\xd9\xff\xe1\xff\xff"
VIDEO = b"\0\0\0\x18ftypmp42" + MARKERS + random.Random(0).randbytes(200_000) + b"\xff\xda"


@pytest.mark.parametrize("kind", PILLOW)
def test_markers_count_where_they_are_markers_alone(kind):
  """A thumbnail in EXIF and a phone's video behind the end hold bytes of scans and ends."""
  thumbnail = b"Exif\0\0" + (encode(".jpg", smooth(16, 16)) + MARKERS)[:60_000]
  pixels = Image.fromarray(smooth(60, 81))
  files = []
  for exif in (b"", thumbnail):
    pixels.save(file := io.BytesIO(), "JPEG", exif=exif, **PILLOW[kind])
    files.append(file.getvalue())
  want = decode.decode_image(files[0])
  for data in (*files, *(f + VIDEO for f in files)):
    header = decode.read_header(data)
    np.testing.assert_array_equal(decode.decode_image(data), want)
    got = decode.decode_region(data, header, (5, 7, 31, 40))
    np.testing.assert_array_equal(got, want[5:36, 7:47])
  for data in files:
    for cut in (data[:-2], data[:-200], data[: data.rfind(b"\xff\xda") + 20]):
      with pytest.raises(BadRecordError, match="truncated JPEG: the end marker"):
        decode.read_header(cut)


# --- regions ----------------------------------------------------------------------------------------


def regions(height, width, count, seed=0):
  """Yields boxes: the whole, the corners' pixels, and random ones."""
  yield from ((0, 0, height, width), (0, 0, 1, 1), (height - 1, width - 1, 1, 1))
  rng = np.random.default_rng(seed)
  for _ in range(count):
    h, w = rng.integers(1, height + 1), rng.integers(1, width + 1)
    yield int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), int(h), int(w)


@pytest.fixture(params=["installed", "absent"])
def turbojpeg_3(request, monkeypatch):
  """The test runs with TurboJPEG 3, where it is installed, and without."""
  if request.param == "absent":
    monkeypatch.setattr(turbojpeg, "decode_region", lambda *_, **__: None)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.usefixtures("turbojpeg_3")
def test_a_region_holds_the_pixels_of_the_whole(channels):
  """Every subsampling, progressive, grey, CMYK, PNG and a JPEG that ends in the middle; edges too."""
  files = jpegs(75, 101)
  half = files["progressive"][: len(files["progressive"]) // 2]
  files |= {
    "damaged": half + b"\xff\xd9",
    "cmyk": golden_jpeg("extra_cmyk"),
    "png": encode(".png", smooth(20, 31)),
  }
  for name, data in files.items():
    whole, header = decode.decode_image(data, channels), decode.read_header(data)
    for y, x, h, w in regions(*whole.shape[:2], 25):
      got = decode.decode_region(data, header, (y, x, h, w), channels)
      np.testing.assert_array_equal(
        got, whole[y : y + h, x : x + w], err_msg=f"{name} {y, x, h, w}"
      )


@pytest.mark.usefixtures("turbojpeg_3")
def test_a_scaled_region_shows_the_same_part():
  image = cv2.GaussianBlur(smooth(336, 504), (0, 0), 12)
  image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
  data = encode(".jpg", image, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SUBSAMPLINGS["444"])
  header = decode.read_header(data)
  scales = set()
  for y, x, h, w in regions(336, 504, 40):
    got = decode.decode_region(data, header, (y, x, h, w), at_least=(24, 24))
    scale = next(s for s in (8, 4, 2, 1) if s == 1 or min(h, w) >= 24 * s)
    scales.add(scale)
    if scale == 1:
      np.testing.assert_array_equal(got, decode.decode_region(data, header, (y, x, h, w)))
      continue
    # Edges lie at the nearest multiple of the scale, and each pixel is the mean of its square.
    top, left, bottom, right = ((2 * n + scale) // (2 * scale) for n in (y, x, y + h, x + w))
    part = image[top * scale : bottom * scale, left * scale : right * scale, ::-1]
    want = cv2.resize(part, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    assert np.abs(got.astype(int) - want).mean() < 1.5
  assert scales == {1, 2, 4, 8}


def test_both_decoders_scale_alike(monkeypatch):
  if not turbojpeg.available():
    pytest.skip("no TurboJPEG 3 library is installed")
  for name, data in jpegs(333, 501).items():
    header, box = decode.read_header(data), (40, 51, 203, 301)
    a = decode.decode_region(data, header, box, at_least=(60, 60)).astype(int)
    with monkeypatch.context() as patch:
      patch.setattr(turbojpeg, "decode_region", lambda *_, **__: None)
      b = decode.decode_region(data, header, box, at_least=(60, 60))
    assert a.shape == b.shape
    assert np.abs(a - b)[1:-1, 1:-1].max() <= 1, name


# --- the bad world ----------------------------------------------------------------------------------

VP8 = b"\x00\x00\x00\x9d\x01\x2a" + struct.pack("<HH", 16383, 16383) + bytes(20)
BOMBS = {
  "jpeg": resized_jpeg(BOMB_PX, BOMB_PX),
  "progressive": resized_jpeg(BOMB_PX, BOMB_PX, progressive=True),
  "progressive coefficients": resized_jpeg(10_000, 10_000, progressive=True),
  "png": png(BOMB_PX, BOMB_PX),
  "png 2^31": png(2**31 - 1, 2**31 - 1),
  "webp lossy": webp(b"VP8 ", VP8),
  "webp lossless": webp(b"VP8L", b"\x2f" + struct.pack("<I", 16382 | 16382 << 14) + bytes(20)),
  "webp extended": webp(b"VP8X", bytes(4) + b"\x4f\xc3\x00" * 2 + bytes(20)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_decompression_bombs_are_refused_before_decoding(name):
  before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
  for _ in range(20):
    with pytest.raises(BadRecordError, match=r"pixels; 100000000 at most|900 MB to decode"):
      decode.decode_image(BOMBS[name])
  assert time.process_time() - start < 1  # decoding 2.5 billion pixels once takes far longer
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_too_many_scans_are_refused():
  data = encode(".jpg", smooth(64, 64), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
  last = data.rfind(b"\xff\xda")
  bomb = data[:-2] + data[last:-2] * decode.MAX_SCANS + data[-2:]
  with pytest.raises(BadRecordError, match="JPEG of more than 100 scans"):
    decode.decode_image(bomb)


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"", "0 bytes"), (b"GIF89a" + bytes(50), "a GIF"), (b"BM" + bytes(60), "a BMP"),
    (b"II*\0" + bytes(60), "a TIFF"), (b"<!DOCTYPE html><html>", "HTML"), (b"%PDF-1.7", "a PDF"),
    (b"\0\0\0\x18ftypheic" + bytes(60), "HEIC"), (b"plain text", "bytes that start"),
    (b"\xff\xd8\xff", "truncated JPEG"), (b"\xff\xd8\xff\xd9", "JPEG"),
    (b"\xff\xd8\xff\xe0\xff\xff", "truncated JPEG"), (b"\x89PNG\r\n\x1a\n", "truncated PNG"),
    (encode(".png", smooth(32, 32))[:-20], "truncated PNG"),
    (golden_jpeg("photo_china")[:-2], "end marker"), (golden_jpeg("photo_china")[:300], "JPEG"),
    (resized_jpeg(0, 16), "0×16"), (resized_jpeg(16, 0), "16×0"), (png(0, 5), "0×5"),
    (png(4, 4, png_chunk(b"acTL", bytes(8))), "animated PNG"),
    (png(4, 4, png_chunk(b"IHDR", bytes(13))), "not one header"),
    (png(4, 4, b"\xb9\0\0\0IDAT"), "truncated PNG"), (webp(b"VP8X", b"\x02" + bytes(30)), "animated WebP"), (webp(b"JUNK", bytes(40)), "damaged WebP"),
    (b"RIFF\xff\xff\xff\x00WEBPVP8 " + bytes(30), "truncated WebP"),
    (b"\x89PNG\r\n\x1a\n" + golden_jpeg("extra_tiny"), "PNG"),
  ],
)  # fmt: skip
def test_files_that_are_no_image_are_named(data, message):
  for call in (decode.read_header, decode.decode_image):
    if call is decode.read_header and data[:3] == b"\xff\xd8\xff" and message == "JPEG":
      continue  # some damage is found only by decoding
    with pytest.raises(BadRecordError, match=message):
      call(data)


def test_libraries_print_nothing_of_what_they_do_not_like(capfd):
  """A profile that is none and a text that is cut change no pixel; a flipped bit is an error of ours."""
  whole, image = encode(".png", smooth(20, 31)), smooth(20, 31)[..., ::-1]
  odd = png_chunk(b"iCCP", b"x\0\0no profile") + png_chunk(b"tEXt", b"x")
  np.testing.assert_array_equal(decode.decode_image(whole[:33] + odd + whole[33:]), image)
  flipped = bytearray(whole)
  flipped[len(whole) // 2] ^= 1
  with pytest.raises(BadRecordError, match="damaged PNG: a checksum"):
    decode.decode_image(bytes(flipped))
  assert capfd.readouterr() == ("", "")


def fuzz(count, seed):
  """Returns how many damaged files gave pixels, and how many a BadRecordError; anything else raises."""
  rng, good, bad, slowest = random.Random(seed), 0, 0, 0.0
  for data in damaged(count, seed):
    start = time.process_time()
    try:
      header = decode.read_header(data)
      if header.height * header.width > 4_000_000:
        continue  # a plausible size that takes long to fill: the limit is the test of bombs
      whole = decode.decode_image(data)
      assert whole.shape == (header.height, header.width, 3)
      junk = np.full(whole.shape, rng.randrange(256), np.uint8)  # what new memory may hold
      del junk
      np.testing.assert_array_equal(decode.decode_image(data), whole)
      h, w = rng.randint(1, header.height), rng.randint(1, header.width)
      box = rng.randint(0, header.height - h), rng.randint(0, header.width - w), h, w
      assert decode.decode_region(data, header, box).shape == (h, w, 3)
      decode.decode_region(data, header, box, at_least=(8, 8))
      good += 1
    except BadRecordError:
      bad += 1
    slowest = max(slowest, time.process_time() - start)
  return good, bad, slowest


@pytest.mark.parametrize(
  ("count", "seeds", "most_kb"),
  [(400, [0], 200_000), pytest.param(2000, range(1, 11), 2_000_000, marks=pytest.mark.campaign)],
)
def test_damaged_files_give_pixels_or_a_named_error(count, seeds, most_kb):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for seed in seeds:
    good, bad, slowest = fuzz(count, seed)
    assert good > count / 8 and bad > count / 4 and slowest < 5
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < most_kb
