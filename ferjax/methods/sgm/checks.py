"""Checks of SGM's settings, `config.method`, before anything is built."""

from ferjax.errors import InputError, choose

MEANS = ('batch', 'running')


def counts(embedding_width: int, levels: int, level_epochs: int, component_rows: int) -> None:
  """Raises an InputError for a number below 1."""
  for name, value in {
    'embedding_width': embedding_width,
    'levels': levels,
    'level_epochs': level_epochs,
    'component_rows': component_rows,
  }.items():
    if value < 1:
      raise InputError(f'config.method.{name}={value}: at least 1')


def numbers(sigma: float, embedding_gain: float, seed: int) -> None:
  """Raises an InputError for a number out of its range."""
  for name, value in {'sigma': sigma, 'embedding_gain': embedding_gain}.items():
    if value <= 0:
      raise InputError(f'config.method.{name}={value}: it must be above 0')
  if seed < 0:
    raise InputError(f'config.method.seed={seed}: it must not be below 0')


def means(class_means: str, momentum: float, leave_one_out: bool, levels: int) -> None:
  """Raises an InputError for an unknown name, a momentum outside 0..1, or running means together
  with what they do not go with."""
  choose('config.method.class_means', class_means, MEANS)
  if not 0 <= momentum < 1:
    raise InputError(f'config.method.means_momentum={momentum} lies outside 0..1, without 1')
  if class_means == 'running' and leave_one_out:
    raise InputError(
      'a row cannot be left out of running means: set config.method.leave_one_out=False'
    )
  if class_means == 'running' and levels > 1:
    raise InputError(
      'the sub-classes of several levels change, so they have no running means: set '
      'config.method.class_means=batch'
    )
