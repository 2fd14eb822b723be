"""Signals that ask a run to stop."""

import contextlib
import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

from mixer_jax.errors import InputError
from mixer_jax.parallel import processes

GRACE_SECONDS = 2.0  # for the step to end; then a long wait ends at once
_POLL_SECONDS = 0.5


class StoppedError(Exception):
  """All processes have agreed to stop in what would take long."""


class StopSignal:
  """Turns signals into a request to save at the next step; a second one ends at once.

  In one of several processes SIGTERM belongs to JAX's preemption service, which agrees with the
  others on the step; the other signals are passed on to it.
  """

  def __init__(self):
    self.received: int | None = None
    self._end: Callable[[], str] | None = None
    self._ending = False
    self._lock = threading.Lock()
    self._asked, self._agreed = 0, False

  def install(self) -> "StopSignal":
    """Handles the signals (processes.py) from now on."""
    for number in processes.stop_signals():
      if number != signal.SIGTERM or jax.process_count() == 1:
        signal.signal(number, self._handle)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=self._follow, args=(reader,), daemon=True).start()
    return self

  @property
  def status(self) -> int:
    """The exit status after saving: 130 after Ctrl-C, else 143; another process may have met the signal."""
    return 128 + (signal.SIGINT if self.received == signal.SIGINT else signal.SIGTERM)

  def asked(self) -> bool:
    """Returns whether to stop now; the same in all processes, which must call it equally often."""
    if jax.process_count() == 1:
      return self.received is not None
    self._asked += 1
    self._agreed |= multihost_utils.reached_preemption_sync_point(self._asked)
    return self._agreed

  def serve(self) -> None:
    """Raises StoppedError if several processes are asked to stop; to be called as `asked`. One ends by `ending`."""
    if jax.process_count() > 1 and self.asked():
      raise StoppedError

  @contextlib.contextmanager
  def ending(self, end: Callable[[], str]) -> Iterator[None]:
    """Lets a signal end what may take long: a compilation, an evaluation, a wait.

    If the block still runs some seconds after a signal, `end` is called in another thread and the process exits
    with the line that it returns. One of several processes goes on instead, as saving takes all (`serve`).
    """
    if jax.process_count() == 1:
      self._end = end
    try:
      yield
    finally:
      with self._lock:
        self._end = None

  def _handle(self, number: int, frame: FrameType | None) -> None:
    del frame
    if self._ending:
      return
    if self.received is not None:
      _leave(128 + number)
    self.received = number
    # print is not safe here: the signal may have interrupted a print.
    os.write(2, f"{signal.Signals(number).name}: saving, then stopping\n".encode())
    if jax.process_count() > 1:
      signal.raise_signal(signal.SIGTERM)

  def _follow(self, reader: int) -> None:
    """Waits for a signal, which the main thread cannot handle while it is in a compilation, say."""
    number = self.received
    while number is None:
      met = select.select([reader], [], [], _POLL_SECONDS)[0]
      number = os.read(reader, 1)[0] if met else self.received
    while True:
      time.sleep(GRACE_SECONDS)
      with self._lock:
        if self._end is not None:
          if self.received is None:
            self._handle(number, None)
          self._ending = True
          self._exit(self._end)

  def _exit(self, end: Callable[[], str]) -> None:
    try:
      print(end(), flush=True)
    except Exception as e:
      os.write(2, f"error: {e}\n".encode(errors="replace"))
      _leave(2 if isinstance(e, InputError) else 1)
    _leave(self.status)


def _leave(status: int) -> None:
  """Exits at once, and ends loader workers, of which a frozen one would stay."""
  for worker in multiprocessing.active_children():
    worker.kill()
  os._exit(status)
