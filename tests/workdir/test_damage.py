"""Every file of a workdir damaged in every way: resume and evaluation give the right result, or one error that is meant
for the user."""

import contextlib
import faulthandler
import io
import os
import pathlib
import shutil
import signal

import numpy as np
import pytest

from mixer_jax import errors
from mixer_jax.training import loop
from tests import campaign, runs
from tests.configurations import small_config

LIMIT_SECS = 120
KNOWN = (errors.InputError, errors.SaveError)
END, STOPPED = 20, 12


class Hang(BaseException):
  """No end within the limit; nothing that catches errors may take it for one."""


def flip(path, rng, _):
  content = bytearray(path.read_bytes() or b"\0")
  content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  path.write_bytes(content)


def truncate(path, rng, _):
  os.truncate(path, rng.choice([0, rng.randrange(path.stat().st_size + 1)]))


def swap(path, _, other):
  aside = path.with_name("aside")
  path.rename(aside)
  other.rename(path)
  aside.rename(other)


def replace(make):
  def replaced(path, _, other):
    path.unlink()
    make(path, other)

  return replaced


DAMAGES = {
  "a bit": flip,
  "truncation": truncate,
  "swap": swap,
  "link": replace(lambda path, other: path.symlink_to(other)),
  "circular link": replace(lambda path, _: path.symlink_to(path.name)),
  "FIFO": replace(lambda path, _: os.mkfifo(path)),
  "directory": replace(lambda path, _: path.mkdir()),
  "deletion": replace(lambda *_: None),
}


def train(workdir, steps=None):
  loop.train(small_config(), str(workdir), runs.StopAfter(steps) if steps else None)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  """A finished run, and one that stopped at its third checkpoint: their workdirs."""
  whole, half = (tmp_path_factory.mktemp(name) for name in ("whole", "half"))
  train(whole)
  with pytest.raises(SystemExit):
    train(half, STOPPED - 1)
  return whole, half


def outcome(function):
  """Returns (result, None if it failed; output; fault if it ended with a traceback or not at all)."""

  def late(*_):
    raise Hang

  output, before = io.StringIO(), signal.signal(signal.SIGALRM, late)
  faulthandler.dump_traceback_later(2 * LIMIT_SECS, exit=True)  # where no handler gets its turn
  signal.alarm(LIMIT_SECS)
  try:
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
      return function(), output.getvalue(), None
  except KNOWN as e:
    return None, f"{output.getvalue()}error: {e}", None
  except Hang:
    return None, output.getvalue(), f"no end after {LIMIT_SECS} s"
  except Exception as e:
    return None, output.getvalue(), f"traceback: {e!r}"[:400]
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    faulthandler.cancel_dump_traceback_later()


def fault_of_evaluation(workdir, by_step):
  found, output, fault = outcome(lambda: runs.evaluated(workdir=str(workdir), config=None))
  if fault or found is None or found == by_step[STOPPED]:
    return fault
  said = "damaged" in output and found in by_step.values()
  return None if said else f"another result, {found}, after: {output[-300:]}"


def fault_of_resume(workdir, whole):
  done, output, fault = outcome(lambda: train(workdir) or True)
  if fault or not done:
    return fault
  a, b = runs.final_state(workdir, END), runs.final_state(whole, END)
  if a.keys() != b.keys() or not all(np.array_equal(a[k], b[k]) for k in a):
    return f"another state, after: {output[-300:]}"
  same = runs.records(workdir) == runs.records(whole) if "WARNING" not in output else True
  return None if same else f"other records, and no warning: {output[-300:]}"


@pytest.mark.campaign
def test_damage_is_found_or_does_not_matter(undisturbed, tmp_path):
  whole, half = undisturbed
  names = sorted(p.relative_to(half) for p in half.rglob("*") if p.is_file())
  by_step = {
    int(p.name): runs.evaluated(workdir=str(half), config=None, which=p.name)
    for p in (half / "checkpoints").iterdir()
  }
  count, faults = campaign.tries(len(names)), []
  for number in range(count):
    rng, name = campaign.generator(number), names[number % len(names)]
    kind = [*DAMAGES][(number + number // len(names) + campaign.SEED) % len(DAMAGES)]
    other = rng.choice([n for n in names if n != name])
    workdir = pathlib.Path(shutil.copytree(half, tmp_path / "run"))
    DAMAGES[kind](workdir / name, rng, workdir / other)
    for what, fault in (
      ("evaluation", fault_of_evaluation(workdir, by_step)),
      ("resume", fault_of_resume(workdir, whole)),
    ):
      if fault:
        faults.append(f"try {number}: {kind} of {name} (with {other}), {what}: {fault}")
        print(faults[-1], flush=True)
    shutil.rmtree(workdir)
  campaign.report(f"damage of {len(names)} files of a workdir", count, faults)
