"""Signals that ask a run to save itself and leave: SIGTERM and SIGUSR1."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SAME = 5  # seconds in which further signals say the same: one to the group, one from a launcher
NOTE = b': saves a checkpoint at the next step and leaves; a signal after 5 s ends it at once\n'


@contextlib.contextmanager
def noticed() -> Iterator[Callable[[], str]]:
  """Inside, a first signal is only noted, and one that comes `SAME` seconds after it or later has
  its usual effect; those between are passed over.

  Yields:
    () -> the name of the signal that came, '' before. It stays '' outside the main thread, where
    Python has no signals.
  """
  name, came = '', 0.0

  def note(number, frame):
    nonlocal name, came
    now = time.monotonic()
    if not name:
      name, came = signal.Signals(number).name, now
      with contextlib.suppress(OSError):  # whoever read it may have gone, for the same signal
        os.write(2, name.encode() + NOTE)  # a logger may be writing just now
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
