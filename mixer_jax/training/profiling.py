"""A trace of a few steps, for TensorBoard's profile plugin (XProf) and Perfetto."""

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath


class StepProfiler:
  """Traces steps `first_step` to `first_step + num_steps − 1` into `workdir/plugins/profile`."""

  def __init__(self, workdir: epath.Path, *, first_step: int | None, num_steps: int):
    """Traces on process 0; nothing if `first_step` is None."""
    self._workdir = workdir
    traced = first_step is not None and jax.process_index() == 0
    self._first = first_step if traced else None
    self._last = None if self._first is None else self._first + num_steps - 1
    self._local: str | None = None  # where the profiler writes, while it does

  def missed(self, start_step: int) -> str | None:
    """Returns what to tell the user if the step after `start_step` is too late for the trace."""
    if self._first is None or self._first > start_step:
      return None
    return (
      f"profile.first_step={self._first} was taken before: nothing is traced. The next step is "
      f"{start_step + 1}."
    )

  @contextlib.contextmanager
  def step(self, step: int) -> Iterator[None]:
    """Names the step in the trace; the trace begins before the first one that is traced."""
    if step == self._first:
      self._local = tempfile.mkdtemp()
      jax.profiler.start_trace(self._local)
    with jax.profiler.StepTraceAnnotation("train", step_num=step):
      yield

  def finish(self, step: int, results: Any) -> str | None:
    """Ends the trace after the last step that is traced, whose results it waits for; returns what to tell the user then."""
    if step != self._last or self._local is None:
      return None
    jax.block_until_ready(results)
    jax.profiler.stop_trace()
    for path in pathlib.Path(self._local).rglob("*"):
      if path.is_file():
        target = self._workdir / path.relative_to(self._local)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    shutil.rmtree(self._local)
    self._local = None
    return f"traced steps {self._first} to {step} into {self._workdir / 'plugins' / 'profile'}"
