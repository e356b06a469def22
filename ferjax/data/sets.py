"""Several data sets: how a config names them, how they are joined, what each is tested on."""

import hashlib
import itertools
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ferjax import labels
from ferjax.data import dataset
from ferjax.data.splits import duplicates, take
from ferjax.datasets import catalogue
from ferjax.errors import InputError, nearest

LOGGER = logging.getLogger(__name__)


class Records:
  """Random access to the pictures of several sources, one source after the other."""

  def __init__(self, sources: Sequence[Any]):
    self.sources = tuple(sources)
    self.ends = np.cumsum([len(source) for source in sources])

  def __len__(self) -> int:
    return int(self.ends[-1])

  def __getitem__(self, record: int) -> bytes:
    source = int(np.searchsorted(self.ends, record, side='right'))
    return self.sources[source][int(record) - (int(self.ends[source - 1]) if source else 0)]


def parse(spec: str, key: str) -> dict[str, str]:
  """`raf_db`, `ck_plus@last_three` or `manifest:FILE.csv`, as `config.<key>` names it -> `name`,
  `path` and `protocol` of `dataset.load`.

  Raises:
    InputError: no such data set or file, a manifest without a file, a file for another data set.
  """
  name, path, protocol = parts(spec)
  if name not in catalogue.names():
    raise InputError(
      f"config.{key} names '{spec}', which is no data set.{nearest(name, catalogue.names())} "
      f'There are: {", ".join(catalogue.names())}'
    )
  if name == 'manifest' and not path:
    raise InputError(f"config.{key}: say which manifest, such as 'manifest:faces/manifest.csv'")
  if path and name != 'manifest':
    raise InputError(f"config.{key} names '{spec}': only a manifest has a file; write '{name}'")
  if path and not Path(path).is_file():
    raise InputError(f"config.{key} names '{spec}': there is no such file")
  return {'name': name, 'path': path, 'protocol': protocol}


def parts(spec: str) -> tuple[str, str, str]:
  """Name, file and protocol of a spec, each '' where it has none."""
  name, _, path = spec.partition(':')
  name, _, protocol = name.partition('@')
  return name, path, protocol


def place(spec: str) -> tuple[str, str]:
  """What a spec is of, however it is written: its name, and its file in full."""
  name, path, _ = parts(spec)
  return name, str(Path(path).resolve()) if path else ''


def names(specs: Sequence[str], taken: Collection[str] = ()) -> dict[str, str]:
  """{spec: name that it goes by}: of a manifest its file's name without the ending, or its folder's
  where the file is called `manifest.csv`; a number is added to a name that is `taken` already."""
  found = {}
  for spec in specs:
    name, path, _ = parts(spec)
    if path:
      path = Path(path)
      name = path.resolve().parent.name if path.stem == 'manifest' else path.stem
    name = re.sub(r'[^\w.-]', '_', name) or 'set'
    numbered = (f'{name}-{number}' for number in itertools.count(2))
    free = (n for n in itertools.chain([name], numbered) if n not in {*taken, *found.values()})
    found[spec] = next(free)
  return found


def shared_classes(found: Mapping[str, dataset.Dataset]) -> tuple[str, ...]:
  """The classes that all of the data sets have, in canonical order, then in that of the first; a
  message names the others.

  Raises:
    InputError: there is none.
  """
  everywhere = set.intersection(*(set(data.classes) for data in found.values()))
  if not everywhere:
    listing = '\n'.join(f'  {name}: {", ".join(data.classes)}' for name, data in found.items())
    raise InputError(
      f'no class is common to all training sets:\n{listing}\n'
      'Map their names with config.data.class_map, or choose some with config.data.classes'
    )
  others = {name: [c for c in d.classes if c not in everywhere] for name, d in found.items()}
  others = {name: classes for name, classes in others.items() if classes}
  if others:
    LOGGER.warning(
      'not a class of every training set, so left out (config.data.classes keeps them): %s', others
    )
  first = next(iter(found.values())).classes
  return tuple(c for c in dict.fromkeys((*labels.CLASSES_8, *first)) if c in everywhere)


def join(found: Mapping[str, dataset.Dataset]) -> dataset.Dataset:
  """One data set of several that have the same classes.

  A split has the rows of all sets that have it, mixed evenly, so that any first part of it holds
  every set in proportion; the columns that all of them have, and `set` i32, the place of a row's
  set. Subjects of different sets are different; a row's name begins with that of its set where two
  sets have a name in common; landmarks and action units stay only where they are the same ones
  everywhere.

  Args:
    found: By the names that the sets go by.
  """
  first = next(iter(found.values()))
  sets = list(found.values())
  columns = _shared_columns(found)
  known_pose = 'yaw_bin' in columns and all(data.poses for data in sets)
  poses = tuple(sorted({p for data in sets for p in data.poses})) if known_pose else ()
  prefixed = _names_collide(sets)
  marked, subjects = {}, 0
  for number, (name, data) in enumerate(found.items()):
    data = dataset.with_poses(data, poses) if poses else data
    marked[name] = {
      key: _mark(split, columns, number, subjects, f'{name}/' if prefixed else '')
      for key, split in data.splits.items()
    }
    if 'subject' in columns:
      subjects += 1 + max(int(split.table['subject'].max()) for split in data.splits.values())
  splits = {}
  for key in ('train', 'val', 'test'):
    parts = {name: of_set[key] for name, of_set in marked.items() if key in of_set}
    copies = duplicates(parts)
    if copies:
      LOGGER.warning('byte for byte the same picture in two sets (%s): %s', key, copies)
    if parts:
      splits[key] = concatenate(list(parts.values()))
  fingerprints = ' '.join(data.fingerprint for data in sets)
  return dataset.Dataset(
    name='+'.join(found),
    classes=first.classes,
    splits=splits,
    landmark_indices=first.landmark_indices if 'landmarks' in columns else None,
    fingerprint=hashlib.sha256(fingerprints.encode()).hexdigest(),
    poses=poses,
    action_units=first.action_units if 'au' in columns else (),
    known=tuple(dict.fromkeys(name for data in sets for name in data.known)),
    sets=tuple(found),
    landmark_scheme=first.landmark_scheme if 'landmarks' in columns else '',
  )


