"""Collectives and repeated loops of a compiled program, read from its text (HLO).

The compiler's cost analysis counts a loop's body once and lists no collectives.
"""

import collections
import dataclasses
import math
import re

COLLECTIVES = (
  "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
  "collective-broadcast",
)  # fmt: skip
# Operations that move nothing themselves.
_FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call",
  "after-all", "opt-barrier",
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^{}]*\})?")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([^\s=]+) = (.*)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.-]+)")
_BODY = re.compile(r"\bbody=%?([\w.-]+)")
# The TPU compiler makes a reduce-scatter of a computation of this name around an all-reduce.
_TPU_REDUCE_SCATTER = "all-reduce-scatter"
_NOT_HBM = re.compile(r"S\([1-9]\d*\)")  # memory spaces other than 0: on-chip


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line: its result's type, its operation, the text in its brackets, and what follows."""

  type: str
  operation: str
  arguments: str
  attributes: str

  @property
  def operands(self) -> list[str]:
    return re.findall(r"%([^\s,()]+)", self.arguments)


@dataclasses.dataclass(frozen=True)
class Module:
  """A compiled program: computation's name → instruction's name → instruction."""

  computations: dict[str, dict[str, Instruction]]
  entry: str


@dataclasses.dataclass(frozen=True)
class Collective:
  """The collectives of one kind in one execution of the program on one device.

  Attributes:
    kind: "all-reduce", …
    count: how many are executed.
    bytes: size of the whole arrays that are gathered, summed or moved, over all of them.
  """

  kind: str
  count: int
  bytes: int


def parse(text: str) -> Module:
  """Parses the text of a compiled module."""
  computations: dict[str, dict[str, Instruction]] = {}
  entry, current = "", {}
  for line in text.splitlines():
    if line.endswith("{") and line.startswith(("%", "ENTRY")):
      name = line.removeprefix("ENTRY ").split(maxsplit=1)[0].lstrip("%")
      entry = name if line.startswith("ENTRY") else entry
      current = computations.setdefault(name, {})
    elif match := _INSTRUCTION.match(line):
      current[match[1]] = _instruction(match[2])
  return Module(computations, entry)


def _instruction(text: str) -> Instruction:
  type_end = _closing(text, 0) if text.startswith("(") else text.index(" ")
  begin = text.index("(", type_end)
  end = _closing(text, begin)
  return Instruction(
    text[:type_end], text[type_end:begin].strip(), text[begin + 1 : end - 1], text[end:]
  )


def _closing(text: str, begin: int) -> int:
  """Returns the position after the bracket that closes the one at `begin`."""
  depth = 0
  for i in range(begin, len(text)):
    depth += {"(": 1, ")": -1}.get(text[i], 0)
    if depth == 0:
      return i + 1
  return len(text)


def type_bytes(text: str, *, hbm_only: bool = False) -> int:
  """Returns the bytes of a type's arrays, "(f32[2,3]{1,0}, s32[])", without padding of tiles."""
  total = 0
  for kind, dimensions, layout in _ARRAY.findall(text):
    if hbm_only and _NOT_HBM.search(layout):
      continue
    digits = re.search(r"\d+", kind)
    bits = 8 if kind == "pred" else int(digits.group()) if digits else 0
    total += math.prod(int(n) for n in dimensions.split(",") if n) * bits // 8
  return total


def executions(module: Module) -> dict[str, int]:
  """Returns how often each computation runs; a loop whose length is not in the text counts as one."""
  counts: collections.Counter[str] = collections.Counter()

  def visit(name: str, times: int) -> None:
    counts[name] += times
    for instruction in module.computations.get(name, {}).values():
      inner = times * _trip_count(module, instruction)
      for called in _CALLED.findall(instruction.attributes):
        visit(called, inner)

  visit(module.entry, 1)
  return dict(counts)


def _trip_count(module: Module, instruction: Instruction) -> int:
  """Returns how often a loop runs that counts up to a constant, 1 for everything else."""
  if instruction.operation != "while":
    return 1
  if known := re.search(r'known_trip_count":\{"n":"(\d+)"', instruction.attributes):
    return int(known[1])
  condition = re.search(r"condition=%?([\w.-]+)", instruction.attributes)
  lines = module.computations.get(condition[1], {}) if condition else {}
  for line in lines.values():
    if line.operation == "compare" and "direction=LT" in line.attributes:
      limits = [lines[o].arguments for o in line.operands if o in lines]
      return next((int(text) for text in limits if text.isdecimal()), 1)
  return 1


def collectives(module: Module) -> list[Collective]:
  """Returns what the program exchanges between devices in one execution, by kind."""
  counts: collections.Counter[str] = collections.Counter()
  sizes: collections.Counter[str] = collections.Counter()
  for name, times in executions(module).items():
    lines = module.computations.get(name, {})
    for line in lines.values():
      kind = line.operation.removesuffix("-done")
      if kind == "all-reduce" and name.startswith(_TPU_REDUCE_SCATTER):
        kind = "reduce-scatter"
      if kind in COLLECTIVES:
        counts[kind] += times
        sizes[kind] += times * _moved(line, lines)
  return [Collective(kind, counts[kind], sizes[kind]) for kind in COLLECTIVES if counts[kind]]


def _moved(line: Instruction, lines: dict[str, Instruction]) -> int:
  """Returns the bytes of the whole array: the larger of what goes in and what comes out."""
  inputs = line.operands
  if line.operation.endswith("-done"):  # the pair's first half has the operands
    inputs = [o for start in inputs if start in lines for o in lines[start].operands]
  given = sum(type_bytes(lines[o].type) for o in inputs if o in lines)
  return max(given, type_bytes(line.type))


def uncounted_loop_bytes(module: Module) -> int:
  """Returns the bytes that loops move to and from HBM in the iterations after their first.

  An operation moves its operands and its result; those in on-chip memory do not count.
  """
  bodies = _loop_bodies(module)
  return sum(
    (times - 1) * _hbm_bytes(module.computations[name])
    for name, times in executions(module).items()
    if times > 1 and name in bodies
  )


def _loop_bodies(module: Module) -> set[str]:
  return {
    match[1]
    for lines in module.computations.values()
    for line in lines.values()
    if (match := _BODY.search(line.attributes))
  }


def _hbm_bytes(computation: dict[str, Instruction]) -> int:
  sizes = {name: type_bytes(line.type, hbm_only=True) for name, line in computation.items()}
  return sum(
    sizes[name] + sum(sizes.get(o, 0) for o in line.operands)
    for name, line in computation.items()
    if line.operation not in _FREE
  )
