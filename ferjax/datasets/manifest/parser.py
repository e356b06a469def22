"""Reads a manifest, a CSV of pictures and labels: its rows, and the problems of bad rows."""

import csv
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ferjax import labels
from ferjax.datasets.listing import Listing, Problem, path_troubles
from ferjax.errors import InputError, nearest

SPLITS = {
  'train': 'train',
  'training': 'train',
  'val': 'val',
  'valid': 'val',
  'validation': 'val',
  'dev': 'val',
  'test': 'test',
  'testing': 'test',
}
SURPLUS = '(more fields than the header)'
LARGEST = 1e9  # larger values are no coordinates, angles, intensities or numbers of votes
MOST_FOLDS = 1000
HALF_TURN = math.pi + 1e-3  # radians; files may round pi up
POSE = {'pitch': 'pose_Rx', 'yaw': 'pose_Ry', 'roll': 'pose_Rz'}


def parse(path: str | os.PathLike, classes: Sequence[str] = ()) -> Listing:
  """Parses a manifest without opening its pictures.

  Args:
    path: The CSV file. The README of this package describes its columns.
    classes: Class names in label order; rows of other known classes are left out and counted. If
      empty: the seven canonical classes, and contempt if a row has it.

  Returns:
    The rows, and the problems of rows that cannot be used (unknown label or split, missing file or
    file outside the folder, repeated picture, value that is not a finite number, angle beyond a
    half turn).

  Raises:
    InputError: the file does not exist or is not a CSV, a required column is missing, or there are
      gaps in the landmark columns.
  """
  path = Path(path)
  if not path.is_file():
    raise InputError(f'no such manifest: {path}. Give a CSV file with --config.data.path=FILE.csv')
  header, records = read_csv(path)
  if not classes:
    has_contempt = any(labels.canonical(r.get('label', '')) == 'contempt' for _, r in records)
    classes = labels.CLASSES_8 if has_contempt else labels.CLASSES
  known = {*classes, *labels.CLASSES_8}
  columns = _columns(path, header, known)

  rows, problems, others, first_line = [], [], Counter(), {}
  for line, record in records:
    row, troubles = _parse_row(record, columns, classes, known, path.parent)
    if row['path'] in first_line:
      troubles.append(('repeated picture', f'first on line {first_line[row["path"]]}'))
    first_line.setdefault(row['path'], line)
    if troubles:
      problems += [Problem(line, kind, detail) for kind, detail in troubles]
    elif row['label'] not in classes:
      others[row['label']] += 1
    else:
      rows.append(row | {'line': line})
  return Listing(
    folder=path.parent,
    classes=tuple(classes),
    rows=rows,
    problems=problems,
    other_classes=dict(others),
    folds=1 + max((row['fold'] for row in rows), default=-1) if columns['fold'] else 0,
    action_units=tuple(name.removesuffix('_r') for name in columns['au']),
    source=path,
  )


def read_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
  """Reads a CSV file.

  Returns:
    The header, and the rows as (line, {column: text}). Text beyond the header's columns is under
    `SURPLUS`.

  Raises:
    InputError: the file is not a CSV in UTF-8, or a column occurs twice.
  """
  try:
    with path.open(newline='', encoding='utf-8-sig') as file:
      reader = csv.reader(file, strict=True)
      header = [name.strip() for name in next(reader, [])]
      while header and not header[-1]:
        header.pop()
      records = []
      for fields in reader:
        if fields:
          padded = fields + [''] * (len(header) - len(fields))
          record = dict(zip(header, padded, strict=False))
          surplus = ','.join(fields[len(header) :]).strip(',')
          records.append((reader.line_num, record | ({SURPLUS: surplus} if surplus else {})))
  except (UnicodeDecodeError, csv.Error) as error:
    raise InputError(
      f'{path} is not a CSV file in UTF-8 ({error}). A manifest has a header line and the '
      'columns path, split, label'
    ) from error
  repeated = [name for name, count in Counter(header).items() if count > 1]
  if repeated:
    raise InputError(f'{path}: column {repeated[0]!r} occurs twice in the header: remove one')
  return header, records


