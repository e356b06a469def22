"""Checks of SGM's settings, `config.method`, before anything is built."""

from ferjax.errors import InputError


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
