"""Encoded images to pixels: the bytes that the authors' TensorFlow decodes, from untrusted files.

JPEG (grey, RGB, CMYK, YCCK; baseline and progressive; chroma of any sampling), PNG and WebP, told apart by their content. EXIF
orientation, gamma and colour profiles are ignored, 16 bits become the upper 8, as in tf.io. The header's
size is checked before anything is decoded or allocated.
"""

import io
import sys
import zlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

import cv2
import numpy as np
import PIL.Image
import simplejpeg
from jaxtyping import UInt8

from mixer_jax.data import jpeg, turbojpeg
from mixer_jax.errors import BadRecordError

Image = UInt8[np.ndarray, "h w c"]
Part = UInt8[np.ndarray, "part_h part_w c"]
Box = tuple[int, int, int, int]  # top, left, height, width in pixels
Dct = Literal["fast", "accurate"]  # of a JPEG: TensorFlow's default, or Pillow's

MAX_PIXELS = 100_000_000  # of an image: 300 MB decoded; ImageNet's largest has 60 million
MAX_SCANS = 100  # of a JPEG. Each may touch the whole image; encoders write 10.
MAX_BYTES = 700_000_000  # of memory while an image is decoded, with coefficients and copies

# What it warns of ends as an error here.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)

_OTHERS = {
  b"GIF8": "a GIF", b"BM": "a BMP", b"II*\0": "a TIFF", b"MM\0*": "a TIFF", b"<": "HTML or XML",
  b"\0\0\0\x0cJXL ": "a JPEG XL", b"\xff\x0a": "a JPEG XL", b"%PDF": "a PDF", b"PK\x03\x04": "a ZIP",
}  # fmt: skip


_SMOOTH = ((2, 1), (1, 2), (2, 2))  # what libjpeg enlarges smoothly; others are repeated


class Header(NamedTuple):
  """What is known of an image before it is decoded; sizes in pixels."""

  format: Literal["JPEG", "PNG", "WebP"]
  height: int
  width: int
  num_bytes: int  # what decoding takes, about
  cmyk: bool = False
  adobe: bool = False  # a CMYK JPEG of Adobe's holds the complement
  alpha: bool = False
  smooth: bool = False  # components of a JPEG with half the rows or columns, which are interpolated


def decode_image(data: bytes, channels: int = 3, *, dct: Dct = "fast") -> Image:
  """Decodes JPEG, PNG or WebP.

  A JPEG with warnings is decoded as far as it goes, as TensorFlow does: stray bytes between markers do no
  harm, flipped bits disturb the blocks that follow.

  Args:
    data: the file.
    channels: 1: grey, colours become their luma (0.299, 0.587, 0.114). 3: RGB, grey becomes three equal
      channels. 4: RGB and alpha, not premultiplied.
    dct: "fast": a JPEG's pixels are TensorFlow's. "accurate": they are Pillow's, for grey and RGB files.

  Raises:
    BadRecordError: empty, truncated, damaged, of another format, or more than MAX_PIXELS; pixels that are not
      opaque for 1 or 3 channels; no alpha for 4.
  """
  header = read_header(data)
  if channels == 4 and not header.alpha:
    raise BadRecordError(f"a {header.format} without alpha, but image_channels is 4")
  if header.format == "JPEG":
    return _decode_jpeg(data, header, channels, dct=dct)
  return _decode_other(data, header, channels)


