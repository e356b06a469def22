"""Reads ExpW, faces in pictures from the web (see README.md in this folder)."""

import hashlib
from pathlib import Path

from ferjax.datasets.folders import choose, files, find, wrong_folder
from ferjax.datasets.listing import Listing, Problem, path_troubles, text_lines
from ferjax.labels import CLASSES

PROTOCOLS = ('by_picture',)
LAYOUT = """
expw/label/label.lst      picture, face, top, left, right, bottom, confidence, label
expw/image/origin/*.jpg
"""
LABELS = ('anger', 'disgust', 'fear', 'happiness', 'sadness', 'surprise', 'neutral')


def parse(folder: Path, *, protocol: str = 'by_picture') -> Listing:
  """Parses the set; faces are cut out of their pictures.

  Args:
    folder: Contains `label/` and `image/`.
    protocol: `by_picture`: ExpW has no official split. This split uses a hash of the picture's
      name, so that faces of one picture stay together: 8 in 10 train, 1 val, 1 test.

  Raises:
    InputError: the folder has another layout, or an option is unknown.
  """
  choose('config.data.protocol', protocol, PROTOCOLS)
  list_file = find(folder, 'label', r'label\.lst') or find(folder, r'label\.lst')
  images = find(folder, 'image', 'origin') or find(folder, 'origin')
  if not list_file or not images:
    raise wrong_folder(folder, LAYOUT)
  path_of = {path.lower(): path for path in files(images)}
  rows, problems, skipped, seen, named = [], [], [], set(), set()
  for number, line in enumerate(text_lines(list_file), 1):
    if not line.strip():
      continue
    picture, *fields = line.rsplit(maxsplit=7)
    if line in seen:
      skipped.append(Problem(number, 'repeated line', line))
      continue
    seen.add(line)
    try:
      face, top, left, right, bottom = (int(float(field)) for field in fields[:5])
      label = dict(enumerate(LABELS))[int(fields[6])]
    except (ValueError, OverflowError, IndexError, KeyError):
      problems.append(Problem(number, 'line is not as expected', repr(line)))
      continue
    path = path_of.get(picture.lower())
    if not path:
      (kind, _), *_ = path_troubles(picture, images) or [('missing file', '')]
      problems.append(Problem(number, kind, repr(line)))
      continue
    name = f'{picture}#{face}'
    if name in named:
      problems.append(Problem(number, 'face with two entries', repr(line)))
      continue
    named.add(name)
    place = hashlib.sha256(picture.encode()).digest()[0] % 10
    rows.append(
      {
        'path': (images / path).relative_to(folder).as_posix(),
        'name': name,
        'box': (left, top, right, bottom),
        'split': {0: 'test', 1: 'val'}.get(place, 'train'),
        'label': label,
        'line': number,
      }
    )
  if not rows:
    raise wrong_folder(folder, LAYOUT, f'no face of {list_file} has its picture in {images}')
  return Listing(folder, CLASSES, rows, problems, skipped, source=list_file)
