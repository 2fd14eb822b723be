"""Encoded images of all kinds for tests: whole, damaged, and with headers that claim something else."""

import random
import struct
import zlib

import cv2
import numpy as np

from tests.conftest import GOLDEN


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


def png(width, height, extra=b"", *, pixels=bytes(100), kind=2):
  """Returns a PNG with these chunks after its header; `kind` is 2 for RGB, 3 for a palette."""
  header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
  return (
    b"\x89PNG\r\n\x1a\n" + header + extra
    + png_chunk(b"IDAT", zlib.compress(pixels)) + png_chunk(b"IEND", b"")
  )  # fmt: skip


def webp(kind, body):
  chunk = kind + struct.pack("<I", len(body)) + body
  return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def resized_jpeg(width, height, progressive=False):
  """Returns a small JPEG whose header claims another size; a progressive one has whole chroma."""
  options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1] if progressive else []
  options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SUBSAMPLINGS["444"]] if progressive else []
  data = bytearray(encode(".jpg", smooth(16, 16), *options))
  frame = data.find(b"\xff\xc2" if progressive else b"\xff\xc0")
  data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
  return bytes(data)


def damaged(count, seed):
  """Yields files: cut, with bits flipped, header bytes replaced, mislabelled, or of a huge claimed size."""
  rng = random.Random(seed)
  files = [*jpegs(60, 81).values(), golden_jpeg("extra_tiny"), golden_jpeg("extra_exif6")]
  files += [encode(".png", smooth(40, 31)), encode(".png", smooth(40, 31, 4))]
  files += [encode(".webp", smooth(40, 31), cv2.IMWRITE_WEBP_QUALITY, q) for q in (80, 101)]
  for _ in range(count):
    data = bytearray(rng.choice(files))
    kind = rng.choice(("cut", "flip", "header", "magic", "splice", "bomb"))
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
    elif kind == "bomb":
      data = resized_jpeg(rng.randrange(20_000, 65_000), 20_000)
    else:
      data[len(data) // 2 :] = rng.choice(files)[rng.randrange(40) :]
    yield bytes(data)
