"""Decides whether a run has stopped improving, only from the lines of its metrics.jsonl."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ferjax.errors import InputError, choose

Lines = Iterable[Mapping[str, Any]]


def make(
  every: int,
  *,
  metric: str = 'val/loss',
  mode: str = 'min',
  patience: int = 0,
  min_delta: float = 0.0,
) -> Callable[[Lines], bool]:
  """Makes the stopping rule of the config section `early_stop`.

  The value of an evaluation is the one in its line. For a metric of training, it is the mean over
  the lines since the previous evaluation. An evaluation is better if it is below (with `max`,
  above) the best one by more than `min_delta`. A run stops when the last `patience` evaluations
  were not better.

  Args:
    every: Steps between evaluations.
    metric: `<split>/<name>` of metrics.jsonl, such as `val/loss`, `val/acc` or `train/loss`.
    mode: `min` if lower values are better, `max` if higher values are better.
    patience: Number of evaluations that are not better before the run stops; 0 to never stop.
    min_delta: The least improvement that counts as better.

  Returns:
    (lines) -> whether to stop after the last line. It raises InputError if no line has the metric.

  Raises:
    InputError: a name is unknown, or a number is out of range.
  """
  split, _, name = metric.partition('/')
  choose('config.early_stop.mode', mode, ('min', 'max'))
  if not name:
    raise InputError(f"config.early_stop.metric is '{metric}': give SPLIT/NAME, such as val/loss")
  if patience < 0 or min_delta < 0:
    raise InputError(
      f'config.early_stop: patience={patience} and min_delta={min_delta} must be at least 0'
    )
  sign = 1 if mode == 'min' else -1

  def stops(lines):
    if not patience:
      return False
    values = {}
    for line in lines:
      if line['split'] == split and line.get(name) is not None:
        values.setdefault(-(-line['step'] // every), []).append(line[name])
    if not values and any(line['split'] == split for line in lines):
      raise InputError(f'config.early_stop.metric={metric}: metrics.jsonl has no such number')
    if not values and split != 'train':
      raise InputError(f'config.early_stop.metric={metric}: there is no evaluation of {split}')
    best, since = np.inf, 0
    for _, found in sorted(values.items()):
      value = sign * np.mean(found)
      better = value < best - min_delta
      best, since = (value, 0) if better else (best, since + 1)
    return since >= patience

  return stops
