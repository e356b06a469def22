"""Reads AffectNet, in the old or the new release (see README.md in this folder)."""

from pathlib import Path

import numpy as np

from ferjax.datasets.folders import choose, files, find, wrong_folder
from ferjax.datasets.listing import Listing, Problem, csv_rows, path_troubles
from ferjax.labels import CLASSES, CLASSES_8

PROTOCOLS = ('eight', 'seven')
LAYOUT = """
affectnet/train_set/images/0.jpg, annotations/0_exp.npy, 0_lnd.npy; val_set; or the old release:
affectnet/Manually_Annotated_file_lists/training.csv, validation.csv
affectnet/Manually_Annotated_Images/<sub-folder>/<hash>.jpg
"""
LABELS = ('neutral', 'happiness', 'sadness', 'surprise', 'fear', 'disgust', 'anger', 'contempt')
OTHERS = {8: 'none', 9: 'uncertain', 10: 'non-face'}
COLUMNS = (
  'subdirectory_filepath',
  'face_x',
  'face_y',
  'face_width',
  'face_height',
  'facial_landmarks',
  'expression',
  'valence',
  'arousal',
)


def parse(folder: Path, *, protocol: str = 'eight') -> Listing:
  """Parses the set, with 68 landmarks. Valence and arousal are not read.

  Args:
    folder: Either release. Of the old one, only the manually annotated pictures are read, and faces
      are cut out by their boxes.
    protocol: `eight` classes or `seven` (without contempt). AffectNet's validation set is `test`.

  Raises:
    InputError: the folder has another layout, or an option is unknown.
  """
  choose('config.data.protocol', protocol, PROTOCOLS)
  new = find(folder, 'train_set', 'images')
  lists = None if new else find(folder, 'Manually_Annotated_file_lists')
  if new:
    found = _parse_new(new.parent.parent)
  elif lists:
    found = _parse_old(lists)
  else:
    raise wrong_folder(folder, LAYOUT)
  if protocol == 'eight':
    return found._replace(known={'test': (4000,)})
  rows = [row for row in found.rows if row['label'] != 'contempt']
  left_out = {'contempt': len(found.rows) - len(rows)}
  return found._replace(classes=CLASSES, rows=rows, other_classes=left_out, known={'test': (3500,)})


def _parse_new(root: Path) -> Listing:
  rows, problems, skipped = [], [], []
  for name, split in (('train_set', 'train'), ('val_set', 'test')):
    images, notes = (find(root, name, part, depth=0) for part in ('images', 'annotations'))
    if not images or not notes:
      raise wrong_folder(root, LAYOUT, f'{name} has no folder images or no folder annotations')
    paths = files(images)
    for path in paths:
      picture = (images / path).relative_to(root).as_posix()
      try:
        number = float(str(_load(notes / f'{Path(path).stem}_exp.npy').item()))
        if not number.is_integer():
          raise ValueError(f'expression {number}')
        landmarks = _load(notes / f'{Path(path).stem}_lnd.npy').astype(np.float32)
        if landmarks.size != 136 or not np.isfinite(landmarks).all():
          raise ValueError(f'{landmarks.size} landmark coordinates, not 136 finite ones')
      except FileNotFoundError as error:
        problems.append(Problem(0, 'missing file', f'{error.filename}'))
        continue
      except (ValueError, TypeError, OSError) as error:
        problems.append(Problem(0, 'annotation cannot be used', f'{picture}: {error}'))
        continue
      row = {'path': picture, 'split': split, 'landmarks': landmarks.reshape(68, 2)}
      _add(rows, problems, skipped, row, 0, int(number))
    ending = '_exp.npy'
    noted = {path.removesuffix(ending) for path in files(notes) if path.endswith(ending)}
    lacking = sorted(noted - {Path(path).stem for path in paths})
    problems += [Problem(0, 'missing file', f'{images / stem}.jpg') for stem in lacking]
  return Listing(root, CLASSES_8, rows, problems, skipped)


def _load(path: Path) -> np.ndarray:
  try:
    with path.open('rb') as file:
      return np.lib.format.read_array(file, allow_pickle=False)
  except (ValueError, TypeError, EOFError, MemoryError, OverflowError) as error:
    raise ValueError(f'{path} is not an array of numbers ({error})') from error


def _parse_old(lists: Path) -> Listing:
  root = lists.parent
  images = find(root, 'Manually_Annotated_Images', depth=1)
  if not images:
    raise wrong_folder(root, LAYOUT, 'there is no folder Manually_Annotated_Images')
  path_of = {path.lower(): path for path in files(images)}
  rows, problems, skipped = [], [], []
  for name, split in (('training', 'train'), ('validation', 'test')):
    path = find(lists, rf'{name}\.csv', depth=0)
    if not path:
      raise wrong_folder(root, LAYOUT, f'there is no {name}.csv in {lists.name}')
    columns = COLUMNS
    for line, fields in csv_rows(path):
      if fields[0].strip().lower() == COLUMNS[0]:
        columns = [field.strip().lower() for field in fields]
        continue
      record = dict(zip(columns, fields, strict=False))
      where = f'{path.name}: {record.get(COLUMNS[0])}'
      row, kind = _old_row(record, images, path_of)
      if kind:
        problems.append(Problem(line, kind, where))
      else:
        number = row.pop('expression')
        row['path'] = (images / row['path']).relative_to(root).as_posix()
        _add(rows, problems, skipped, row | {'split': split, 'line': line}, line, number)
  return Listing(root, CLASSES_8, rows, problems, skipped)


def _old_row(record, images, path_of):
  """(row, ''), or ({}, the reason why the record cannot be used)."""
  text = record.get('subdirectory_filepath', '').strip()
  path = path_of.get(text.lower())
  if not path:
    (kind, _), *_ = path_troubles(text, images) or [('missing file', '')]
    return {}, kind
  try:
    number = int(record['expression'])
    if number in OTHERS:
      return {'path': path, 'expression': number}, ''
    x, y, width, height = (
      int(float(record[f'face_{part}'])) for part in ('x', 'y', 'width', 'height')
    )
    landmarks = np.array(record['facial_landmarks'].split(';'), np.float32)
  except (KeyError, ValueError, OverflowError):
    return {}, 'face box, landmarks or expression are not numbers'
  if landmarks.size != 136 or not np.isfinite(landmarks).all():
    return {}, 'there are not 136 landmark coordinates'
  box = (x, y, x + width, y + height)
  return {'path': path, 'box': box, 'landmarks': landmarks.reshape(68, 2), 'expression': number}, ''


def _add(rows, problems, skipped, row, line, number):
  if number in OTHERS:
    skipped.append(Problem(line, f'expression {number}: {OTHERS[number]}', row['path']))
  elif not 0 <= number <= 7:
    problems.append(Problem(line, 'expression is not 0 to 10', f'{row["path"]}: {number}'))
  else:
    rows.append(row | {'label': LABELS[number]})
