"""Reads the published forms of FER2013 (see README.md in this folder)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ferjax.datasets.folders import choose, find, wrong_folder
from ferjax.datasets.listing import Listing, Problem, csv_rows, pictures
from ferjax.images.files import png
from ferjax.labels import CLASSES, canonical

PROTOCOLS = ('official',)
LAYOUT = """
fer2013/fer2013.csv            columns emotion, pixels, Usage; or
fer2013/icml_face_data.csv     columns emotion, Usage, pixels; or
fer2013/train.csv              columns emotion, pixels (its test.csv has no labels); or
fer2013/train/angry/*.jpg      and fer2013/test/angry/*.jpg (Kaggle's folders)
"""
LABELS = ('anger', 'disgust', 'fear', 'happiness', 'sadness', 'surprise', 'neutral')
SPLITS = {'training': 'train', 'publictest': 'val', 'privatetest': 'test'}
KNOWN = {'train': (28709,), 'val': (3589,), 'test': (3589,)}


def parse(folder: Path, *, protocol: str = 'official') -> Listing:
  """Parses the set.

  Args:
    folder: Contains a CSV file or Kaggle's folders.
    protocol: `official`: Training, PublicTest and PrivateTest are train, val and test. Kaggle's
      folders have train and test; their test is PublicTest and PrivateTest together.

  Raises:
    InputError: the folder has another layout, or an option is unknown.
  """
  choose('config.data.protocol', protocol, PROTOCOLS)
  path = find(folder, r'(fer2013|icml_face_data)\.csv') or find(folder, r'train\.csv')
  if not path:
    return _parse_folders(folder)
  rows, problems = [], []
  for line, emotion, usage, image in read_csv(path):
    if isinstance(image, Problem):
      problems.append(image)
    elif usage not in SPLITS:
      problems.append(
        Problem(line, 'Usage is not Training, PublicTest or PrivateTest', repr(usage))
      )
    elif emotion not in ('0', '1', '2', '3', '4', '5', '6'):
      problems.append(Problem(line, 'emotion is not 0 to 6', repr(emotion)))
    else:
      name = f'{SPLITS[usage]}_{line - 2:05}'
      label = LABELS[int(emotion)]
      rows.append(
        {'image': image, 'name': name, 'split': SPLITS[usage], 'label': label, 'line': line}
      )
  skipped = []
  if path.name.lower() == 'train.csv':
    skipped.append(Problem(0, 'test.csv has no labels', 'this copy has no test split'))
  return Listing(path.parent, CLASSES, rows, problems, skipped, known=KNOWN, source=path)


def read_csv(path: Path) -> Iterator[tuple[int, str, str, bytes | Problem]]:
  """Yields (line, emotion, usage in lower case, PNG or the problem of the pixels) for each row.

  Raises:
    InputError: the file is not a CSV with the columns emotion and pixels.
  """
  rows = csv_rows(path)
  _, header = next(rows, (1, []))
  place = {name.strip().lower(): number for number, name in enumerate(header)}
  if not {'emotion', 'pixels'} <= set(place):
    raise wrong_folder(path, LAYOUT, f'its columns are {header[:5]}')
  for line, fields in rows:
    values = {name: fields[i].strip() if i < len(fields) else '' for name, i in place.items()}
    usage = values.get('usage') or 'training'
    yield line, values['emotion'], usage.lower(), _picture(line, values['pixels'])


def _picture(line: int, text: str) -> bytes | Problem:
  try:
    pixels = bytes(map(int, text.split()))
  except ValueError as error:
    return Problem(line, 'pixels are not 0 to 255', str(error))
  if len(pixels) != 48 * 48:
    return Problem(line, 'there are not 48 x 48 pixels', f'{len(pixels)}')
  return png(Image.fromarray(np.frombuffer(pixels, np.uint8).reshape(48, 48)))


def _parse_folders(folder: Path) -> Listing:
  found, skipped = pictures(
    folder,
    r'(train|test)/(angry|disgust|fear|happy|sad|surprise|neutral)/[^/]+\.(?:jpe?g|png)',
    LAYOUT,
  )
  rows = [
    {'path': path, 'split': match[1].lower(), 'label': canonical(match[2])} for path, match in found
  ]
  return Listing(folder, CLASSES, rows, (), skipped, known={'train': (28709,), 'test': (7178,)})
