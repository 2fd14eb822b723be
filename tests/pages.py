"""Pages and pictures as a reader gets them."""

import base64
import html
import html.parser
import json
import re
import shutil
import subprocess
from typing import NamedTuple

import cv2
import numpy as np

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


class Image(NamedTuple):
  alt: str
  pixels: np.ndarray


class Page(html.parser.HTMLParser):
  """Text, pictures and names of the elements of a page; fails where it names anything outside."""

  def __init__(self):
    super().__init__()
    self.text, self.images, self.elements = "", [], set()

  def handle_starttag(self, tag, attrs):
    self.elements.add(tag)
    given = dict(attrs)
    assert not {"href", "srcset", "onerror", "onload"} & given.keys(), attrs
    if tag == "img":
      kind, _, content = given["src"].partition(",")
      assert kind == "data:image/png;base64"
      pixels = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), 1)
      self.images.append(Image(given["alt"], pixels))

  def handle_data(self, data):
    self.text += f"{data} "


def read(text):
  page = Page()
  page.feed(text)
  assert not page.elements & {"script", "link", "iframe", "object", "base"}
  assert all(image.pixels is not None for image in page.images)
  page.text = re.sub(" +", " ", page.text)
  return page


_SCRIPT = """
onload = () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, images = [...page.images];
    found[frame.width] = {
      needed: page.documentElement.scrollWidth, images: images.length,
      loaded: images.filter(i => i.complete && i.naturalWidth).length,
      smallest: Math.min(...images.map(i => i.clientWidth)),
    };
  }
  document.body.textContent = JSON.stringify(found);
};
"""


def measure(text, widths, directory):
  """Returns what a browser makes of a page in windows of these widths, in pixels.

  "needed" is the width that the content takes, "smallest" the width of the smallest image.
  """
  frames = [
    f'<iframe width="{w}" height="900" srcdoc="{html.escape(text)}"></iframe>' for w in widths
  ]
  path = directory / "frames.html"
  path.write_text(f"<style>iframe {{border: 0}}</style>{''.join(frames)}<script>{_SCRIPT}</script>")
  flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom")
  shown = subprocess.run(
    [str(BROWSER), *flags, f"--user-data-dir={directory / 'profile'}", path.as_uri()],
    capture_output=True, text=True, check=True, timeout=120,
  ).stdout  # fmt: skip
  found = re.search(r"<body>(\{.*\})</body>", shown, re.DOTALL)
  assert found, shown[-2000:]
  return {int(width): values for width, values in json.loads(html.unescape(found[1])).items()}


def lacking(drawn, colours):
  """Returns how far the colour, of a sample of them, that a picture lacks the most is from those in it.

  Args:
    drawn: uint8 (n, 3).
    colours: (m, 3), of 0…1.
  """
  drawn = np.unique(drawn, axis=0) / 255
  return max(np.abs(drawn - c).max(1).min() for c in np.unique(colours, axis=0)[::10])
