"""Checks that a data set has what a method needs."""

import numpy as np

from ferjax.data import dataset
from ferjax.datasets.features import COLUMNS
from ferjax.errors import InputError


def check_trainable(data: dataset.Dataset, needs: frozenset[str], batch: int) -> None:
  """Checks that a method can train on a data set.

  Args:
    data: The data set.
    needs: Names of the features that the method needs.
    batch: Global batch size.

  Raises:
    InputError: there are no training rows (in one of several sets, if several are joined), a
      feature is missing, a class is empty, or the batch is larger than the training set.
  """
  if 'train' not in data.splits:
    raise InputError(
      f'{data.name} has no training rows (split `train`); '
      'use --mode=eval to evaluate a trained model'
    )
  check_features(data, needs)
  table = data.splits['train'].table
  for number, name in enumerate(data.sets):
    if number not in table['set']:
      raise InputError(
        f'{name} has no training row of a class in use: remove it from config.data.sets, and test '
        'on it with config.eval.sets'
      )
  counts = np.bincount(table['label'], minlength=len(data.classes))
  empty = [name for name, count in zip(data.classes, counts, strict=True) if not count]
  if empty:
    present = tuple(n for n, c in zip(data.classes, counts, strict=True) if c)
    raise InputError(
      f"class '{empty[0]}' has no training row in {data.name}. Add some, or train on the others "
      f'with --config.data.classes="{present}"'
    )
  if batch > len(table['label']):
    raise InputError(
      f'config.batch={batch} is larger than the training set ({len(table["label"])} rows)'
    )


def check_features(data: dataset.Dataset, needs: frozenset[str]) -> None:
  """Checks that every split has the features that a method needs.

  Args:
    data: The data set.
    needs: Names of the features.

  Raises:
    InputError: a split lacks a feature. The message names both, and the columns of a manifest that
      provide the feature.
  """
  for name, split in data.splits.items():
    for feature in sorted(needs - set(split.table)):
      if feature in data.left_out:
        raise InputError(
          f"the method needs '{feature}', which cannot be joined: {data.left_out[feature]}. Leave "
          'one of these sets out, or annotate it with ferjax annotate --data=NAME'
        )
      hint = f' (columns {COLUMNS[feature]})' if feature in COLUMNS else ''
      raise InputError(
        f"the method needs '{feature}', which {data.name} ({name}) does not have. Add it to a "
        f'manifest{hint} and use --config.data.name=manifest --config.data.path=FILE.csv'
      )
