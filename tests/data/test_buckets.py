"""Data sets in buckets: never a hang, and a message that says what to do."""

import subprocess
import sys

import pytest

from mixer_jax.data import buckets
from mixer_jax.errors import InputError
from tests.tools.preparation import preparation_sets as sets


def test_other_schemes_are_refused_with_a_way_out():
  with pytest.raises(InputError, match=r"aws s3 sync s3://b/mine/1\.0\.0 /data"):
    buckets.check("s3://b/mine/1.0.0")


def answer_with(monkeypatch, code):
  run = subprocess.run
  monkeypatch.setattr(
    buckets.subprocess, "run", lambda _, **options: run([sys.executable, "-c", code], **options)
  )


def test_directories_and_buckets_that_answer_pass(monkeypatch):
  buckets.check("/data/mine/1.0.0")
  answer_with(monkeypatch, "")
  buckets.check("gs://bucket/mine/1.0.0")


@pytest.mark.parametrize(
  ("code", "message"),
  [
    ("import time; time.sleep(600)", "did not answer within 1 s"),
    ("raise PermissionError('403 Forbidden')", "PermissionError: 403"),
  ],
)
def test_a_bucket_that_cannot_be_read(monkeypatch, code, message):
  answer_with(monkeypatch, code)
  with pytest.raises(InputError, match=rf"(?s){message}.*gcloud storage rsync.*gcsfuse"):
    buckets.check("gs://bucket/mine/1.0.0", timeout_secs=1)


def test_the_probe_reads_a_record(tmp_path):
  sets.folder(tmp_path / "in", {"a": 2})
  directory = sets.prepare(sets.plan(tmp_path / "in"), tmp_path / "out").directory
  buckets._probe(str(directory))
  for shard in directory.glob("*array_record*"):
    shard.unlink()
  with pytest.raises(RuntimeError, match="No such file"):
    buckets._probe(str(directory))
