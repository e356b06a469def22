"""Reads CFEE, 22 basic and compound emotions (see README.md in this folder)."""

from pathlib import Path

from ferjax.datasets.folders import choose
from ferjax.datasets.listing import Listing, Problem, pictures
from ferjax.labels import CLASSES

PROTOCOLS = ('ldl_alsg', 'ten_fold')
LAYOUT = """
cfee/CFEE_Database_230/01-04/Images1/02_339_3470.jpg     emotion, subject, running number
"""
LABELS = {
  '01': 'neutral',
  '02': 'happiness',
  '03': 'sadness',
  '04': 'fear',
  '05': 'anger',
  '06': 'surprise',
  '07': 'disgust',
}


def parse(folder: Path, *, protocol: str = 'ldl_alsg') -> Listing:
  """Parses neutral and the six basic emotions. Action units (an .xls sheet) are not read.

  01 is neutral. That 02 to 07 are in the order of the paper's table is inferred: verify it with the
  sheet `summary` of `AU_annotation_all_subjects.xls`.

  Args:
    folder: Contains the pictures, at any depth.
    protocol: `ldl_alsg`: all 230 x 7 pictures are `test`. `ten_fold`: 10 folds by subject.

  Raises:
    InputError: the folder has another layout, or an option is unknown.
  """
  choose('config.data.protocol', protocol, PROTOCOLS)
  found, skipped = pictures(folder, r'(0[1-9]|1\d|2[0-2])_(\d{3})_\d+\.jpg', LAYOUT)
  split = 'test' if protocol == 'ldl_alsg' else 'train'
  rows = []
  for path, match in found:
    if match[1] in LABELS:
      label = LABELS[match[1]]
      rows.append({'path': path, 'split': split, 'label': label, 'subject': match[2]})
    else:
      skipped.append(Problem(0, 'compound emotion', path))
  known = {split: (1610,), 'subjects': (230,)}
  known |= {f'{split}/{name}': (230,) for name in CLASSES}
  folds = 0 if protocol == 'ldl_alsg' else 10
  return Listing(folder, CLASSES, rows, (), skipped, known=known, folds=folds)
