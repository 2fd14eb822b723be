"""Text from outside, names of classes, files and tensors, made safe to print."""

import unicodedata

_JOINERS = "\u200c\u200d"  # of Persian and Indic words, and of emoji


def is_printable(text: str) -> bool:
  """Returns whether the text is ordinary: no control characters, no changes of direction, no halves of characters."""
  return all(
    c.isprintable() or c in _JOINERS or unicodedata.category(c) == "Zs"  # any kind of space
    for c in text
  )


def printable(text: str) -> str:
  """Returns the text with every character that is not ordinary as its escape sequence, but for breaks and tabs."""
  return "".join(
    c if c in "\n\t" or is_printable(c) else ascii(c)[1:-1]
    for c in text.encode("utf-8", "backslashreplace").decode()
  )
