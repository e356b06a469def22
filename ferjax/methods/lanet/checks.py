"""Checks of LA-Net's settings, `config.method`, before anything is built."""

from ferjax.errors import InputError, choose
from ferjax.methods.lanet.estimation import STOPS
from ferjax.methods.lanet.networks import HEADS

KEY_VIEWS = ('same', 'other')


def names(landmark_head: str, stop_gradient: str, key_view: str) -> None:
  """Raises an InputError for a name that does not exist; it suggests the nearest."""
  choose('config.method.landmark_head', landmark_head, HEADS)
  choose('config.method.stop_gradient', stop_gradient, STOPS)
  choose('config.method.key_view', key_view, KEY_VIEWS)


def numbers(
  neighbours: int,
  decay: float,
  threshold: float,
  temperature: float,
  momentum: float,
  queue_size: int,
) -> None:
  """Raises an InputError for a number out of its range."""
  for name, value in {'decay': decay, 'threshold': threshold, 'momentum': momentum}.items():
    if not 0 <= value <= 1:
      raise InputError(f'config.method.{name}={value} lies outside 0..1')
  for name, value in {'neighbours': neighbours, 'queue_size': queue_size}.items():
    if value < 1:
      raise InputError(f'config.method.{name}={value}: at least 1')
  if temperature <= 0:
    raise InputError(f'config.method.temperature={temperature}: it must be above 0')


def switches(
  label_distribution: bool, landmarks: bool, contrastive: bool, pseudo_labels: bool
) -> None:
  """Raises an InputError for a part of the method that is on without the part that it needs."""
  if landmarks and not label_distribution:
    raise InputError(
      'landmarks help to estimate label distributions: set '
      'config.method.label_distribution=True or config.method.landmarks=False'
    )
  if contrastive and pseudo_labels and not label_distribution:
    raise InputError(
      'pseudo-labels come from label distributions: set config.method.label_distribution=True or '
      'config.method.pseudo_labels=False'
    )
