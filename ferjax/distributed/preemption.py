"""Signals that ask a run to save a checkpoint and stop: SIGTERM and SIGUSR1."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SAME = 5  # seconds; a request may arrive twice: once for the process group, once from a launcher
NOTE = b': saving a checkpoint at the next step, then stopping; a signal after 5 s stops at once\n'


@contextlib.contextmanager
def noticed() -> Iterator[Callable[[], str]]:
  """Within this context, the first signal is only recorded.

  Signals in the next `SAME` seconds are ignored. A later one has its usual effect.

  Yields:
    () -> the name of the recorded signal, '' before it arrives. Outside the main thread it stays
    '', because Python handles signals in the main thread only.
  """
  name, came = '', 0.0

  def note(number, frame):
    nonlocal name, came
    now = time.monotonic()
    if not name:
      name, came = signal.Signals(number).name, now
      with contextlib.suppress(OSError):  # the reader may be gone because of the same signal
        os.write(2, name.encode() + NOTE)  # not by a logger, which may be writing at this moment
    elif now - came >= SAME:
      signal.signal(number, signal.SIG_DFL)
      signal.raise_signal(number)

  usual = {}
  if threading.current_thread() is threading.main_thread():
    usual = {one: signal.signal(one, note) for one in SIGNALS}
  try:
    yield lambda: name
  finally:
    for one, handler in usual.items():
      signal.signal(one, handler)
