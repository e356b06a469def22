"""Reads a manifest: a CSV of pictures and labels -> rows, and what is wrong with the others."""

import csv
import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image

from ferjax.data import labels
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
STORED_AS_THEY_ARE = ('JPEG', 'MPO', 'PNG')  # MPO: the JPEG of phones with further pictures in it
FORMATS = ('JPEG', 'PNG', 'BMP', 'TIFF')
LARGEST = 1e9  # what lies beyond is no coordinate, angle, intensity or number of votes
POSE = {'pitch': 'pose_Rx', 'yaw': 'pose_Ry', 'roll': 'pose_Rz'}


class Problem(NamedTuple):
  """One bad row: its line in the file, the kind of trouble, and the particulars."""

  line: int
  kind: str
  detail: str


class Manifest(NamedTuple):
  """A parsed manifest: what stands in its rows, in file order."""

  path: Path
  classes: tuple[str, ...]
  subjects: tuple[str, ...]
  landmarks: int
  action_units: tuple[str, ...]
  pose: bool
  yaw_bin: bool
  distribution: bool
  rows: tuple[dict[str, Any], ...]  # features by name, and `path`, `split`, `line`
  problems: tuple[Problem, ...]
  other_classes: dict[str, int]  # rows left out because `classes` does not name their label


def parse(path: str | os.PathLike, classes: Sequence[str] = ()) -> Manifest:
  """Parses a manifest without opening its pictures.

  Args:
    path: The CSV file; its columns are described in this package's README.
    classes: Class names in label order; rows of other known classes are left out and counted.
      When empty: the seven canonical classes, and contempt where a row has it.

  Returns:
    The rows, and the problems of those that cannot be used (unknown label or split, missing or
    outside file, repeated picture, value that is no finite number).

  Raises:
    InputError: no such file, not a CSV, a required column is missing, landmark columns with gaps.
  """
  path = Path(path)
  if not path.is_file():
    raise InputError(f'no such manifest: {path}. Give a CSV file with --config.data.path=FILE.csv')
  header, records = _read_csv(path)
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
  return Manifest(
    path=path,
    classes=tuple(classes),
    subjects=tuple(sorted({r['subject'] for r in rows})) if columns['subject'] else (),
    landmarks=len(columns['landmarks']),
    action_units=tuple(name.removesuffix('_r') for name in columns['au']),
    pose=columns['pose'],
    yaw_bin=columns['yaw_bin'],
    distribution=bool(columns['distribution']),
    rows=tuple(rows),
    problems=tuple(problems),
    other_classes=dict(others),
  )


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
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
    raise InputError(f'{path}: column {repeated[0]!r} stands twice in the header')
  return header, records


def _columns(path: Path, header: list[str], known: set[str]) -> dict[str, Any]:
  for name in ('path', 'split', 'label'):
    if name not in header:
      raise InputError(
        f"{path} has no column '{name}'.{nearest(name, header)} A manifest is a CSV file with a "
        'header line and the columns path, split, label'
      )
  present = set(header)
  points = sorted(int(n[2:]) for n in header if re.fullmatch(r'x_\d+', n))
  if points != list(range(len(points))) or any(f'y_{i}' not in present for i in points):
    raise InputError(
      f'{path}: landmark columns must be x_0 ... x_{len(points) - 1} and the same of y, no gaps'
    )

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
    'pose': all(name in present for name in POSE.values()),
    'au': sorted(n for n in header if re.fullmatch(r'AU\d+_r', n)),
    'landmarks': points,
  }


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

  path = str(PurePosixPath(record['path'].strip())) if record['path'].strip() else ''
  row = {'path': path, 'label': labels.canonical(record['label'])}
  if SURPLUS in record:
    troubles.append(('more fields than the header has columns', record[SURPLUS]))
  troubles += _path_troubles(row['path'], folder)
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
  if columns['pose']:
    row |= {name: math.degrees(number(column)) for name, column in POSE.items()}
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


def _path_troubles(text: str, folder: Path) -> list[tuple[str, str]]:
  relative = PurePosixPath(text)
  if not text or relative.is_absolute() or '..' in relative.parts:
    return [('path is not below the manifest', f'{text!r}: give paths relative to {folder}')]
  try:
    found = (folder / relative).is_file()
  except OSError:  # a name that no file can have
    found = False
  return [] if found else [('missing file', text)]


def check_pictures(manifest: Manifest, progress=lambda items, total: items) -> Manifest:
  """Decodes every picture once; broken ones move from the rows to the problems.

  Args:
    manifest: As parsed.
    progress: Wraps the iteration over pictures, for a progress bar.
  """
  files = [manifest.path.parent / row['path'] for row in manifest.rows]
  with ThreadPoolExecutor() as pool:
    troubles = list(progress(pool.map(picture_trouble, files), len(files)))
  problems = [
    Problem(row['line'], 'broken picture', f'{row["path"]}: {trouble}')
    for row, trouble in zip(manifest.rows, troubles, strict=True)
    if trouble
  ]
  good = [row for row, trouble in zip(manifest.rows, troubles, strict=True) if not trouble]
  return manifest._replace(
    rows=tuple(good), problems=tuple(sorted([*manifest.problems, *problems]))
  )


def picture_trouble(path: Path) -> str:
  """Why a picture file cannot be used; '' where it can."""
  try:
    with Image.open(path, formats=FORMATS) as picture:
      picture.load()
      if picture.format not in STORED_AS_THEY_ARE and picture.mode in ('I', 'F'):
        return f'{picture.mode} (32-bit) pixels: save it with 8 or 16 bits'
  except Exception as error:  # Pillow's decoders raise many kinds; each means "cannot be read"
    return str(error) or type(error).__name__
  return ''


def report(problems: Iterable[Problem]) -> str:
  """Problems by kind: counts, line numbers, and the first particulars of each kind."""
  kinds = {}
  for problem in problems:
    kinds.setdefault(problem.kind, []).append(problem)
  parts = []
  for kind, found in sorted(kinds.items(), key=lambda item: -len(item[1])):
    lines = sorted({p.line for p in found})
    rows = f'{len(lines)} row{"s" * (len(lines) > 1)}'
    parts.append(f'  {kind}: {rows}, line{"s" * (len(lines) > 1)} {_ranges(lines)}')
    parts += [f'    line {p.line}: {p.detail}' for p in found[:3] if p.detail]
  return '\n'.join(parts)


def _ranges(lines: list[int]) -> str:
  runs = []
  for line in lines:
    if runs and runs[-1][1] == line - 1:
      runs[-1][1] = line
    else:
      runs.append([line, line])
  return ', '.join(str(a) if a == b else f'{a}-{b}' for a, b in runs)


def fingerprint(manifest: Manifest) -> str:
  """Changes when the CSV, or the size or date of one of its pictures, changes: a cache key."""
  digest = hashlib.sha256(manifest.path.read_bytes())
  digest.update(repr(manifest.classes).encode())
  for row in manifest.rows:
    stat = (manifest.path.parent / row['path']).stat()
    digest.update(f'{row["path"]} {stat.st_size} {stat.st_mtime_ns}\n'.encode())
  return digest.hexdigest()[:16]
