"""What the random repeats of `make campaign` share: how many tries, from which seed, and what is printed of them.

CAMPAIGN_TRIES and CAMPAIGN_SEED in the environment set both. The same two repeat what happened.
"""

import os
import random

SEED = int(os.environ.get("CAMPAIGN_SEED", "0"))


def tries(default: int) -> int:
  return int(os.environ.get("CAMPAIGN_TRIES", default))


def generator(number: int) -> random.Random:
  """Returns the random numbers of a try, which are those of its number and the seed alone."""
  return random.Random(f"{SEED}/{number}")


def report(what: str, count: int, faults: list[str]) -> None:
  """Prints tries, faults and seed; raises AssertionError if there are faults."""
  listed = "".join(f"\n  {fault}" for fault in faults)
  print(f"\n{what}: {count} tries, {len(faults)} faults, seed {SEED}{listed}", flush=True)
  assert not faults
