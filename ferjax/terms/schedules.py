"""Weights of the terms of a loss that change with the step; the curves are those of optax.

Each function here is a `schedule` of `config.weights` and `config.terms`:
  --config.weights="{'pose': {'schedule': 'linear', 'start': 0.0, 'end': 0.1, 'epochs': 2}}"
The weight is `start` until epoch `begin`, and `end` from `epochs` later on.
"""

import optax

from ferjax.errors import InputError


def constant(steps_per_epoch: int, *, value: float = 1.0) -> optax.Schedule:
  """Always `value`."""
  return optax.constant_schedule(value)


def linear(
  steps_per_epoch: int,
  *,
  start: float = 0.0,
  end: float = 1.0,
  epochs: float = 1.0,
  begin: float = 0.0,
) -> optax.Schedule:
  """A straight line."""
  return polynomial(steps_per_epoch, start=start, end=end, epochs=epochs, begin=begin, power=1.0)


def polynomial(
  steps_per_epoch: int,
  *,
  start: float = 0.0,
  end: float = 1.0,
  epochs: float = 1.0,
  begin: float = 0.0,
  power: float = 2.0,
) -> optax.Schedule:
  """end + (start - end) (1 - t)^power, where t goes from 0 to 1."""
  steps, first = _steps(steps_per_epoch, epochs, begin)
  return optax.polynomial_schedule(start, end, power, steps, first)


def cosine(
  steps_per_epoch: int,
  *,
  start: float = 0.0,
  end: float = 1.0,
  epochs: float = 1.0,
  begin: float = 0.0,
) -> optax.Schedule:
  """Half a cosine."""
  steps, first = _steps(steps_per_epoch, epochs, begin)
  falling = optax.cosine_decay_schedule(1.0, steps)
  moved = optax.join_schedules([optax.constant_schedule(1.0), falling], [first])
  return lambda step: end + (start - end) * moved(step)


def exponential(
  steps_per_epoch: int,
  *,
  start: float = 1.0,
  end: float = 0.01,
  epochs: float = 1.0,
  begin: float = 0.0,
) -> optax.Schedule:
  """start (end / start)^t, where t goes from 0 to 1.

  Raises:
    InputError: `start` or `end` is not above 0.
  """
  if start <= 0 or end <= 0:
    raise InputError(f'an exponential schedule goes between numbers above 0, not {start} and {end}')
  steps, first = _steps(steps_per_epoch, epochs, begin)
  if start == end:
    return optax.constant_schedule(start)
  return optax.exponential_decay(start, steps, end / start, first, end_value=end)


def step(
  steps_per_epoch: int, *, start: float = 0.0, end: float = 1.0, begin: float = 1.0
) -> optax.Schedule:
  """`start` before epoch `begin`, then `end`."""
  _, first = _steps(steps_per_epoch, 1.0, begin)
  return optax.join_schedules([optax.constant_schedule(v) for v in (start, end)], [first])


def _steps(steps_per_epoch, epochs, begin):
  if epochs <= 0 or begin < 0:
    raise InputError(
      f'a schedule has epochs={epochs}, which must be above 0, and begin={begin}, which must not '
      'be below 0'
    )
  return max(1, round(epochs * steps_per_epoch)), round(begin * steps_per_epoch)


Weight = float | optax.Schedule
