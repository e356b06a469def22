"""Signals that ask a run to save itself and leave: SIGTERM and SIGUSR1."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
NOTE = b': saves a checkpoint at the next step and leaves; a second signal ends it at once\n'


@contextlib.contextmanager
def noticed() -> Iterator[Callable[[], str]]:
  """Inside, a first signal is only noted, and a second one has its usual effect.

  Yields:
    () -> the name of the signal that came, '' before. It stays '' outside the main thread, where
    Python has no signals.
  """
  found = []

  def note(number, frame):
    found.append(signal.Signals(number).name)
    for one in SIGNALS:
      signal.signal(one, signal.SIG_DFL)
    os.write(2, found[0].encode() + NOTE)  # a logger may be writing just now

  usual = {}
  if threading.current_thread() is threading.main_thread():
    usual = {one: signal.signal(one, note) for one in SIGNALS}
  try:
    yield lambda: found[0] if found else ''
  finally:
    for one, handler in usual.items():
      signal.signal(one, handler)
