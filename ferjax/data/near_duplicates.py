"""Near duplicates: pictures of different splits whose perceptual hashes differ in few bits."""

import csv
import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ferjax import files
from ferjax.data import dataset
from ferjax.data.splits import Split, take
from ferjax.errors import InputError
from ferjax.images.perceptual_hash import BITS, mirrored_hashes
from ferjax.terminal import progress

LOGGER = logging.getLogger(__name__)

DISTANCE = 40  # bits of 256; the table in docs/guides/data-sets.md shows what it finds
BLOCK = 64  # pictures that are looked up at a time; of all their copies one is kept
HEADER = ('split', 'name', 'label', 'other_split', 'other_name', 'other_label')


class Nearest(NamedTuple):
  """The most similar picture of another split for each of some pictures.

  Attributes:
    row: i64[m], rows of the split, ascending.
    other: i64[m], rows of the other split.
    distance: i32[m], bits of the two hashes that differ.
    mirrored: bool[m], whether one is like the other flipped left to right.
  """

  row: np.ndarray
  other: np.ndarray
  distance: np.ndarray
  mirrored: np.ndarray


def check_distance(distance: int, name: str) -> None:
  """Checks a distance.

  Args:
    distance: Bits that may differ.
    name: The flag or key that gave it.

  Raises:
    InputError: it is not between 0 and the bits of a hash.
  """
  if not 0 <= distance < BITS:
    raise InputError(
      f'{name}={distance}: give a number of bits from 0 to {BITS - 1}, such as {DISTANCE}'
    )


def find(split: Split, other: Split, distance: int = DISTANCE, mirrored: bool = False) -> Nearest:
  """The pictures of a split that have a near duplicate in another, each with the nearest one.

  Args:
    split: The split whose pictures are looked up, n rows.
    other: The split in which they are looked up, m rows. The time grows with n * m, the memory
      with n + m, unless nearly all pictures are the same.
    distance: Bits of the hashes that may differ.
    mirrored: Whether flipped pictures count as well.
  """
  own, others = _hashes(split), _hashes(other)
  index, found = _search(own, others, distance)
  flipped = np.zeros(len(own), bool)
  if mirrored:
    flipped_index, flipped_found = _search(mirrored_hashes(own), others, distance)
    flipped = flipped_found < found
    index = np.where(flipped, flipped_index, index)
    found = np.where(flipped, flipped_found, found)
  row = np.flatnonzero(found <= distance)
  return Nearest(row, index[row], found[row], flipped[row])


def drop(
  data: dataset.Dataset,
  tests: Iterable[Split] = (),
  distance: int = DISTANCE,
  mirrored: bool = False,
) -> dataset.Dataset:
  """Leaves out the rows with near duplicates in a later split, in the order train, val, test.

  So test rows all stay, validation rows stay unless they are tested on, and training rows give way
  to both. The log has the counts.

  Args:
    data: The data set. Its `dropped` becomes {split: number of rows left out}.
    tests: Further splits that are tested on.
    distance, mirrored: See `find`.

  Raises:
    InputError: no training row would be left.
  """
  splits, dropped = dict(data.splits), {}
  later = [*([splits['test']] if 'test' in splits else []), *tests]
  for name in ('val', 'train'):
    if name not in splits:
      continue
    copies = [find(splits[name], split, distance, mirrored).row for split in later]
    kept = np.ones(len(splits[name].rows), bool)
    kept[np.concatenate([np.zeros(0, np.int64), *copies])] = False
    dropped[name] = int((~kept).sum())
    splits[name] = take(splits[name], np.flatnonzero(kept))
    if not kept.any():
      if name == 'train':
        raise InputError(
          f'every training picture of {data.name} is nearly the same as one of validation or test: '
          f'lower config.data.duplicate_distance={distance}'
        )
      del splits[name]
    else:
      later.append(splits[name])
  LOGGER.info(
    '%s: pictures left out, because a later split has nearly the same '
    '(config.data.drop_duplicates=True): %s',
    data.name,
    ', '.join(f'{name} {count}' for name, count in dropped.items()) or 'none',
  )
  return data._replace(splits=splits, dropped=dropped)


def describe(
  splits: Mapping[str, Split],
  classes: Sequence[str],
  distance: int = DISTANCE,
  mirrored: bool = False,
  out: Path | None = None,
) -> list[str]:
  """Lines of text: how many near duplicates each two splits have.

  Args:
    splits: By name.
    classes: Class names in label order.
    distance, mirrored: See `find`.
    out: A CSV file to write, with one row for each picture of the later split that has a near
      duplicate in the earlier one, the most similar first.

  Raises:
    InputError: the file cannot be written.
  """
  lines, rows = [], []
  for first, second in itertools.combinations(splits, 2):
    found = find(splits[second], splits[first], distance, mirrored)
    if len(found.row):
      lines.append(_line(splits[first], splits[second], f'{first}/{second}', found))
      rows += _rows(splits, first, second, classes, found)
  if out:
    rows.sort(key=lambda row: row[len(HEADER)])
    try:
      with files.replacing(out) as file:
        csv.writer(file).writerows([(*HEADER, 'distance', 'mirrored'), *rows])
    except OSError as error:
      raise InputError(f'cannot write {out}: {error.strerror}') from error
  return lines


def _line(first, second, pair, found):
  """The counts of one pair of splits."""
  same = np.isin(second.table['digest'], first.table['digest']).sum()
  unlike = (second.table['label'][found.row] != first.table['label'][found.other]).sum()
  flipped = f', {found.mirrored.sum()} of them mirrored' if found.mirrored.any() else ''
  return (
    f'nearly the same picture in {pair}: {len(found.row)}{flipped} '
    f'({same} byte for byte; {unlike} with another label)'
  )


def _rows(splits, first, second, classes, found):
  own, other = splits[second].table, splits[first].table
  for row, place, distance, mirrored in zip(*(column.tolist() for column in found), strict=True):
    yield (
      second,
      own['name'][row],
      classes[own['label'][row]],
      first,
      other['name'][place],
      classes[other['label'][place]],
      distance,
      mirrored,
    )


def _hashes(split):
  """u8[n, b]."""
  return np.ascontiguousarray(split.table['hash']).view(np.uint8).reshape(len(split.rows), -1)


def _search(queries, base, distance):
  """The nearest row of `base` u8[m, b] within a distance to each of u8[n, b]: i64[n], and its
  distance i32[n]; more than the bits of a hash where there is none."""
  import faiss  # imported here, so that training starts without it

  index = faiss.IndexBinaryFlat(BITS)
  index.add(base)
  place, found = np.zeros(len(queries), np.int64), np.full(len(queries), BITS + 1, np.int32)
  with progress.Progress('Comparing pictures', len(queries)) as bar:
    for start in range(0, len(queries), BLOCK):
      block = queries[start : start + BLOCK]
      ends, distances, places = index.range_search(block, distance + 1)  # below, not up to
      for row in np.flatnonzero(np.diff(ends)):
        own = slice(int(ends[row]), int(ends[row + 1]))
        first = own.start + np.lexsort((places[own], distances[own]))[0]
        place[start + row], found[start + row] = places[first], distances[first]
      bar.update(len(block))
  return place, found
