"""Pages: text from outside stays text."""

import pytest

from mixer_jax import page
from tests import pages

HOSTILE = "\"><script>alert('1')</script><img src=//x onerror=y>&amp;\x1b[2J\u202e"
SHOWN = "\"><script>alert('1')</script><img src=//x onerror=y>&amp;\\x1b[2J\\u202e"
PNG = b"\x89PNG"


@pytest.mark.parametrize(
  "part",
  [
    page.heading(HOSTILE),
    page.paragraph(HOSTILE),
    page.code(HOSTILE),
    page.folded(HOSTILE, ""),
    page.table((HOSTILE,), ()),
    page.table((), [(HOSTILE,)]),
    page.tiles([(PNG, HOSTILE, True)]),
    page.whole(HOSTILE, []),
  ],
)
def test_text_from_outside_is_escaped(part):
  seen = pages.Page()
  seen.feed(part)
  assert SHOWN in seen.text
  assert "script" not in seen.elements
  assert [image.alt for image in seen.images] in ([], [SHOWN])
