"""What is only shown never ends a run: names from anywhere, terminals of any kind, a notebook's surroundings."""

import io
import os
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest
from absl import flags

from mixer_jax import printing
from mixer_jax.evaluators import confusion
from mixer_jax.figures import curves
from mixer_jax.tools import command
from tests import tfds_sets

FORMULAS = ["$5 and $6", "$\\frac{", "a_b^c", "é"]


def run(main):
  """Runs a command's main as the command does, without absl."""
  flags.FLAGS.mark_as_parsed()
  with mock.patch.object(command.app, "run", lambda guarded, **_: guarded([])):
    command.run(main)


@pytest.mark.parametrize(
  ("text", "shown"),
  [
    ("naïve 猫\u00a0\u3000", "naïve 猫\u00a0\u3000"),
    ("می\u200cخواهم 👩\u200d👧", "می\u200cخواهم 👩\u200d👧"),
    ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
    ("safe\u202egnp.exe", "safe\\u202egnp.exe"),
    ("half \udcff", "half \\udcff"),
  ],
)
def test_ordinary_text_is_shown_and_codes_are_escaped(text, shown):
  assert printing.printable(text) == shown
  assert printing.is_printable(text) == (text == shown)


def test_names_are_no_formulas():
  source = tfds_sets.Numbered(4)
  source.class_names = FORMULAS
  classes = np.arange(4)
  rows = {"top1": classes % 2, "index": classes, "prediction": classes, "label": classes[::-1]}
  figure = curves.predictions(curves.samples(source, rows, 3), FORMULAS[0])
  figure.savefig(io.BytesIO(), format="png")
  counted = confusion.count(rows | {"mask": classes}, 4, FORMULAS)
  confusion.figure(counted).savefig(io.BytesIO(), format="png")


def test_a_notebooks_backend_is_not_asked_for():
  code = "from mixer_jax import figures; figures.empty(1, 1).savefig('/dev/null', format='png')"
  environment = {**os.environ, "MPLBACKEND": "module://no_notebook_here"}
  subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_a_terminal_without_a_character_shows_its_number(monkeypatch):
  shown = io.BytesIO()
  monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii", write_through=True))
  run(lambda _: print("2 × cpu"))
  assert shown.getvalue() == b"2 \\xd7 cpu\n"


@pytest.mark.parametrize(
  ("error", "status", "words"),
  [
    (MemoryError(), 1, "out of memory: of the host. Lower config.batch_size"),
    (RuntimeError("RESOURCE_EXHAUSTED: 9 GiB\nmore"), 1, "out of memory: RESOURCE_EXHAUSTED: 9 GiB. Lower"),
    (RuntimeError("Unable to initialize backend 'cuda': none"), 2, "JAX finds no device for JAX_PLATFORMS"),
    (AssertionError(), 2, "no device for JAX_PLATFORMS='cuda': its plugin is not installed"),
    (KeyboardInterrupt(), 130, "interrupted"),
  ],
)  # fmt: skip
def test_the_runtimes_errors_are_a_sentence(monkeypatch, capsys, error, status, words):
  class Exited(BaseException):
    pass

  def exited(number):
    raise Exited(number)

  def fail(argv):
    raise error

  def without_backend():
    raise AssertionError

  monkeypatch.setattr(os, "_exit", exited)
  monkeypatch.setattr(jax, "devices", without_backend)
  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  with pytest.raises((Exited, SystemExit)) as e:
    run(fail)
  assert e.value.args == (status,)
  assert words in capsys.readouterr().err
