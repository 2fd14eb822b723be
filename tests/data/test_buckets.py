"""Data sets in buckets: never a hang, and a message that says what to do."""

import subprocess
import sys

import pytest

from mixer_jax.data import buckets
from mixer_jax.errors import InputError
from tests.tools.preparation import preparation_sets as sets


def test_local_directories_pass():
  buckets.check("/data/mine/1.0.0")
  buckets.check("~/mine")


def test_other_schemes_are_refused_with_a_way_out():
  with pytest.raises(
    InputError, match=r"(?s)not read from s3://.*aws s3 sync s3://b/mine/1.0.0 /data"
  ):
    buckets.check("s3://b/mine/1.0.0")


def answer_with(monkeypatch, code):
  run = subprocess.run

  def other(_, **options):
    return run([sys.executable, "-c", code], **options)

  monkeypatch.setattr(buckets.subprocess, "run", other)


def test_a_bucket_that_does_not_answer(monkeypatch):
  answer_with(monkeypatch, "import time; time.sleep(600)")
  with pytest.raises(
    InputError, match=r"(?s)did not answer within 0 s.*gcloud storage rsync.*gcsfuse"
  ):
    buckets.check("gs://bucket/mine/1.0.0", timeout_secs=0.3)


def test_a_bucket_that_says_no(monkeypatch):
  answer_with(monkeypatch, "raise PermissionError('403 Forbidden')")
  with pytest.raises(InputError, match=r"(?s)cannot be read: PermissionError: 403.*rsync"):
    buckets.check("gs://bucket/mine/1.0.0")


def test_a_bucket_that_answers(monkeypatch):
  answer_with(monkeypatch, "")
  buckets.check("gs://bucket/mine/1.0.0")


def test_the_probe_reads_a_record(tmp_path):
  sets.folder(tmp_path / "in", {"a": 2})
  directory = sets.prepare(sets.plan(tmp_path / "in"), tmp_path / "out").directory
  buckets._probe(str(directory))
  for shard in directory.glob("*array_record*"):
    shard.unlink()
  with pytest.raises(RuntimeError, match="No such file"):
    buckets._probe(str(directory))
