"""How far a job is: a bar on a terminal, and a plain line now and then in a pipe or a log file."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator

import rich.progress
from rich.console import Console

LOGGER = logging.getLogger(__name__)

REDRAW = 0.1  # seconds between two looks of a bar
SECONDS, SHARE = 30.0, 0.1  # a line of a log follows the last one after both


def terminal_bar() -> rich.progress.Progress | None:
  """An empty bar for standard error; None where that is not a terminal.

  Its tasks have the field `note`, a text to the right of the bar.
  """
  if sys.stderr is None or not sys.stderr.isatty():
    return None
  console = Console(stderr=True)
  if console.is_dumb_terminal:
    return None
  return rich.progress.Progress(
    rich.progress.TextColumn('{task.description}'),
    rich.progress.MofNCompleteColumn(),
    rich.progress.BarColumn(),
    rich.progress.TextColumn('{task.fields[note]}'),
    rich.progress.TextColumn('ETA'),
    rich.progress.TimeRemainingColumn(),
    console=console,
    redirect_stdout=False,
  )


class Progress:
  """Counts the finished parts of a job; a context manager.

  Off a terminal, a job of less than 30 seconds writes nothing, a longer one a line of the log at
  most every 30 seconds and every 10 %, and one at its end.

  Attributes:
    total: Parts of the job; None when unknown. It may change.
    done: Parts that are finished.
  """

  def __init__(self, title: str, total: int | None, unit: str = 'pictures', done: int = 0):
    self.total, self.done = total, done
    self._title, self._unit = title, unit
    self._first = self._reported = done
    self._start = self._time = time.monotonic()
    self._bar = terminal_bar()
    if self._bar:
      self._task = self._bar.add_task(title, total=total, completed=done, note=unit)

  def __enter__(self):
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, *exception):
    if self._bar:
      self._draw()
      self._bar.stop()
    elif self._reported > self._first and exception[0] is None:
      seconds = time.monotonic() - self._start
      LOGGER.info('%s: %d %s in %.0f s', self._title, self.done, self._unit, seconds)

  def update(self, count: int = 1) -> None:
    """Counts finished parts."""
    self.done += count
    now = time.monotonic()
    if self._bar:
      if now - self._time >= REDRAW:
        self._time = now
        self._draw()
    elif now - self._time >= SECONDS and self.done - self._reported >= SHARE * (self.total or 0):
      self._time, self._reported = now, self.done
      self._write(now)

  def _draw(self) -> None:
    self._bar.update(self._task, completed=self.done, total=self.total)

  def _write(self, now: float) -> None:
    if self.total:
      left = (now - self._start) / (self.done - self._first) * max(self.total - self.done, 0)
      share = 100 * self.done / self.total
      text = f'{self.done} of {self.total} {self._unit} ({share:.0f} %), {left:.0f} s left'
    else:
      text = f'{self.done} {self._unit}'
    LOGGER.info('%s: %s', self._title, text)


def track(
  items: Iterable, title: str, total: int | None = None, unit: str = 'pictures'
) -> Iterator:
  """The items, counted as they are used.

  Args:
    items: What the job goes through.
    title: What the job does, such as `Checking jaffe`.
    total: Number of items; that of a collection when not given.
    unit: What an item is, in the plural.
  """
  if total is None and hasattr(items, '__len__'):
    total = len(items)
  with Progress(title, total, unit) as progress:
    for item in items:
      yield item
      progress.update()