def _columns(path: Path, header: list[str], known: set[str]) -> dict[str, Any]:
  for name in ('path', 'split', 'label'):
    if name not in header:
      raise InputError(
        f"{path} has no column '{name}'.{nearest(name, header)} A manifest is a CSV file with a "
        'header line and the columns path, split, label'
      )
  present = set(header)

  def of_classes(prefix):
    named = {n: labels.canonical(n.removeprefix(prefix)) for n in header if n.startswith(prefix)}
    return {column: name for column, name in named.items() if name in known}

  shares, votes = of_classes('p_'), of_classes('votes_')
  if votes and shares:
    raise InputError(f'{path} has both p_<class> and votes_<class> columns: keep one kind')
  return {
    'distribution': shares or votes,
    'subject': 'subject' in present,
    'yaw_bin': 'yaw_bin' in present,
    'fold': 'fold' in present,
    'pose': all(name in present for name in POSE.values()),
    'au': sorted(n for n in header if re.fullmatch(r'AU\d+_r', n)),
    'landmarks': landmark_numbers(path, header),
  }


def landmark_numbers(path: Path, header: Sequence[str]) -> list[int]:
  """The numbers of the landmarks that have columns in a header.

  Raises:
    InputError: there are gaps between them, or x and y differ.
  """
  points = sorted(int(n[2:]) for n in header if re.fullmatch(r'x_\d+', n))
  if points != list(range(len(points))) or any(f'y_{i}' not in header for i in points):
    raise InputError(
      f'{path}: landmark columns must be x_0 ... x_{len(points) - 1} and the same of y, no gaps'
    )
  return points


def _parse_row(record, columns, classes, known, folder) -> tuple[dict, list[tuple[str, str]]]:
  troubles = []

  def number(name):
    try:
      value = float(record[name])
    except ValueError:
      value = math.nan
    if not abs(value) < LARGEST:
      troubles.append((f'{_kind(name)} is not a finite number', f'{name} = {record[name]!r}'))
      return 0.0
    return value

  def degrees(name):
    value = number(name)
    if abs(value) > HALF_TURN:
      detail = f'{name} = {record[name]!r}: give radians, from -pi to pi'
      troubles.append(('angle beyond a half turn', detail))
    return math.degrees(value)

  path = str(PurePosixPath(record['path'].strip())) if record['path'].strip() else ''
  row = {'path': path, 'label': labels.canonical(record['label'])}
  if SURPLUS in record:
    troubles.append(('more fields than the header has columns', record[SURPLUS]))
  troubles += path_troubles(row['path'], folder)
  row['split'] = SPLITS.get(record['split'].strip().lower(), '')
  if not row['split']:
    troubles.append(('unknown split', f'{record["split"]!r}: use train, val or test'))
  if row['label'] not in known:
    hint = nearest(row['label'], known) or ': use class names, or map it with config.data.class_map'
    troubles.append(('unknown label', f'{record["label"]!r}{hint}'))
  if columns['subject']:
    row['subject'] = record['subject'].strip()
    if not row['subject']:
      troubles.append(('empty subject', ''))
  if columns['yaw_bin']:
    row['yaw_bin'] = round(number('yaw_bin'))
  if columns['fold']:
    row['fold'] = round(number('fold'))
    if not 0 <= row['fold'] < MOST_FOLDS:
      troubles.append(('fold is not 0, 1, ...', f'fold = {record["fold"]!r}'))
    if row['split'] not in ('train', ''):
      troubles.append(('fold outside of train', f'split {record["split"]!r}: folds are of train'))
  if columns['pose']:
    row |= {name: degrees(column) for name, column in POSE.items()}
  if columns['au']:
    row['au'] = [number(name) for name in columns['au']]
  if columns['landmarks']:
    row['landmarks'] = [[number(f'x_{i}'), number(f'y_{i}')] for i in columns['landmarks']]
  if columns['distribution']:
    shares = dict.fromkeys(classes, 0.0)
    for column, name in columns['distribution'].items():
      value = number(column)
      if name in shares:
        shares[name] += value
    total = sum(shares.values())
    if min(shares.values()) < 0 or (total <= 0 and row['label'] in classes):
      troubles.append(('label distribution has a negative share or none', ''))
    row['distribution'] = [value / (total or 1) for value in shares.values()]
  return row, troubles


def _kind(column: str) -> str:
  return 'landmark' if re.fullmatch(r'[xy]_\d+', column) else column
