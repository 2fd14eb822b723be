"""The notebook and the page for other people's training loops do what they say: every block of code, in order."""

import json
import re
import subprocess
import sys

import pytest

from tests import runs


def _blocks(name):
  """Returns the code of a notebook's cells or of a page's Python blocks."""
  text = (runs.ROOT / name).read_text()
  if name.endswith(".md"):
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
  cells = json.loads(text)["cells"]
  return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.campaign
@pytest.mark.parametrize(("name", "count"), [
  ("docs/first_hour.ipynb", 6), ("docs/library.md", 4), ("README.md", 2),
])  # fmt: skip
def test_the_code_of_a_document_runs(name, count):
  blocks = _blocks(name)
  assert len(blocks) == count
  command = [sys.executable, "-c", "\n".join(blocks)]
  done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, timeout=900)
  assert done.returncode == 0, done.stderr[-3000:]
