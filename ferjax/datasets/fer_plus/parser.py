"""Reads FER+: votes of ten people for the pictures of FER2013 (see README.md in this folder)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ferjax.datasets.fer2013 import parser as fer2013
from ferjax.datasets.folders import choose, files, find, wrong_folder
from ferjax.datasets.listing import Listing, Problem, csv_rows
from ferjax.errors import InputError
from ferjax.labels import CLASSES_8

PROTOCOLS = ('official',)
RULES = ('argmax', 'majority')
LAYOUT = """
fer_plus/fer2013new.csv     and next to it, or in fer2013/: fer2013.csv or icml_face_data.csv; or
fer_plus/FER2013Train/label.csv, fer0000000.png ...         and FER2013Valid, FER2013Test
"""
VOTED = (
  'neutral',
  'happiness',
  'surprise',
  'sadness',
  'anger',
  'disgust',
  'fear',
  'contempt',
  'unknown',
  'nf',
)
FOLDERS = {'fer2013train': 'train', 'fer2013valid': 'val', 'fer2013test': 'test'}
PICTURES = 35887  # rows of fer2013.csv, and of fer2013new.csv


def parse(folder: Path, *, protocol: str = 'official', rule: str = 'argmax') -> Listing:
  """Parses the set, with label distributions: the votes for the eight classes, normalised.

  Args:
    folder: Contains `fer2013new.csv` or the folders `FER2013Train` and so on.
    protocol: `official`: Training, PublicTest and PrivateTest are train, val and test.
    rule: The class of a picture. `argmax`: the class with the most votes (at a tie, the first of
      VOTED). `majority`: single votes do not count, and a class needs more than half of the
      remaining votes. Pictures whose class is `unknown` or `not a face` are left out.

  Raises:
    InputError: the folder has another layout, or an option is unknown.
  """
  choose('config.data.protocol', protocol, PROTOCOLS)
  choose('config.data.options.fer_plus.rule', rule, RULES)
  votes_file = find(folder, r'fer2013new\.csv')
  if votes_file:
    return _parse_joined(folder, votes_file, rule)
  return _parse_folders(folder, rule)


def label_of(votes: Sequence[int], rule: str) -> tuple[str, list[float]]:
  """The class of a picture, or the reason why it has none, and its distribution over CLASSES_8."""
  votes = np.array(votes, float)
  if rule == 'majority':
    votes[votes <= 1] = 0
    if votes.max() <= 0.5 * votes.sum():
      return 'no majority', []
  name = VOTED[int(np.argmax(votes))]
  shares = votes[:8]
  if name in ('unknown', 'nf') or not shares.sum():
    return {'nf': 'voted not a face'}.get(name, 'voted unknown'), []
  return name, (shares / shares.sum()).tolist()


def _parse_joined(folder, votes_file, rule):
  pixel_file = find(folder, r'(fer2013|icml_face_data)\.csv')
  pixel_file = pixel_file or find(folder.parent / 'fer2013', r'(fer2013|icml_face_data)\.csv')
  if not pixel_file:
    raise wrong_folder(folder, LAYOUT, 'there are votes but no pictures (fer2013.csv)')
  (_, header), *lines = list(csv_rows(votes_file)) or [(1, [])]
  if [name.strip().lower() for name in header] != ['usage', 'image name', *VOTED]:
    raise wrong_folder(votes_file, LAYOUT, f'its columns are {header}')
  rows, problems, skipped = [], [], []
  joined = list(fer2013.read_csv(pixel_file))
  if len(joined) != len(lines):
    raise InputError(
      f'{votes_file} has {len(lines)} rows and {pixel_file} has {len(joined)}: they cannot be '
      f'joined. Both must have the {PICTURES} rows of the original, in its order'
    )
  for (line, fields), (_, _, usage, image) in zip(lines, joined, strict=True):
    votes = _votes(fields[2:])
    if isinstance(image, Problem):
      problems.append(image)
    elif votes is None or fields[0].strip().lower() not in fer2013.SPLITS:
      problems.append(Problem(line, 'row is not Usage, name and ten votes', ','.join(fields)))
    elif fields[0].strip().lower() != usage:
      problems.append(Problem(line, 'Usage differs from fer2013.csv', f'{fields[0]}, {usage}'))
    elif not fields[1].strip():
      skipped.append(Problem(line, 'no image name: not a face', ''))
    else:
      row = {'image': image, 'name': fields[1].strip(), 'split': fer2013.SPLITS[usage]}
      _add(rows, skipped, row | {'line': line}, votes, rule)
  return Listing(folder, CLASSES_8, rows, problems, skipped, source=votes_file)


def _parse_folders(folder, rule):
  rows, problems, skipped, root = [], [], [], None
  for name, split in FOLDERS.items():
    label_file = find(root or folder, name, r'label\.csv', depth=0 if root else 3)
    if not label_file:
      raise wrong_folder(folder, LAYOUT, f'there is no {name}/label.csv')
    place = label_file.parent
    root = place.parent
    path_of = {path.lower(): path for path in files(place)}
    lines = list(csv_rows(label_file))
    if not lines:
      raise wrong_folder(folder, LAYOUT, f'{label_file} is empty')
    for line, fields in lines:
      votes = _votes(fields[2:])
      if votes is None:
        problems.append(Problem(line, 'row is not name, box and ten votes', ','.join(fields)))
      elif fields[0].lower() not in path_of:
        problems.append(Problem(line, 'missing file', f'{place / fields[0]}'))
      else:
        path = (place / path_of[fields[0].lower()]).relative_to(root).as_posix()
        row = {'path': path, 'name': fields[0], 'split': split, 'line': line}
        _add(rows, skipped, row, votes, rule)
  return Listing(root, CLASSES_8, rows, problems, skipped)


def _add(rows, skipped, row, votes, rule):
  label, distribution = label_of(votes, rule)
  if distribution:
    rows.append(row | {'label': label, 'distribution': distribution})
  else:
    skipped.append(Problem(row['line'], label, row['name']))


def _votes(fields):
  try:
    votes = [int(float(text)) for text in fields]
  except (ValueError, OverflowError):
    return None
  return votes if len(votes) == 10 and min(votes) >= 0 and sum(votes) > 0 else None
