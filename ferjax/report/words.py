"""Names of measures and splits, and values of a config, in words."""

from collections.abc import Mapping
from typing import Any

HONEST = (
  '“Best by test” chooses the step on the test set, as in much of the literature: it is too good. '
  '“Last” and “best by validation” did not see the test set.'
)


MEASURES = {
  'acc': 'accuracy',
  'mean_class_acc': 'mean recall of the classes',
  'f1_macro': 'macro F1',
  'loss': 'cross-entropy (nats)',
  'jensen_shannon': 'divergence (nats)',
}


DIVERGENCE = (
  'Divergence: Jensen-Shannon, the mean over the rows from their true or voted distributions.'
)


SHARES = {'acc', 'mean_class_acc', 'f1_macro', 'precision', 'recall', 'f1_of_means'}


def is_share(key: str) -> bool:
  """Whether a measure, such as `recall/fear`, `pose/acc` or `acc@4`, is shown in per cent."""
  parts = key.partition('@')[0].split('/')
  return parts[0] in ('recall', 'acc') or parts[-1] in SHARES


def split_name(name: str) -> str:
  return {'val': 'validation', 'train': 'training rows'}.get(name, name)


def words(value: Any) -> str:
  """A value of a record in words."""
  if isinstance(value, Mapping):
    return ', '.join(f'{key}: {words(item)}' for key, item in value.items())
  if isinstance(value, list | tuple):
    return ', '.join(f'({words(v)})' if isinstance(v, list | tuple) else words(v) for v in value)
  return f'{value:.6g}' if isinstance(value, float) else str(value)


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
  """Those entries of a mapping that are numbers."""
  return {key: value for key, value in values.items() if isinstance(value, int | float)}
