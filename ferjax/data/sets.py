"""Several data sets: their names in a config, how they are joined, and their test rows."""

import hashlib
import itertools
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ferjax import labels
from ferjax.data import dataset, landmarks
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
  """Parses the spec of a data set.

  Args:
    spec: For example `raf_db`, `ck_plus@last_three` or `manifest:FILE.csv`.
    key: What holds it, for messages: a key of the config or a flag, such as `config.data.sets`.

  Returns:
    `name`, `path` and `protocol` of `dataset.load`.

  Raises:
    InputError: there is no such data set or file, a manifest has no file, or another data set has
      one.
  """
  name, path, protocol = parts(spec)
  if name not in catalogue.names():
    raise InputError(
      f"{key} names '{spec}', which is not a data set.{nearest(name, catalogue.names())} "
      f'There are: {", ".join(catalogue.names())}'
    )
  if name == 'manifest' and not path:
    raise InputError(f"{key}: name the manifest, such as 'manifest:faces/manifest.csv'")
  if path and name != 'manifest':
    raise InputError(f"{key} names '{spec}': only a manifest has a file; write '{name}'")
  if path and not Path(path).is_file():
    raise InputError(f"{key} names '{spec}': there is no such file")
  return {'name': name, 'path': path, 'protocol': protocol}


def parts(spec: str) -> tuple[str, str, str]:
  """Name, file and protocol of a spec; '' if it has no file or protocol."""
  name, _, path = spec.partition(':')
  name, _, protocol = name.partition('@')
  return name, path, protocol


def place(spec: str) -> tuple[str, str]:
  """The name and the full path of the file of a spec: equal for two specs of the same data."""
  name, path, _ = parts(spec)
  return name, str(Path(path).resolve()) if path else ''


def names(specs: Sequence[str], taken: Collection[str] = ()) -> dict[str, str]:
  """Short names for data sets.

  A manifest is named after its file without the ending, or after its folder if the file is called
  `manifest.csv`. A number is added to a name that is already in use.

  Args:
    specs: See `parse`.
    taken: Names that must not be used.

  Returns:
    {spec: name}.
  """
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
  """The classes that all data sets have, in canonical order, then in the order of the first set.
  A warning names the other classes.

  Raises:
    InputError: no class is common to all.
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
      'classes left out, because not every training set has them (config.data.classes keeps them): '
      '%s',
      others,
    )
  first = next(iter(found.values())).classes
  return tuple(c for c in dict.fromkeys((*labels.CLASSES_8, *first)) if c in everywhere)


def join(found: Mapping[str, dataset.Dataset]) -> dataset.Dataset:
  """Joins several data sets with the same classes to one.

  A split has the rows of all sets that have it. They are mixed evenly, so that the first rows, of
  any number, hold every set in proportion. It has the columns that all sets have, and `set` i32,
  the index of a row's set. Subjects of different sets get different numbers. If two sets share the
  name of a row, all names get the name of their set as a prefix. Landmarks are the points that all
  sets have in common (see `landmarks.common`). Action units are kept only if they are the same in
  all sets.

  Args:
    found: {name of the set: the set}.
  """
  found = _with_common_landmarks(found)
  first = next(iter(found.values()))
  sets = list(found.values())
  columns, left_out = _shared_columns(found)
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
    left_out=left_out,
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
  """The test rows of one of the joined sets; None if it has none."""
  if 'test' not in data.splits:
    return None
  test = data.splits['test']
  rows = np.flatnonzero(test.table['set'] == data.sets.index(name))
  return take(test, rows) if len(rows) else None


def tested_on(data: dataset.Dataset, like: dataset.Dataset) -> dataset.Dataset:
  """The test rows of a data set that is not trained on, as its only split `test`.

  They are its test split, or all its rows if it has none. Landmarks become those of the data set
  `like`, or are left out if they have not all of these points.
  """
  split = data.splits.get('test') or concatenate(list(data.splits.values()))
  reference = [s.table['landmarks'] for s in like.splits.values() if 'landmarks' in s.table]
  count = reference[0].shape[1] if reference else 0
  data = data._replace(splits={'test': split})
  return landmarks.like(data, landmarks.of(like), count, like.name)


def _mark(split, columns, number, first_subject, prefix):
  """A split with the shared columns only, and the columns that identify its set."""
  table = {name: column for name, column in split.table.items() if name in columns}
  table['set'] = np.full(len(split.rows), number, np.int32)
  if 'subject' in table:
    table['subject'] = table['subject'] + np.asarray(first_subject, table['subject'].dtype)
  if prefix:
    table['name'] = np.char.add(prefix, table['name'])
  return split._replace(table=table)


def _with_common_landmarks(found):
  """The sets with the points that all of them have in common; unchanged if they all have the same,
  there are none in common, or a set has no landmarks."""
  points = [landmarks.of(data) for data in found.values()]
  everywhere = all('landmarks' in s.table for data in found.values() for s in data.splits.values())
  shared = landmarks.common(points) if everywhere and len(set(points)) > 1 else None
  if not shared:
    return found
  schemes = ', '.join(f'{name}: {landmarks.described(data)}' for name, data in found.items())
  LOGGER.info('joined on the %d landmarks in common, %s: %s', len(shared[1]), shared[0], schemes)
  return {name: landmarks.with_points(data, shared) for name, data in found.items()}


def _names_collide(sets):
  of_sets = [{n for s in data.splits.values() for n in s.table['name'].tolist()} for data in sets]
  return len(set().union(*of_sets)) < sum(map(len, of_sets))


def _shared_columns(found):
  """The columns that every split of every set has, in the same shape, and {other column: reason}. A
  warning names them too."""
  columns = {}  # {column: {set: shape of a row, or None where it is missing}}
  for name, data in found.items():
    for column in dict.fromkeys(c for split in data.splits.values() for c in split.table):
      shapes = [
        s.table[column].shape[1:] if column in s.table else None for s in data.splits.values()
      ]
      columns.setdefault(column, {})[name] = None if None in shapes else shapes[0]
  kept, reasons = [], {}
  for column, shapes in columns.items():
    without = [name for name in found if shapes.get(name) is None]
    differ = len(set(shapes.values())) > 1
    if without:
      reasons[column] = f'{", ".join(without)} has none'
    elif column == 'landmarks' and (differ or len(set(map(landmarks.of, found.values()))) > 1):
      schemes = ', '.join(f'{n}: {landmarks.described(d)}' for n, d in found.items())
      reasons[column] = f'no points in common; {schemes}'
    elif differ:
      sizes = ', '.join(f'{name}: {shape[0]}' for name, shape in shapes.items())
      reasons[column] = f'numbers of a row differ: {sizes}'
    elif column == 'au' and len({data.action_units for data in found.values()}) > 1:
      units = '; '.join(f'{name}: {" ".join(data.action_units)}' for name, data in found.items())
      reasons[column] = f'not the same units: {units}'
    else:
      kept.append(column)
  shown = [f'{c} ({r})' for c, r in reasons.items() if c not in ('pose', 'fold')]  # see yaw_bin
  if shown:
    LOGGER.warning('columns left out, because not every set has them: %s', '; '.join(shown))
  return kept, reasons
