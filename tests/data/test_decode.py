"""Decoding against TensorFlow's pixels, regions against the whole, and files from a bad world."""

import random
import resource
import struct
import time
import zlib

import cv2
import numpy as np
import pytest

from mixer_jax.data import decode, turbojpeg
from mixer_jax.errors import BadRecordError
from tests.conftest import GOLDEN

BOMB_PX = 50_000


def golden_jpeg(name):
  return (GOLDEN / f"{name}.jpg").read_bytes()


def smooth(height, width, channels=3, seed=0):
  noise = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
  return cv2.GaussianBlur(noise, (0, 0), 2).reshape(height, width, channels)


def encode(extension, image, *options):
  return cv2.imencode(extension, image, options)[1].tobytes()


SUBSAMPLINGS = {
  "444": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, "422": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
  "420": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, "440": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
  "411": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
}  # fmt: skip


def jpegs(height, width):
  """Returns a JPEG of each chroma subsampling, a progressive one and a grey one."""
  image = smooth(height, width)
  files = {
    name: encode(".jpg", image, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor)
    for name, factor in SUBSAMPLINGS.items()
  }
  files["progressive"] = encode(".jpg", image, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
  files["grey"] = encode(".jpg", image[:, :, 0])
  return files


def png_chunk(kind, content):
  checksum = struct.pack(">I", zlib.crc32(kind + content))
  return struct.pack(">I", len(content)) + kind + content + checksum


def png(width, height, extra=b""):
  header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
  return (
    b"\x89PNG\r\n\x1a\n" + header + extra
    + png_chunk(b"IDAT", zlib.compress(bytes(100))) + png_chunk(b"IEND", b"")
  )  # fmt: skip


def webp(kind, body):
  chunk = kind + struct.pack("<I", len(body)) + body
  return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def resized_jpeg(width, height, progressive=False):
  """Returns a small JPEG whose header claims another size."""
  options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1] if progressive else []
  data = bytearray(encode(".jpg", smooth(16, 16), *options))
  frame = data.find(b"\xff\xc2" if progressive else b"\xff\xc0")
  data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
  return bytes(data)


# --- the pixels -------------------------------------------------------------------------------------


def test_cmyk_is_tensorflows():
  golden = np.load(GOLDEN / "preprocess.npz")["extra_cmyk/decoded"]
  np.testing.assert_array_equal(decode.decode_image(golden_jpeg("extra_cmyk")), golden)


def test_cmyk_without_adobes_marker_is_plain_ink():
  data = golden_jpeg("extra_cmyk").replace(b"\xff\xee\x00\x0eAdobe", b"\xff\xee\x00\x0eOther")
  ink = 255 - np.asarray(decode_cmyk(data), int)
  np.testing.assert_array_equal(decode.decode_image(data), ink[..., :3] * ink[..., 3:] // 255)


def decode_cmyk(data):
  import simplejpeg

  return simplejpeg.decode_jpeg(data, "CMYK", fastdct=True, fastupsample=False)


def test_sixteen_bits_become_the_upper_eight():
  deep = np.random.default_rng(0).integers(0, 1 << 16, (9, 7, 4), np.uint16)
  want = (deep[:, :, 2::-1] >> 8).astype(np.uint8)
  with_alpha = decode.decode_image(encode(".png", deep), 4)
  np.testing.assert_array_equal(with_alpha[..., :3], want)
  np.testing.assert_array_equal(with_alpha[..., 3], deep[..., 3] >> 8)
  np.testing.assert_array_equal(decode.decode_image(encode(".png", deep[:, :, :3])), want)
  grey = decode.decode_image(encode(".png", deep[:, :, 0]))
  np.testing.assert_array_equal(grey, np.repeat((deep[:, :, :1] >> 8).astype(np.uint8), 3, 2))


def palette_png(palette, indices, transparency=b""):
  rows = b"".join(b"\0" + bytes(row) for row in indices)
  return (
    b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 6, 5, 8, 3, 0, 0, 0))
    + png_chunk(b"PLTE", palette.tobytes())
    + (png_chunk(b"tRNS", transparency) if transparency else b"")
    + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
  )  # fmt: skip


def test_palette_png():
  palette = np.random.default_rng(0).integers(0, 256, (4, 3), np.uint8)
  indices = np.random.default_rng(1).integers(0, 4, (5, 6), np.uint8)
  np.testing.assert_array_equal(
    decode.decode_image(palette_png(palette, indices)), palette[indices]
  )
  got = decode.decode_image(palette_png(palette, indices, b"\0\x80"), 4)
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
    np.testing.assert_array_equal(got, three[..., :1])
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


