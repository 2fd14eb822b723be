"""Data sets in buckets: an unreadable one is an error within a minute.

ArrayRecord reads gs:// itself from 0.8 on (older wheels fail, and other schemes are not known to it). Its
client tries again for a quarter of an hour where the bucket does not answer, which looks like a hang;
so another process looks first, and is given a time.
"""

import subprocess
import sys
import urllib.parse

from mixer_jax.errors import InputError

TIMEOUT_SECS = 60.0
_STAGE = {
  "gs": "gcloud storage rsync --recursive {url} /data/{name}",
  "s3": "aws s3 sync {url} /data/{name}",
}


def check(directory: str, timeout_secs: float = TIMEOUT_SECS) -> None:
  """Raises InputError if a data set's directory is in a bucket that cannot be read from here.

  Reads dataset_info.json and a record, in a process that ends after `timeout_secs`. Does nothing for a
  directory without a scheme.

  Raises:
    InputError: another scheme than gs://, or the bucket did not answer; names the ways out.
  """
  scheme, found, rest = directory.partition("://")
  if not found:
    return
  name = urllib.parse.quote(rest.rstrip("/").partition("/")[2] or rest)
  stage = _STAGE.get(scheme, "your store's tool, from {url} to /data/{name}")
  ways = (
    f"Copy it to a local disk, and give that directory:\n  {stage.format(url=directory, name=name)}\n"
    f"or mount the bucket (gcsfuse --implicit-dirs BUCKET DIR, for gs://), and give the mount's."
  )
  if scheme != "gs":
    raise InputError(f"{directory}: data sets are not read from {scheme}://. {ways}")
  command = [sys.executable, "-m", "mixer_jax.data.buckets", directory]
  try:
    probe = subprocess.run(command, timeout=timeout_secs, capture_output=True, text=True)  # noqa: S603
  except subprocess.TimeoutExpired as e:
    raise InputError(f"{directory} did not answer within {timeout_secs:.0f} s. {ways}") from e
  if probe.returncode:
    reason = (probe.stderr.strip().splitlines() or [f"exit status {probe.returncode}"])[-1]
    raise InputError(f"{directory} cannot be read: {reason[:500]}. {ways}")


def _probe(directory: str) -> None:
  """Reads the description, and a record of the first shard that it names."""
  from array_record.python import array_record_module

  from mixer_jax.data import builders

  builder = builders.from_directory(directory)
  split = next(iter(builder.info.splits.values()))
  array_record_module.ArrayRecordReader(str(split.filepaths[0])).read([0])


if __name__ == "__main__":
  _probe(sys.argv[1])
