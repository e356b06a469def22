"""The output of a run while it trains: metrics, TensorBoard events, progress; and finite checks."""

import contextlib
import datetime
import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from tensorboardX import SummaryWriter

from ferjax.distributed import parallel
from ferjax.runs import history
from ferjax.terminal.progress import terminal_bar

LOGGER = logging.getLogger(__name__)


class NonFiniteError(FloatingPointError):
  """A loss term or a gradient is NaN or infinite. The message names it and the step."""


def check_finite(pending: list[tuple[int, Mapping[str, jax.Array]]]) -> list[tuple[int, dict]]:
  """Fetches the metrics of some steps and checks them in order.

  Args:
    pending: (step, metrics f[]) of each step since the last check.

  Returns:
    The same with floats.

  Raises:
    NonFiniteError: a value is not finite. The message names the first such step and its terms.
  """
  fetched = []
  for step, values in jax.device_get(pending):
    values = {name: float(value) for name, value in values.items()}
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
      listing = ', '.join(f'{name}={values[name]}' for name in bad)
      raise NonFiniteError(
        f'step {step}: {listing}. Training stops; the last checkpoint is still valid. A lower '
        'learning rate, config.optimizer.clip_norm or precision=float32 often helps'
      )
    fetched.append((step, values))
  return fetched


@contextlib.contextmanager
def profiler(workdir: Path, enabled: bool, *, start: int = 0, stop: int = 0):
  """Profiles steps `start` to `stop` - 1 and writes the profile to the run's folder.

  Args:
    workdir: The run's folder; TensorBoard's profiler reads it.
    enabled: Whether this process profiles.
    start: The first step to profile.
    stop: The step after the last; the same as `start` for no profile.

  Yields:
    A function to call with the number of every step before it runs.
  """
  started = False
  with contextlib.ExitStack() as running:

    def before_step(step):
      nonlocal started
      if step >= stop:
        running.close()
      elif enabled and step >= start and not started:
        running.enter_context(jax.profiler.trace(str(workdir / 'profile')))
        started = True

    yield before_step


class Logs:
  """A context manager that writes metrics and shows progress, on the first process only.

  Attributes:
    lines: All lines of metrics.jsonl, including those of this process.
  """

  def __init__(self, workdir: Path, start: int, steps: int, batch: int, enabled: bool):
    self._enabled = enabled
    self._steps, self._batch = steps, batch
    self._time, self._step = time.perf_counter(), start
    self._pending = []  # (step, metrics) of the steps since the last check
    self.lines = []
    if not enabled:
      return
    path = workdir / 'metrics.jsonl'
    self.lines = history.cut_back(path, start)
    self._file = path.open('a', encoding='utf-8')
    self._events = SummaryWriter(str(workdir / 'events'), purge_step=start + 1 if start else None)
    self._bar = terminal_bar()
    if self._bar:
      self._task = self._bar.add_task('step', total=steps, completed=start, note='compiling')

  def __enter__(self):
    if self._enabled and self._bar:
      self._bar.start()
    return self

  def __exit__(self, *exception):
    if self._enabled:
      if self._bar:
        self._bar.stop()
      self._events.close()
      self._file.close()

  def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
    """Stores the metrics f[] of a step, which the devices may still be computing.

    Waits if the host is more than `parallel.UNDER_WAY` steps ahead, so that further batches wait on
    the host and not on the devices.
    """
    self._pending.append((step, metrics))
    jax.block_until_ready(self._pending[max(0, len(self._pending) - parallel.UNDER_WAY)][1])

  def flush(self) -> list[tuple[int, dict]]:
    """(step, metrics) of the steps since the last check, as floats.

    Raises:
      NonFiniteError: see `check_finite`.
    """
    fetched = check_finite(self._pending)
    self._pending = []
    return fetched

  def train(self, step: int, learning_rate: float) -> None:
    """Writes a line for the last training step.

    Raises:
      NonFiniteError: see `check_finite`.
    """
    *_, (_, values) = self.flush()
    speed = {'lr': learning_rate, 'images_per_s': self.speed(step)}
    self.write(step, 'train', {'loss': values['loss'], **values, **speed})

  def speed(self, step: int) -> float | None:
    """Images per second since the clock was last read or restarted; None without a step."""
    now = time.perf_counter()
    images = (step - self._step) * self._batch
    rate = images / max(now - self._time, 1e-9) if images else None
    self._time, self._step = now, step
    return rate

  def restart_clock(self, step: int) -> None:
    """Restarts the clock at a step: the next `speed` leaves out the time before, such as that of
    compiling, evaluation and saving."""
    self._time, self._step = time.perf_counter(), step

  def write(self, step: int, split: str, values: Mapping[str, float | None]) -> None:
    """Writes a line of metrics.jsonl and TensorBoard scalars, and shows them."""
    line = {'step': step, 'split': split, **values}
    self.lines.append(line)
    if not self._enabled:
      return
    self._file.write(json.dumps(line) + '\n')
    self._file.flush()
    for name, value in values.items():
      if value is not None:
        self._events.add_scalar(f'{split}/{name}', np.float64(value), step)
    shown = {'loss': 'loss {:.3f}', 'acc': 'acc {:.3f}', 'images_per_s': '{:.0f} images/s'}
    note = ' '.join(t.format(values[k]) for k, t in shown.items() if values.get(k) is not None)
    if self._bar:
      self._bar.update(self._task, completed=step, note=f'{split} {note}')
      if split != 'train':
        self._bar.console.print(f'step {step}: {split} {note}')
    else:
      eta = ''
      if split == 'train' and values.get('images_per_s'):
        seconds = (self._steps - step) * self._batch / values['images_per_s']
        eta = f' ETA {datetime.timedelta(seconds=round(seconds))}'
      LOGGER.info('step %d/%d %s %s%s', step, self._steps, split, note, eta)
