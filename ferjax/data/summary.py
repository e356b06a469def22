"""A text that describes a data set: splits, classes, people, poses."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ferjax.data import dataset


def summary(loaded: dataset.Dataset, metadata: Mapping[str, Any], path: str) -> str:
  """A description of a prepared data set: its content, and the rows left out with the reasons.

  Args:
    loaded: The data set.
    metadata: The metadata of its builder.
    path: The folder of the prepared files.
  """
  splits = loaded.splits
  counts = {
    split: np.bincount(found.table['label'], minlength=len(loaded.classes))
    for split, found in splits.items()
  }
  rows = [('', *splits)]
  for number, name in enumerate(loaded.classes):
    rows.append((name, *(str(count[number]) for count in counts.values())))
  rows.append(('all', *(str(count.sum()) for count in counts.values())))
  people = {k: s.table['subject'] for k, s in splits.items() if 'subject' in s.table}
  if people:
    rows.append(('subjects', *(str(len(np.unique(s))) for s in people.values())))
  width = max(len(row[0]) for row in rows)
  lines = [f'{loaded.name}, prepared in {path}']
  lines += ['  '.join([row[0].ljust(width), *(c.rjust(7) for c in row[1:])]) for row in rows]
  if metadata.get('folds'):
    lines.append(f'{metadata["folds"]} folds by subject; one of them is shown')
  columns = next(iter(splits.values())).table
  labels = sorted(set(columns) - {'label', 'name', 'digest', 'hash', 'height', 'width'})
  lines.append(f'known for each picture: {", ".join(["label", *labels])}')
  if metadata.get('other_classes'):
    lines.append(f'left out, rows of classes not in use: {dict(metadata["other_classes"])}')
  for key, title in (('skipped', 'left out'), ('bad_rows', 'left out, bad rows')):
    if metadata.get(key):
      lines.append(f'{title}:\n{metadata[key]}')
  if metadata.get('differences'):
    lines.append(f'not as expected: {"; ".join(metadata["differences"])}')
  shared = _shared_people(people)
  lines += [f'people in both {a} and {b}: {count}' for (a, b), count in shared.items()]
  return '\n'.join(lines)


def _shared_people(people: Mapping[str, np.ndarray]) -> dict[tuple[str, str], int]:
  pairs = [(a, b) for a in people for b in people if a < b]
  counts = {(a, b): len(np.intersect1d(people[a], people[b])) for a, b in pairs}
  return {pair: count for pair, count in counts.items() if count}
