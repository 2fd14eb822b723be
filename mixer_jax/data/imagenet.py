"""ImageNet's classes in words: the ids of their WordNet synsets ("n01440764"), and the synsets' first lemmas.

The licence of the words is beside them, in imagenet_words.LICENSE.
"""

import functools
import lzma
import pathlib
from collections.abc import Sequence

# A row of the file is an id without its "n", the letters of the class lists that it is in, and a word, with tabs between.
# A list is in the order of the ids, as heads are.
_FILE = pathlib.Path(__file__).with_name("imagenet_words.tsv.xz")
_LISTS = {1000: "k", 21843: "g", 11221: "m"}


@functools.cache
def _rows() -> dict[str, tuple[str, str]]:
  text = lzma.decompress(_FILE.read_bytes()).decode()
  rows = (line.split("\t") for line in text.splitlines())
  return {f"n{number}": (lists, word) for number, lists, word in rows}


def class_ids(num_classes: int) -> list[str]:
  """Returns the ids of ImageNet's classes in the order of a head's outputs.

  Args:
    num_classes: 1000: ImageNet-1k. 21843: the authors' ImageNet-21k. 11221: "ImageNet-21K Pretraining for the
      Masses" (arXiv:2104.10972). Of another number there is no list, and the result is empty.
  """
  letter = _LISTS.get(num_classes)
  return [name for name, (lists, _) in _rows().items() if letter in lists] if letter else []


def in_words(names: Sequence[str]) -> list[str]:
  """Returns the names, of which ids of synsets get their word: "tench (n01440764)"."""
  return [f"{_rows()[name][1]} ({name})" if name in _rows() else name for name in names]