def decode_region(
  data: bytes,
  header: Header,
  box: Box,
  channels: int = 3,
  *,
  at_least: tuple[int, int] | None = None,
  dct: Dct = "fast",
) -> Part:
  """Decodes the part of an image that is inside of `box`.

  Args:
    data: the file.
    header: read_header(data).
    box: (top, left, height, width) within the image.
    channels: see decode_image.
    at_least: None for the very pixels of decode_image. With (height, width), a JPEG may be decoded
      at ½, ¼ or ⅛ of its size, if what is left of the box is at least as large. Its edges then lie
      at the nearest pixel of the smaller image, which may take one pixel off.
    dct: see decode_image.

  Raises:
    BadRecordError: as decode_image.
  """
  if header.format != "JPEG" or header.cmyk or channels == 4:
    return _cut(decode_image(data, channels, dct=dct), box)
  eighths = 8 if at_least is None else _smallest_eighths(box, at_least)
  scaled = _scale_box(box, header, eighths)
  try:
    pixels = turbojpeg.decode_region(
      data, scaled, channels=channels, eighths=eighths, max_scans=MAX_SCANS, fast_dct=dct == "fast"
    )
  except ValueError as e:
    raise BadRecordError(f"damaged JPEG: {e}") from e
  if pixels is None:
    return _cut(_decode_jpeg(data, header, channels, dct=dct, eighths=eighths), scaled)
  return pixels


def _cut(image: Image, box: Box) -> Part:
  top, left, height, width = box
  return image[top : top + height, left : left + width]


def _smallest_eighths(box: Box, at_least: tuple[int, int]) -> int:
  """Returns the smallest of 1, 2, 4, 8 eighths at which the box still has `at_least` pixels."""
  _, _, height, width = box
  for eighths in (1, 2, 4):
    if height * eighths >= 8 * at_least[0] and width * eighths >= 8 * at_least[1]:
      return eighths
  return 8


