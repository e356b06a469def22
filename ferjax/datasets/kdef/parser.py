"""Reads KDEF, seven expressions from five angles (see README.md in this folder)."""

from pathlib import Path

from ferjax.datasets.folders import choose
from ferjax.datasets.listing import Listing, pictures
from ferjax.labels import CLASSES

PROTOCOLS = ('dml_net',)
LAYOUT = """
kdef/KDEF/AF01/AF01ANFL.JPG     session A or B, sex, number, expression, angle
"""
LABELS = {
  'AF': 'fear',
  'AN': 'anger',
  'DI': 'disgust',
  'HA': 'happiness',
  'NE': 'neutral',
  'SA': 'sadness',
  'SU': 'surprise',
}
YAWS = {'FL': -90, 'HL': -45, 'S': 0, 'HR': 45, 'FR': 90}


def parse(folder: Path, *, protocol: str = 'dml_net') -> Listing:
  """Parses the set. The sign of the yaw is our convention: full left is -90.

  Args:
    folder: Contains the pictures, at any depth.
    protocol: `dml_net`: 5 folds by subject, each with 56 people for training and 14 for the test.
      The paper does not say which people.

  Raises:
    InputError: the folder has another layout, or an option is unknown.
  """
  choose('config.data.protocol', protocol, PROTOCOLS)
  found, skipped = pictures(
    folder,
    r'([AB])([FM])(0[1-9]|[12]\d|3[0-5])(AF|AN|DI|HA|NE|SA|SU)(FL|HL|S|HR|FR)\.JPG',
    LAYOUT,
  )
  rows = [
    {
      'path': path,
      'split': 'train',
      'label': LABELS[match[4].upper()],
      'subject': f'{match[2].upper()}{match[3]}',
      'yaw_bin': YAWS[match[5].upper()],
    }
    for path, match in found
  ]
  known = {'train': range(4893, 4901), 'subjects': (70,)}
  return Listing(folder, CLASSES, rows, (), skipped, known=known, folds=5)