# --- regions ----------------------------------------------------------------------------------------


def regions(height, width, count, seed=0):
  """Yields boxes: the whole, the corners' pixels, and random ones."""
  yield from ((0, 0, height, width), (0, 0, 1, 1), (height - 1, width - 1, 1, 1))
  rng = np.random.default_rng(seed)
  for _ in range(count):
    h, w = rng.integers(1, height + 1), rng.integers(1, width + 1)
    yield int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), int(h), int(w)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("library", ["installed", "absent"])
def test_a_region_holds_the_pixels_of_the_whole(monkeypatch, library, channels):
  """Every subsampling, progressive, grey, CMYK and PNG; edges too; with and without TurboJPEG 3."""
  if library == "absent":
    monkeypatch.setattr(turbojpeg, "decode_region", lambda *_, **__: None)
  files = jpegs(75, 101) | {
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


@pytest.mark.parametrize("library", ["installed", "absent"])
def test_a_scaled_region_shows_the_same_part(monkeypatch, library):
  if library == "absent":
    monkeypatch.setattr(turbojpeg, "decode_region", lambda *_, **__: None)
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
    with pytest.raises(BadRecordError, match=r"pixels; 100000000 at most"):
      decode.decode_image(BOMBS[name])
  assert time.process_time() - start < 1  # decoding 2.5 billion pixels once takes far longer
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_too_many_scans_are_refused():
  data = encode(".jpg", smooth(64, 64), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
  last = data.rfind(b"\xff\xda")
  bomb = data[:-2] + data[last:-2] * decode.MAX_SCANS + data[-2:]
  with pytest.raises(BadRecordError, match="more than 100 scans"):
    decode.decode_image(bomb)


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"", "0 bytes"), (b"GIF89a" + bytes(50), "a GIF"), (b"BM" + bytes(60), "a BMP"),
    (b"II*\0" + bytes(60), "a TIFF"), (b"<!DOCTYPE html><html>", "HTML"), (b"%PDF-1.7", "a PDF"),
    (b"\0\0\0\x18ftypheic" + bytes(60), "HEIC"), (b"plain text", "bytes that start"),
    (b"\xff\xd8\xff", "truncated JPEG"), (b"\xff\xd8\xff\xd9", "JPEG"),
    (b"\xff\xd8\xff\xe0\xff\xff", "truncated JPEG"), (b"\x89PNG\r\n\x1a\n", "truncated PNG"),
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


def damaged(count, seed):
  """Yields files: cut, with bits flipped, with bytes of the header replaced, or mislabelled."""
  rng = random.Random(seed)
  files = [*jpegs(60, 81).values(), golden_jpeg("extra_tiny"), golden_jpeg("extra_exif6")]
  files += [encode(".png", smooth(40, 31)), encode(".png", smooth(40, 31, 4))]
  files += [encode(".webp", smooth(40, 31), cv2.IMWRITE_WEBP_QUALITY, q) for q in (80, 101)]
  for _ in range(count):
    data = bytearray(rng.choice(files))
    kind = rng.choice(("cut", "flip", "header", "magic", "splice"))
    if kind == "cut":
      del data[rng.randrange(len(data)) :]
    elif kind == "flip":
      for _ in range(rng.choice((1, 3, 30))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "header":
      for _ in range(rng.choice((1, 3, 10))):
        data[rng.randrange(min(len(data), 650))] = rng.randrange(256)
    elif kind == "magic":
      data[: rng.choice((3, 8, 12))] = rng.choice(files)[: rng.choice((3, 8, 12))]
    else:
      data[len(data) // 2 :] = rng.choice(files)[rng.randrange(40) :]
    yield bytes(data)


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
      h, w = rng.randint(1, header.height), rng.randint(1, header.width)
      box = rng.randint(0, header.height - h), rng.randint(0, header.width - w), h, w
      assert decode.decode_region(data, header, box).shape == (h, w, 3)
      decode.decode_region(data, header, box, at_least=(8, 8))
      good += 1
    except BadRecordError:
      bad += 1
    slowest = max(slowest, time.process_time() - start)
  return good, bad, slowest


def test_damaged_files_give_pixels_or_a_named_error():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  good, bad, slowest = fuzz(400, seed=0)
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
  assert good > 50
  assert bad > 100
  assert slowest < 5


@pytest.mark.campaign
def test_many_damaged_files_give_pixels_or_a_named_error():
  results = [fuzz(2000, seed) for seed in range(1, 11)]
  print(results)
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2_000_000