def _scale_box(box: Box, header: Header, eighths: int) -> Box:
  """Returns the box in the pixels of the smaller image, its edges at the nearest ones."""
  top, left, height, width = box
  y, x = (2 * top * eighths + 8) // 16, (2 * left * eighths + 8) // 16
  bottom = min((2 * (top + height) * eighths + 8) // 16, -(-header.height * eighths // 8))
  right = min((2 * (left + width) * eighths + 8) // 16, -(-header.width * eighths // 8))
  return y, x, bottom - y, right - x


# --- headers ----------------------------------------------------------------------------------------


def read_header(data: bytes) -> Header:
  """Reads format and size, in microseconds.

  Raises:
    BadRecordError: not JPEG, PNG or WebP, animated, truncated, or more than MAX_PIXELS.
  """
  if data[:3] == b"\xff\xd8\xff":
    header = _read_jpeg_header(data)
  elif data[:8] == b"\x89PNG\r\n\x1a\n":
    header = _read_png_header(data)
  elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
    header = _read_webp_header(data)
  else:
    raise BadRecordError(f"not a JPEG, PNG or WebP, but {_name(data)}")
  if not 0 < header.height * header.width <= MAX_PIXELS:
    raise BadRecordError(
      f"{header.format} of {header.width}×{header.height} pixels; {MAX_PIXELS} at most, and not none"
    )
  if header.num_bytes > MAX_BYTES:
    raise BadRecordError(
      f"{header.format} of {header.width}×{header.height} pixels that takes {header.num_bytes / 1e6:.0f} MB to decode; "
      f"{MAX_BYTES / 1e6:.0f} MB at most: save it smaller, or as a baseline JPEG"
    )
  return header


def _name(data: bytes) -> str:
  if data[4:8] == b"ftyp":
    return f"an ISO media file such as HEIC or AVIF ({data[8:12]!r})"
  known = (name for magic, name in _OTHERS.items() if data.startswith(magic))
  return next(known, f"{len(data)} bytes that start with {data[:8]!r}")


def _read_jpeg_header(data: bytes) -> Header:
  frame = jpeg.read(data, max_scans=MAX_SCANS)
  cmyk = len(frame.sampling) == 4
  pixel = 7 if cmyk else 3  # bytes: of CMYK too
  num_bytes = frame.height * frame.width * pixel + frame.coefficient_bytes
  across, down = (max(factors) for factors in zip(*frame.sampling, strict=True))
  smooth = any((across / h, down / v) in _SMOOTH for h, v in frame.sampling)
  return Header(
    "JPEG", frame.height, frame.width, num_bytes, cmyk=cmyk, adobe=frame.adobe, smooth=smooth
  )


def _read_png_header(data: bytes) -> Header:
  kinds = set()
  for start, _, kind in _png_chunks(data):
    if (start == 8) != (kind == b"IHDR"):
      raise BadRecordError("damaged PNG: not one header, at the start")
    if kind == b"acTL":
      raise BadRecordError("an animated PNG")
    kinds.add(kind)
  height, width = int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
  # By the type of colour. OpenCV does not know of transparent levels of grey.
  alpha = data[25] in (4, 6) or (data[25] in (2, 3) and b"tRNS" in kinds)
  return Header("PNG", height, width, _twice(height, width, alpha, data[24] == 16), alpha=alpha)


def _png_chunks(data: bytes) -> Iterator[tuple[int, int, bytes]]:
  """Yields (start, end, kind) of each chunk, up to that of the end."""
  end, kind = 8, b""
  while kind != b"IEND":
    # OpenCV allocates what a chunk claims to hold, and returns what it could decode of a cut file.
    start, kind = end, data[end + 4 : end + 8]
    end += 12 + int.from_bytes(data[start : start + 4], "big")
    if end > len(data):
      raise BadRecordError("truncated PNG: a chunk reaches beyond the end")
    yield start, end, kind


def essential_png(png: bytes) -> bytes:
  """Returns a PNG's header and pixels without all that may follow, of which libpng prints what it does not like.

  Raises:
    BadRecordError: a checksum is wrong, which libpng would print, too.
  """
  color = png[25]
  needed = {b"IHDR", b"IDAT", b"IEND", *([b"PLTE"] if color == 3 else [])}
  needed |= {b"tRNS"} if color in (0, 2, 3) else set()
  chunks = [(start, end) for start, end, kind in _png_chunks(png) if kind in needed]
  for start, end in chunks:
    if zlib.crc32(png[start + 4 : end - 4]) != int.from_bytes(png[end - 4 : end], "big"):
      raise BadRecordError("damaged PNG: a checksum is wrong")
  return png[:8] + b"".join(png[start:end] for start, end in chunks)


def _read_webp_header(data: bytes) -> Header:
  if len(data) < 30 or int.from_bytes(data[4:8], "little") + 8 > len(data):
    raise BadRecordError("truncated WebP")
  kind, body, alpha = data[12:16], data[20:30], False
  if kind == b"VP8X":
    if body[0] & 2:
      raise BadRecordError("an animated WebP")
    width, height = (1 + int.from_bytes(body[i : i + 3], "little") for i in (4, 7))
    alpha = bool(body[0] & 16)
  elif kind == b"VP8L" and body[0] == 0x2F:
    bits = int.from_bytes(body[1:5], "little")
    width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    alpha = bool(bits >> 28 & 1)
  elif kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
    width, height = (int.from_bytes(body[i : i + 2], "little") & 0x3FFF for i in (6, 8))
  else:
    raise BadRecordError("damaged WebP: no size in the header")
  return Header("WebP", height, width, _twice(height, width, alpha), alpha=alpha)


def _twice(height: int, width: int, alpha: bool, deep: bool = False) -> int:
  """Returns the bytes of an image as it is read, and of a copy."""
  return 2 * height * width * ((4 << deep) if alpha else 3)


# --- pixels -----------------------------------------------------------------------------------------


def _decode_jpeg(
  data: bytes, header: Header, channels: int, *, dct: Dct, eighths: int = 8
) -> UInt8[np.ndarray, "scaled_h scaled_w c"]:
  colorspace = "CMYK" if header.cmyk else {1: "GRAY", 3: "RGB"}[channels]
  height, width = (-(-n * eighths // 8) for n in (header.height, header.width))
  # Zeros, since nothing is written behind damage that ends the decoding.
  buffer = np.zeros((height, width, {"GRAY": 1, "RGB": 3, "CMYK": 4}[colorspace]), np.uint8)
  try:
    # The two flags as they are by default give the bytes of TensorFlow's decoder.
    pixels = simplejpeg.decode_jpeg(
      data, colorspace, fastdct=dct == "fast", fastupsample=False, strict=False, buffer=buffer,
      min_height=height if eighths < 8 else 0, min_width=width if eighths < 8 else 0,
    )  # fmt: skip
  except ValueError as e:
    if "subsampling" not in str(e):
      raise BadRecordError(f"damaged JPEG: {e}") from e
    pixels = cv2.resize(
      _decode_by_pillow(data, header, colorspace, dct),
      (width, height),
      interpolation=cv2.INTER_AREA,
    ).reshape(buffer.shape)
  if pixels.shape[:2] != (height, width):
    raise BadRecordError(f"damaged JPEG: {pixels.shape[:2]} pixels instead of {(height, width)}")
  return _of_rgb(_cmyk_to_rgb(pixels, adobe=header.adobe), channels) if header.cmyk else pixels


def _decode_by_pillow(
  data: bytes, header: Header, colorspace: str, dct: Dct
) -> UInt8[np.ndarray, "h w *c"]:
  """Decodes a JPEG whose sampling simplejpeg does not know (1x3, 2x4, Cb and Cr that differ).

  Pillow's draft mode has the fast DCT and repeats components instead of interpolating, and then gives TensorFlow's bytes. Where
  TensorFlow interpolates, the pixels are those of Pillow's accurate DCT, for "fast", too.
  """
  try:
    with PIL.Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
      if colorspace == "GRAY":
        image.draft("L", image.size)
      if dct == "fast" and not header.smooth:
        image.decoderconfig = (1, 1)  # pyright: ignore[reportAttributeAccessIssue]
      pixels = np.asarray(image)
  except (OSError, SyntaxError, ValueError) as e:
    raise BadRecordError(f"damaged JPEG: {e}") from e
  return 255 - pixels if header.cmyk else pixels  # Pillow takes all of CMYK for the complement


def _of_rgb(image: UInt8[np.ndarray, "h w 3"], channels: int) -> Image:
  if channels == 1:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
  return image


def _cmyk_to_rgb(cmyk: UInt8[np.ndarray, "h w 4"], *, adobe: bool) -> UInt8[np.ndarray, "h w 3"]:
  rgb = np.empty((*cmyk.shape[:2], 3), np.uint8)
  for y, inks in enumerate(cmyk):  # whole images of uint16 would take much memory
    ink = inks.astype(np.uint16) if adobe else 255 - inks.astype(np.uint16)
    rgb[y] = ink[:, :3] * ink[:, 3:] // 255
  return rgb


def _decode_other(data: bytes, header: Header, channels: int) -> Image:
  flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
  data = essential_png(data) if header.format == "PNG" else data
  try:
    image = cv2.imdecode(
      np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED if header.alpha else flags
    )
  except cv2.error as e:
    raise BadRecordError(f"damaged {header.format}: {e}") from e
  wanted = (header.height, header.width, 4 if header.alpha else 3)
  if image is None or image.shape != wanted:
    raise BadRecordError(f"damaged {header.format}")
  if not header.alpha:
    return _of_rgb(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), channels)
  if image.dtype == np.uint16:
    image = np.ascontiguousarray(image.view(np.uint8)[..., sys.byteorder == "little" :: 2])
  image = cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA)
  if channels == 4:
    return image
  if image[..., 3].min() < 255:
    raise BadRecordError(
      f"transparent pixels, but image_channels is {channels}: flatten the image onto a background, or "
      "train with image_channels=4"
    )
  return _of_rgb(np.ascontiguousarray(image[..., :3]), channels)
