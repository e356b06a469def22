"""Reads JAFFE, ten Japanese women (see README.md in this folder)."""

from pathlib import Path

from ferjax.datasets.bu3dfe.parser import LABELS
from ferjax.datasets.folders import choose
from ferjax.datasets.listing import Listing, pictures
from ferjax.labels import CLASSES

PROTOCOLS = ('leave_one_out',)
LAYOUT = """
jaffe/KA.AN1.39.tiff     subject, expression and its number, number of the picture
"""


def parse(folder: Path, *, protocol: str = 'leave_one_out') -> Listing:
  """Parses the set. The raters' mean scores for six adjectives are not read: neutral is missing.

  Args:
    folder: Contains the pictures, at any depth.
    protocol: `leave_one_out`: 10 folds; each tests on one person.

  Raises:
    InputError: the folder has another layout, or an option is unknown.
  """
  choose('config.data.protocol', protocol, PROTOCOLS)
  found, skipped = pictures(folder, r'([A-Z]{2})\.(AN|DI|FE|HA|NE|SA|SU)\d\.\d+\.tiff?', LAYOUT)
  rows = [
    {
      'path': path,
      'split': 'train',
      'label': LABELS[match[2].upper()],
      'subject': match[1].upper(),
    }
    for path, match in found
  ]
  known = {'train': (213,), 'subjects': (10,)}
  return Listing(folder, CLASSES, rows, (), skipped, known=known, folds=10)
