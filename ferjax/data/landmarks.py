"""Landmarks of unlike schemes: the points that they have in common."""

import logging
from collections.abc import Sequence

import numpy as np

from ferjax import labels
from ferjax.data import dataset
from ferjax.errors import InputError

LOGGER = logging.getLogger(__name__)

Points = tuple[str, tuple[int, ...] | None]  # a scheme, and the indices of its points


def of(data: dataset.Dataset) -> Points:
  """The scheme and the indices of the landmarks of a data set."""
  return data.landmark_scheme, data.landmark_indices


def described(data: dataset.Dataset) -> str:
  """The scheme and the number of the landmarks of a data set, such as `ibug68 (68 points)`."""
  tables = [split.table for split in data.splits.values() if 'landmarks' in split.table]
  count = tables[0]['landmarks'].shape[1] if tables else 0
  return f'{data.landmark_scheme or "unknown scheme"} ({count} points)'


def common(found: Sequence[Points]) -> Points | None:
  """The most points that all of several landmarks have or give; None if there are none.

  Args:
    found: Scheme and indices of each.
  """
  best = None
  for scheme in labels.SCHEMES:
    available = [set(_columns(one, scheme)) for one in found]
    points = tuple(sorted(set.intersection(*available)))
    if points and (best is None or len(points) > len(best[1])):
      best = scheme, points
  return best


def convert(points: np.ndarray, have: Points, wanted: Points) -> np.ndarray | None:
  """Landmarks f[n, k, 2] of one scheme as those f[n, m, 2] of another; see `labels.points_of`.

  Args:
    points: The landmarks.
    have: Their scheme and indices.
    wanted: Those of the result.

  Returns:
    The landmarks; None if a point does not come from those that are there.
  """
  scheme, indices = wanted
  columns = _columns(have, scheme)
  if indices is None or not set(indices) <= set(columns):
    return None
  return np.stack([points[:, list(columns[i])].mean(1) for i in indices], 1)


def with_points(data: dataset.Dataset, wanted: Points) -> dataset.Dataset | None:
  """The data set with other landmarks, which come from its own; None if they do not."""
  if of(data) == wanted:
    return data
  splits = {}
  for name, split in data.splits.items():
    table = dict(split.table)
    if 'landmarks' in table:
      points = convert(table['landmarks'], of(data), wanted)
      if points is None:
        return None
      table['landmarks'] = points
    splits[name] = split._replace(table=table)
  scheme, indices = wanted
  return data._replace(splits=splits, landmark_scheme=scheme, landmark_indices=indices)


def select(data: dataset.Dataset, indices: Sequence[int]) -> dataset.Dataset:
  """The data set with some of its landmarks.

  Args:
    data: The data set.
    indices: Numbers of points in its scheme.

  Raises:
    InputError: it lacks one of these points.
  """
  splits = {}
  for name, split in data.splits.items():
    table = dict(split.table)
    if 'landmarks' in table:
      own = list(data.landmark_indices or range(table['landmarks'].shape[1]))
      missing = sorted(set(indices) - set(own))
      if missing:
        raise InputError(
          f'config.data.landmarks asks for point {missing[0]}; {data.name} has {described(data)}, '
          f'numbers {own[0]} to {own[-1]}'
        )
      table['landmarks'] = table['landmarks'][:, [own.index(i) for i in indices]]
    splits[name] = split._replace(table=table)
  known = data.landmark_indices is not None
  return data._replace(splits=splits, landmark_indices=tuple(indices) if known else None)


def like(data: dataset.Dataset, wanted: Points, count: int, name: str) -> dataset.Dataset:
  """The data set with the landmarks of another one. They are left out, with a warning, if they do
  not come from its own.

  Args:
    data: The data set.
    wanted: Scheme and indices of the landmarks.
    count: Their number; 0 keeps the landmarks as they are.
    name: Whose landmarks these are, for messages.
  """
  tables = [split.table for split in data.splits.values() if 'landmarks' in split.table]
  if not count or not tables:
    return data
  fitted = with_points(data, wanted)
  if fitted and all(
    s.table['landmarks'].shape[1] == count for s in fitted.splits.values() if 'landmarks' in s.table
  ):
    return fitted
  theirs = f'{wanted[0] or "unknown scheme"} ({count} points)'
  reason = f'{data.name} has {described(data)}, and {name} {theirs}'
  LOGGER.warning('landmarks left out, without the points in common: %s', reason)
  splits = {
    name: split._replace(table={k: v for k, v in split.table.items() if k != 'landmarks'})
    for name, split in data.splits.items()
  }
  return data._replace(splits=splits, left_out={**data.left_out, 'landmarks': reason})


def _columns(have: Points, scheme: str) -> dict[int, tuple[int, ...]]:
  """{point of `scheme`: columns of the landmarks of which it is the mean}."""
  own, indices = have
  groups = labels.points_of(scheme, own)
  if groups is None or indices is None:
    return {}
  place = {point: column for column, point in enumerate(indices)}
  return {
    number: tuple(place[point] for point in group)
    for number, group in enumerate(groups)
    if all(point in place for point in group)
  }
