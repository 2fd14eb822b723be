"""A JPEG's markers, walked segment by segment: what its frame says, and whether the picture is whole.

Thumbnails inside segments and what follows the end marker, such as a phone's video, hold bytes that look like markers.
"""

import re
from typing import NamedTuple

from mixer_jax.errors import BadRecordError

_END, _SCAN = 0xD9, 0xDA
# Within and behind a scan: tables, the next scan, comments and the end. Stuffed bytes, restarts and strays are passed over.
_NEXT = re.compile(rb"\xff[\xc4\xcc\xd9-\xef\xfe]")


class Frame(NamedTuple):
  """What the header says.

  Attributes:
    height, width: in pixels.
    sampling: (horizontal, vertical) factors of each component.
    adobe: whether there is a segment of Adobe's.
    several_scans: whether the decoder keeps all coefficients: progressive, or components one after another.
  """

  height: int
  width: int
  sampling: tuple[tuple[int, int], ...]
  adobe: bool
  several_scans: bool

  @property
  def coefficient_bytes(self) -> int:
    """Bytes of what the decoder keeps of coefficients, 64 of two bytes a block, in whole minimal coded units."""
    if not self.several_scans:
      return 0
    across, down = (max(factors) for factors in zip(*self.sampling, strict=True))
    units = -(-self.width // (8 * across)) * -(-self.height // (8 * down))
    return units * sum(h * v for h, v in self.sampling) * 128


def read(data: bytes, *, max_scans: int) -> Frame:
  """Reads the header, and looks for the end behind it.

  Raises:
    BadRecordError: truncated, without a size, or of more scans than `max_scans`.
  """
  frame, adobe, marker, segment, position = b"", False, 0, 2, 2
  while marker not in (_END, _SCAN):
    # As libjpeg does, stray bytes before a marker and repeated 0xFF are passed over.
    position = data.find(b"\xff", position)
    while 0 <= position < len(data) and data[position] == 0xFF:
      position += 1
    if position < 0 or position + 3 >= len(data):
      raise BadRecordError("truncated JPEG: no picture after the header")
    marker = data[position]
    if marker <= 1 or 0xD0 <= marker <= 0xD8:  # no marker, or one without content
      continue
    segment, position = position, position + 1 + data[position + 1] * 256 + data[position + 2]
    if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # those are tables
      frame = data[segment:position]
    elif marker == 0xEE:
      adobe = adobe or data[segment + 3 : segment + 8] == b"Adobe"
  sampling = tuple((factor >> 4, factor & 15) for factor in frame[10::3])
  if marker == _END:
    raise BadRecordError("truncated JPEG: no picture after the header")
  if not sampling or len(sampling) != frame[8] or not all(map(all, sampling)):
    raise BadRecordError("damaged JPEG: no size in the header")
  several = frame[0] in (0xC2, 0xCA) or data[segment + 3] < len(sampling)
  # The source of TensorFlow's decoder, too, ends in an error where libjpeg alone would fill with grey.
  if several or data[-2:] != b"\xff\xd9":
    _check_scans(data, position, max_scans)
  height, width = int.from_bytes(frame[4:6], "big"), int.from_bytes(frame[6:8], "big")
  return Frame(height, width, sampling, adobe, several)


def _check_scans(data: bytes, position: int, most: int) -> None:
  """Raises BadRecordError unless at most so many scans and the end follow; the first begins at `position`."""
  scans = 1
  while found := _NEXT.search(data, position):
    marker, position = data[found.start() + 1], found.end()
    if marker == _END:
      return
    scans += marker == _SCAN
    if scans > most:
      raise BadRecordError(f"JPEG of more than {most} scans")
    after = position + int.from_bytes(data[position : position + 2], "big")
    position = after if after < len(data) else position  # else it is no segment, but damage
  raise BadRecordError("truncated JPEG: the end marker is missing")
