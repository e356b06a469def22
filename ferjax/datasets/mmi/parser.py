"""Reads MMI's sequences from frames that were extracted before (see README.md in this folder)."""

import re
from pathlib import Path
from xml.etree import ElementTree

from ferjax.datasets.folders import choose, files, wrong_folder
from ferjax.datasets.listing import Listing, Problem
from ferjax.images.files import ENDINGS
from ferjax.labels import CLASSES

PROTOCOLS = ('middle_three', 'ldl_alsg')
LAYOUT = """
mmi/Sessions/1/S001-001.xml, session.xml          labels and views
mmi/Sessions/1/S001-001/00001.png, 00002.png ...  frames of S001-001.avi
"""
LABELS = {
  '1': 'anger',
  '2': 'disgust',
  '3': 'fear',
  '4': 'happiness',
  '5': 'sadness',
  '6': 'surprise',
}
GRAMMAR = re.compile(r'((?:.*/)?[^/]+)/(S\d{3})-(\d{3})/[^/]*?(\d+)\.[^./]+', re.I)


def parse(folder: Path, *, protocol: str = 'middle_three') -> Listing:
  """Parses the set. Action units (onset, apex, offset) are not read: marker types are unverified.

  Only sequences with a basic emotion are used, and only if `session.xml` gives view 0 (frontal) or
  no view. View 1 is a profile; view 2 shows both views through a mirror.

  Args:
    folder: Contains the sessions, at any depth.
    protocol: `middle_three`: the first frame as neutral and the middle three; 10 folds by subject.
      `ldl_alsg`: the first two frames as neutral and the middle third; all are `test`.

  Raises:
    InputError: the folder has another layout, or an option is unknown.
  """
  choose('config.data.protocol', protocol, PROTOCOLS)
  frames, labels, found = {}, {}, files(folder)
  for path in found:
    match = GRAMMAR.fullmatch(path)
    if match and path.lower().endswith(ENDINGS):
      key = match[1], f'{match[2]}-{match[3]}'.upper()
      frames.setdefault(key, []).append((int(match[4]), path))
    label = re.fullmatch(r'(.*)/(S\d{3}-\d{3})\.xml', path, re.I)
    if label:
      labels[label[1], label[2].upper()] = path
  if not labels:
    raise wrong_folder(folder, LAYOUT)

  rows, problems, skipped, sequences = [], [], [], 0
  for key, path in sorted(labels.items()):
    emotion = _tag(folder / path)
    view = _view(folder / key[0] / 'session.xml')
    if emotion is None or view is None:
      problems.append(Problem(0, 'XML cannot be read', path if emotion is None else key[0]))
    elif emotion not in LABELS:
      skipped.append(Problem(0, 'sequence without a basic emotion', path))
    elif view not in ('', '0'):
      skipped.append(Problem(0, 'view is not frontal', path))
    elif len(frames.get(key, ())) < 4:
      problems.append(Problem(0, 'fewer than 4 frames extracted', f'{"/".join(key)}/'))
    else:
      sequences += 1
      numbered = [frame for _, frame in sorted(frames[key])]
      neutral, expressive = _frames(len(numbered), protocol)
      for label, part in (('neutral', neutral), (LABELS[emotion], expressive)):
        for frame in numbered[part]:
          rows.append({'path': frame, 'label': label, 'subject': key[1][:4]})
  if not rows and not problems:
    raise wrong_folder(folder, LAYOUT, 'no sequence with a basic emotion')
  for row in rows:
    row['split'] = 'test' if protocol == 'ldl_alsg' else 'train'
  folds = 0 if protocol == 'ldl_alsg' else 10
  known = {'subjects': (30,)} if protocol == 'ldl_alsg' else {}
  return Listing(folder, CLASSES, rows, problems, skipped, known=known, folds=folds)


def _frames(count: int, protocol: str) -> tuple[slice, slice]:
  if protocol == 'ldl_alsg':
    return slice(0, 2), slice(max(2, count // 3), max(3, 2 * count // 3))
  middle = count // 2
  return slice(0, 1), slice(max(1, middle - 1), middle + 2)


def _tag(path: Path) -> str | None:
  root = _root(path)
  if root is None:
    return None
  for element in root.iter():
    if element.tag.rpartition('}')[2] == 'Metatag' and element.get('Name') == 'Emotion':
      return (element.get('Value') or '').strip()
  return ''


def _view(path: Path) -> str | None:
  if not path.exists():
    return ''
  root = _root(path)
  if root is None:
    return None
  return next((e.get('view') for e in root.iter() if e.get('view') is not None), '')


def _root(path):
  try:
    return ElementTree.parse(path).getroot()
  except (ElementTree.ParseError, LookupError, ValueError, OSError):  # also from the encoding
    return None