def concatenate(splits: Sequence[dataset.Split]) -> dataset.Split:
  """The rows of several splits, mixed evenly, with the columns that all of them have."""
  columns = set.intersection(*(set(split.table) for split in splits))
  starts = np.cumsum([0, *(len(split.records) for split in splits)])
  rows = np.concatenate([split.rows + start for split, start in zip(splits, starts, strict=False)])
  table = {c: np.concatenate([s.table[c] for s in splits]) for c in splits[0].table if c in columns}
  place = np.concatenate([(np.arange(len(s.rows)) + 0.5) / len(s.rows) for s in splits])
  joined = dataset.Split(Records([split.records for split in splits]), rows, table)
  return take(joined, np.argsort(place, kind='stable'))


def of_set(data: dataset.Dataset, name: str) -> dataset.Split | None:
  """The test rows of one of the joined sets; None where it has none."""
  if 'test' not in data.splits:
    return None
  test = data.splits['test']
  rows = np.flatnonzero(test.table['set'] == data.sets.index(name))
  return take(test, rows) if len(rows) else None


def tested_on(data: dataset.Dataset, like: dataset.Dataset) -> dataset.Dataset:
  """What a data set that is not trained on is tested on, as its only split `test`: its test split,
  else all its rows. Landmarks that are not the points of the data set `like` are left out."""
  split = data.splits.get('test') or concatenate(list(data.splits.values()))
  reference = [s.table['landmarks'] for s in like.splits.values() if 'landmarks' in s.table]
  table = dict(split.table)
  if reference and 'landmarks' in table:
    points, others = table['landmarks'].shape[1], reference[0].shape[1]
    if points != others or _points(data) != _points(like):
      LOGGER.warning(
        'the landmarks of %s (%d points) are not those of %s (%d points): left out',
        data.name,
        points,
        like.name,
        others,
      )
      del table['landmarks']
  return data._replace(splits={'test': split._replace(table=table)})


def _mark(split, columns, number, first_subject, prefix):
  """A split with the shared columns only, and the columns that identify its set."""
  table = {name: column for name, column in split.table.items() if name in columns}
  table['set'] = np.full(len(split.rows), number, np.int32)
  if 'subject' in table:
    table['subject'] = table['subject'] + np.asarray(first_subject, table['subject'].dtype)
  if prefix:
    table['name'] = np.char.add(prefix, table['name'])
  return split._replace(table=table)


def _points(data):
  """Which points the landmarks are."""
  return data.landmark_scheme, data.landmark_indices


def _names_collide(sets):
  of_sets = [{n for s in data.splits.values() for n in s.table['name'].tolist()} for data in sets]
  return len(set().union(*of_sets)) < sum(map(len, of_sets))


def _shared_columns(found):
  """The columns that every split of every set has, in one shape; a warning names the others, with
  the reasons."""
  columns = {}  # {column: {set: shape of a row, or None where it is missing}}
  for name, data in found.items():
    for column in dict.fromkeys(c for split in data.splits.values() for c in split.table):
      shapes = [
        s.table[column].shape[1:] if column in s.table else None for s in data.splits.values()
      ]
      columns.setdefault(column, {})[name] = None if None in shapes else shapes[0]
  kept, reasons = [], []
  for column, shapes in columns.items():
    lacking = [name for name in found if shapes.get(name) is None]
    if lacking:
      reasons.append(f'{column} ({", ".join(lacking)} has none)')
    elif len(set(shapes.values())) > 1:
      sizes = ', '.join(f'{name}: {shape[0]}' for name, shape in shapes.items())
      reasons.append(f'{column} (numbers of a row differ: {sizes})')
    elif column == 'landmarks' and len({_points(data) for data in found.values()}) > 1:
      schemes = ', '.join(f'{n}: {d.landmark_scheme or "unknown"}' for n, d in found.items())
      reasons.append(f'landmarks (not the same points; {schemes})')
    elif column == 'au' and len({data.action_units for data in found.values()}) > 1:
      units = '; '.join(f'{name}: {" ".join(data.action_units)}' for name, data in found.items())
      reasons.append(f'au (not the same units: {units})')
    else:
      kept.append(column)
  reasons = [reason for reason in reasons if not reason.startswith('pose ')]  # yaw_bin is named
  if reasons:
    LOGGER.warning('columns that not every set has, so left out: %s', '; '.join(reasons))
  return kept
