"""Reads CK+, picture sequences from a neutral face to a peak (see README.md in this folder)."""

import re
from pathlib import Path

import numpy as np

from ferjax.datasets.folders import choose, files, wrong_folder
from ferjax.datasets.listing import Listing, Problem
from ferjax.labels import CLASSES, CLASSES_8

PROTOCOLS = ('last_three', 'ldl_alsg')
LAYOUT = """
ck_plus/cohn-kanade-images/S005/001/S005_001_00000011.png
ck_plus/Emotion/S005/001/S005_001_00000011_emotion.txt         for 327 of 593 sequences
ck_plus/Landmarks/S005/001/S005_001_00000011_landmarks.txt     optional
ck_plus/FACS/S005/001/S005_001_00000011_facs.txt               optional
"""
LABELS = {
  1: 'anger',
  2: 'contempt',
  3: 'disgust',
  4: 'fear',
  5: 'happiness',
  6: 'sadness',
  7: 'surprise',
}
GRAMMAR = re.compile(
  r'(?:.*/)?(S\d{3})/(\d{3})/\1_\2_(\d{8})(\.png|_emotion\.txt|_landmarks\.txt|_facs\.txt)', re.I
)


def parse(folder: Path, *, protocol: str = 'last_three') -> Listing:
  """Parses the set. Landmarks (68) and action units are read if every sequence has them.

  Action units are coded at the peak. The last frames get these intensities, the first frame gets 0.
  A coded intensity of 0 means "present, intensity unknown" (unverified) and is stored as 1.

  Args:
    folder: Contains the pictures and the labels, at any depth.
    protocol: `last_three`: of each sequence with a label, the first frame as neutral and the last
      three; 8 classes, 10 folds by subject. `ldl_alsg`: the first frame as neutral and the last,
      the latter without contempt; 7 classes, all 636 pictures are `test`.

  Raises:
    InputError: the folder has another layout, or an option is unknown.
  """
  choose('config.data.protocol', protocol, PROTOCOLS)
  found = {'.png': {}, '_emotion.txt': {}, '_landmarks.txt': {}, '_facs.txt': {}}
  skipped = []
  for path in files(folder):
    match = GRAMMAR.fullmatch(path)
    if match:
      sequence, kind = (match[1].upper(), match[2]), match[4].lower()
      if found[kind].setdefault(sequence, {}).setdefault(match[3], path) != path:
        skipped.append(Problem(0, 'second copy', path))
  frames, emotions, landmarks, units = found.values()
  if not frames or not emotions:
    what = 'Emotion' if frames else 'pictures'
    raise wrong_folder(folder, LAYOUT, f'there are no {what} of CK+')

  rows, problems = [], []
  for sequence in sorted({*frames, *emotions}):
    name = '/'.join(sequence)
    if sequence not in emotions:
      skipped.append(Problem(0, 'sequence without a label', name))
      continue
    path = min(emotions[sequence].values())
    label = _read_label(folder / path)
    if not label:
      problems.append(Problem(0, 'label is not 1 to 7', path))
    elif len(frames.get(sequence, ())) < 4:
      problems.append(Problem(0, 'sequence has fewer than 4 pictures', name))
    else:
      numbers = sorted(frames[sequence])
      au = _read_units(folder / min(units[sequence].values())) if sequence in units else None
      for number, what in _frames(numbers, label, protocol):
        row = {'path': frames[sequence][number], 'label': what, 'subject': sequence[0]}
        row['split'] = 'test' if protocol == 'ldl_alsg' else 'train'
        points = _read_landmarks(folder, landmarks.get(sequence, {}).get(number))
        if points is not None:
          row['landmarks'] = points
        if au is not None:
          row['au'] = {} if what == 'neutral' else au
        rows.append(row)
  names = tuple(sorted({name for row in rows for name in row.get('au', ())}))
  for row in rows:
    if 'au' in row:
      row['au'] = [row['au'].get(name, 0.0) for name in names]
  if protocol == 'ldl_alsg':
    known = {'test': (636,), 'test/neutral': (327,)}
    return Listing(folder, CLASSES, rows, problems, skipped, known=known, action_units=names)
  known = {'train': (1308,), 'train/neutral': (327,), 'subjects': (118,)}
  return Listing(
    folder, CLASSES_8, rows, problems, skipped, known=known, folds=10, action_units=names
  )


def _frames(numbers, label, protocol):
  first = (numbers[0], 'neutral')
  if protocol == 'last_three':
    return [first, *((number, label) for number in numbers[-3:])]
  return [first] if label == 'contempt' else [first, (numbers[-1], label)]


def _read_label(path: Path) -> str:
  try:
    return LABELS.get(float(path.read_text(encoding='utf-8')), '')
  except (ValueError, OSError):
    return ''


def _read_landmarks(folder, path) -> np.ndarray | None:
  try:
    values = np.array((folder / path).read_text(encoding='utf-8').split(), np.float32)
  except (TypeError, ValueError, OSError):
    return None
  return values.reshape(68, 2) if values.size == 136 and np.isfinite(values).all() else None


def _read_units(path: Path) -> dict[str, float] | None:
  try:
    values = np.array(path.read_text(encoding='utf-8').split(), float)
  except (ValueError, OSError):
    return None
  if values.size % 2 or not np.isfinite(values).all():
    return None
  return {f'AU{int(unit):02}': float(strength) or 1.0 for unit, strength in values.reshape(-1, 2)}
