"""Parts of a JPEG, by TurboJPEG 3's C interface, where a library of it is installed.

libjpeg-turbo decodes the coefficients down to a region's last row, but transforms only the blocks that the
region needs, and transforms them to ½, ¼ or ⅛ of the size on request. simplejpeg, which decodes whole images,
gives the same bytes without it, in more time (docs/decisions/0005-decoder.md).
"""

import ctypes
import functools
import importlib.util
import pathlib
import sys
from typing import Any

import numpy as np
from jaxtyping import UInt8

# Constants of turbojpeg.h.
_DECOMPRESS = 1
_PIXELS = {1: 6, 3: 0}  # TJPF_GRAY, TJPF_RGB by channels
_SUBSAMPLING, _WIDTH, _HEIGHT, _COLORSPACE, _FAST_DCT, _SCAN_LIMIT = 4, 5, 6, 8, 10, 13
_CMYK, _YCCK = 3, 4
_WARNING = 0
_MCU_WIDTHS = (8, 16, 16, 8, 8, 32, 8)  # by subsampling: 444, 422, 420, grey, 440, 411, 441


class _Region(ctypes.Structure):
  _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


class _Fraction(ctypes.Structure):
  _fields_ = [("num", ctypes.c_int), ("denom", ctypes.c_int)]


def available() -> bool:
  """Tells whether a library is installed."""
  return _library() is not None


def decode_region(
  data: bytes,
  box: tuple[int, int, int, int],
  *,
  channels: int,
  eighths: int,
  max_scans: int,
  fast_dct: bool,
) -> UInt8[np.ndarray, "h w c"] | None:
  """Decodes a part of a JPEG, at a part of its size.

  At full size the pixels are those of the decoded whole, the outermost columns included.

  Args:
    data: a JPEG whose header and end have been checked.
    box: (top, left, height, width) in pixels of the decoded size, within it.
    channels: 3: RGB; 1: the luma.
    eighths: 8 for full size, 4, 2 or 1 for ½, ¼ and ⅛ of each side, rounded up.
    max_scans: more scans of a progressive JPEG are an error.
    fast_dct: the fast DCT instead of the accurate one.

  Returns:
    The pixels. None if no library is installed, it cannot crop this kind of file, or the file is damaged.

  Raises:
    ValueError: damaged beyond decoding.
  """
  library = _library()
  if library is None:
    return None
  # A handle is cheap (7 µs), and keeps nothing from one image for the next.
  handle = library.tj3Init(_DECOMPRESS)
  try:
    library.tj3Set(handle, _FAST_DCT, int(fast_dct))
    library.tj3Set(handle, _SCAN_LIMIT, max_scans)
    return _decode(library, handle, data, box, channels, eighths)
  finally:
    library.tj3Destroy(handle)


def _decode(
  library: Any,
  handle: Any,
  data: bytes,
  box: tuple[int, int, int, int],
  channels: int,
  eighths: int,
) -> np.ndarray | None:
  # Files of unusual subsampling cannot be cropped: the header says so, or the library refuses the region.
  if library.tj3DecompressHeader(handle, data, len(data)) < 0:
    return None
  subsampling = library.tj3Get(handle, _SUBSAMPLING)
  if subsampling < 0 or library.tj3Get(handle, _COLORSPACE) in (_CMYK, _YCCK):
    return None
  top, left, height, width = box
  full_width = -(-library.tj3Get(handle, _WIDTH) * eighths // 8)
  # Regions start at a block. One column more on each side, and the upsampling of chroma sees the
  # neighbours that it sees in the whole image.
  block = _MCU_WIDTHS[subsampling] * eighths // 8
  start, end = max(left - 1, 0) // block * block, min(left + width + 1, full_width)
  region = _Region(start, top, end - start, height)
  scaled = library.tj3SetScalingFactor(handle, _Fraction(1, 8 // eighths))
  if scaled < 0 or library.tj3SetCroppingRegion(handle, region) < 0:
    return None
  pixels = np.empty((height, end - start, channels), np.uint8)
  failed = library.tj3Decompress8(
    handle, data, len(data), pixels.ctypes.data, channels * (end - start), _PIXELS[channels]
  )
  if not failed:
    return pixels[:, left - start : left - start + width]
  if library.tj3GetErrorCode(handle) == _WARNING:
    return None  # behind damage, skipped blocks would differ from decoded ones
  raise ValueError(library.tj3GetErrorStr(handle).decode(errors="replace"))


@functools.cache
def _library() -> Any | None:
  for path in _candidates():
    try:
      library = ctypes.CDLL(path)
    except OSError:
      continue
    if hasattr(library, "tj3SetCroppingRegion"):
      return _declare(library)
  return None


def _candidates() -> list[str]:
  """Returns where a library may be: the system's, an environment's (conda), the wheel `turbojpeg`'s."""
  name = {"darwin": "libturbojpeg.dylib", "win32": "turbojpeg.dll"}.get(
    sys.platform, "libturbojpeg.so.0"
  )
  paths = [name, str(pathlib.Path(sys.prefix) / "lib" / name)]
  wheel = importlib.util.find_spec("turbojpeg")
  if wheel is not None and wheel.origin is not None:
    bundled = pathlib.Path(wheel.origin).parent / "turbojpeg.libs"
    paths += sorted(str(p) for p in bundled.glob("libturbojpeg*"))
  return paths


def _declare(library: Any) -> Any:
  """Gives the functions in use their C types."""
  handle, number, data = ctypes.c_void_p, ctypes.c_int, [ctypes.c_char_p, ctypes.c_size_t]
  for name, result, arguments in (
    ("tj3Init", handle, [number]),
    ("tj3Destroy", None, [handle]),
    ("tj3Set", number, [handle, number, number]),
    ("tj3Get", number, [handle, number]),
    ("tj3DecompressHeader", number, [handle, *data]),
    ("tj3SetScalingFactor", number, [handle, _Fraction]),
    ("tj3SetCroppingRegion", number, [handle, _Region]),
    ("tj3Decompress8", number, [handle, *data, ctypes.c_void_p, number, number]),
    ("tj3GetErrorCode", number, [handle]),
    ("tj3GetErrorStr", ctypes.c_char_p, [handle]),
  ):
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
  return library
