"""The paper's tables as data: the CSV files beside this module. An empty cell was not reported."""

import csv
import functools
from importlib import resources

Row = dict[str, str]
FAMILIES = {"Mixer": "mixer", "ViT": "vit", "BiT": "resnet"}
"""The paper's prefix of a model's name -> models.FAMILIES."""


@functools.cache
def rows(name: str) -> tuple[Row, ...]:
  """Returns the rows of `name`.csv: "table1_architectures", "table3_scale", …"""
  text = (resources.files(__name__) / f"{name}.csv").read_text(encoding="utf-8")
  return tuple(csv.DictReader(text.splitlines()))


def number(text: str) -> float | None:
  """Returns the cell's number. None if it is empty."""
  return float(text) if text else None
