"""Texts of operations that nobody should write: an InputError when the run is built, or images of the right shape."""

import inspect
import random
import signal

import numpy as np
import pytest

from mixer_jax.data import ops
from mixer_jax.data.preprocess import Preprocess
from mixer_jax.errors import BadRecordError, InputError
from tests import marks
from tests.encoded import encode, smooth

SHAPE = (16, 24, 3)
LIMIT_SECS = 60  # of computing, for all images of a text
VALUES = [
  "0", "1", "2", "3", "8", "16", "20", "24", "40", "1000", "16384", "1e38", "-1", "50", "90", "100", "101", "0.5", "-0.0", "1e-320", "1e-300", "1e-30", "1e-7", "1e30", "1e308",
  "1e999", "-1e999", "2147483648", "1" + "0" * 30, "1" + "0" * 400, "1" + "0" * 5000, "True", "None", "...", "1j", "''", "'exact'", "'fast'", "'pillow'",
  "'even'", "'random'", "'bicubic'", "'lanczos'", "'\\0'", "'é'", "b'x'", "[]", "(1, 2)", "{}", "{[]: 1}", "{1}", "'" + "x" * 99 + "'", "(" * 300 + "1" + ")" * 300,
  "-" * 5000 + "1", "*[1]", "**{'a': 1}", "__import__('os')", "lambda: 1", "1 if 1 else 2", "f'{1}'", "1,", "1 2", "(",
  "'rand-m9-mstd0.5-inc1'", "'rand-m9-n0'", "'rand-m9-mstdinf'", "'rand-m1e999'", "'rand-m-5'", "'rand-n9999'", "'rand-mstd-1'", "'rand-p2'", "'rand-m9-mmax1e9'",
]  # fmt: skip
IMAGES = [
  encode(".png", smooth(20, 30)), encode(".jpg", smooth(61, 47)), encode(".png", smooth(1, 1)), encode(".png", smooth(1, 900)),
  encode(".png", smooth(50, 50)),
]  # fmt: skip


NEEDED = {
  "randaugment": {"num_layers": "2", "magnitude": "15"},
  "timm_randaugment": {"policy": "'rand-m9-mstd0.5-inc1'"},
  "permute_patches": {"patch_size": "8"},
}  # fmt: skip


def parameters(name):
  known = inspect.signature(ops.OPS[name]).parameters
  return [p for p in known if p not in ("image_size", "image_channels")]


def one_wrong():
  """Returns every operation with every value for every argument, the others good, where it can stand."""
  texts = []
  for name in ops.OPS:
    for parameter in parameters(name):
      for value in VALUES:
        given = NEEDED.get(name, {}) | {parameter: value}
        call = f"{name}({', '.join(f'{k}={v}' for k, v in given.items())})"
        last = name.startswith("permute")
        texts.append(
          f"decode|resize(16, 24)|{call}"
          if last
          else call
          if name == "decode"
          else f"decode|{call}|resize(16, 24)"
        )
  return texts


def random_text(rng):
  """Returns a text of one to four operations, each with up to three arguments, some of them named."""
  calls = [
    rng.choice(
      ["decode", "decode", "decode(mode='fast')", "decode(mode='pillow')", _random_call(rng)]
    )
  ]
  calls += [_random_call(rng) for _ in range(rng.choice([0, 1, 1, 2]))]
  return rng.choice(["|", "|", "|", " | ", "||"]).join(calls) + rng.choice(["", "|resize(16, 24)"])


def _random_call(rng):
  name = rng.choice([*ops.OPS])
  given = NEEDED.get(name, {}) | {
    p: rng.choice(VALUES) for p in parameters(name) if rng.random() < 0.4
  }
  arguments = [rng.choice(VALUES) for _ in range(rng.choice([0, 0, 0, 1, 2]))]
  return f"{name}({', '.join([*arguments, *(f'{k}={v}' for k, v in given.items())])})"


def faults_of(text):
  """Yields what happened and should not have."""
  try:
    preprocess = Preprocess(text, SHAPE)
  except InputError:
    return
  except Exception as e:
    yield "built", e
    return
  for i, data in enumerate(IMAGES * 3):
    try:
      preprocess({"image": data, "label": 0}, np.random.default_rng(i))
    except (InputError, BadRecordError):
      continue
    except Exception as e:
      yield "first image", e


def late(*_):
  raise TimeoutError(f"no end after {LIMIT_SECS} s of computing")


@pytest.mark.parametrize(
  ("kind", "count", "seed"),
  [("random", 200, 0), marks.long("random", 10_000, 1), marks.long("one wrong argument", 0, 0)],
)
def test_texts_are_refused_when_built_or_run(kind, count, seed, capsys):
  rng, faults = random.Random(seed), []
  texts = [random_text(rng) for _ in range(count)] if kind == "random" else one_wrong()
  before = signal.signal(signal.SIGPROF, late)
  try:
    for text in texts:
      signal.setitimer(signal.ITIMER_PROF, LIMIT_SECS)
      faults += [(text, when, repr(e)[:200]) for when, e in faults_of(text)]
  finally:
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)
  with capsys.disabled():
    print(f"\noperations, {kind}: {len(texts)} texts, {len(faults)} faults, seed {seed}")
  assert not faults, faults[:10]
