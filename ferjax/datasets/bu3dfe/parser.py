"""Reads BU-3DFE's pictures, and views rendered from its meshes (see README.md in this folder)."""

from pathlib import Path

from ferjax.datasets.folders import choose, wrong_folder
from ferjax.datasets.listing import Listing, Problem, held_out, pictures
from ferjax.labels import CLASSES

PROTOCOLS = ('frontal', 'dml_net')
LAYOUT = """
bu3dfe/F0001/F0001_AN01WH_F2D.bmp      pictures of the set
bu3dfe/F0001/F0001_AN01WH_y+30.png     views at yaw 30 degrees, which you render from its meshes
"""
LABELS = {
  'NE': 'neutral',
  'AN': 'anger',
  'DI': 'disgust',
  'FE': 'fear',
  'HA': 'happiness',
  'SA': 'sadness',
  'SU': 'surprise',
}
YAWS = (-90, -60, -45, -30, 0, 30, 45, 60, 90)


def parse(folder: Path, *, protocol: str = 'frontal') -> Listing:
  """Parses the set. Race codes other than WH and AM are unverified; any two letters are accepted.

  Args:
    folder: Contains a folder for each subject, at any depth.
    protocol: `frontal`: the pictures of the set, 7 classes, 10 folds by subject. `dml_net`:
      rendered views at the yaws 0, 30, 45, 60, 90 to both sides, six expressions without neutral;
      70 people for training and 30 for the test, spread evenly. The paper's counts (14,112 and
      6,264 pictures) do not fit 70 and 30 people, who have 15,120 and 6,480.

  Raises:
    InputError: the folder has another layout, or an option is unknown.
  """
  choose('config.data.protocol', protocol, PROTOCOLS)
  found, skipped = pictures(
    folder,
    r'([FM]\d{4})_(?:(NE)00|(AN|DI|FE|HA|SA|SU)0[1-4])[A-Z]{2}_(?:F2D|y([+-]?\d{1,2}))'
    r'\.(?:bmp|png|jpg)',
    LAYOUT,
  )
  rows = []
  for path, match in found:
    label = LABELS[(match[2] or match[3]).upper()]
    row = {'path': path, 'split': 'train', 'label': label, 'subject': match[1].upper()}
    yaw = None if match[4] is None else int(match[4])
    if (protocol == 'dml_net') != (yaw is not None):
      skipped.append(Problem(0, f'not of protocol {protocol}', path))
    elif yaw is None:
      rows.append(row)
    elif label == 'neutral' or yaw not in YAWS:
      skipped.append(Problem(0, 'neutral, or another yaw', path))
    else:
      rows.append(row | {'yaw_bin': yaw})
  if not rows:
    raise wrong_folder(folder, LAYOUT, f'there is no picture of protocol {protocol}')
  if protocol == 'frontal':
    known = {'train': (2500,), 'train/neutral': (100,), 'subjects': (100,)}
    return Listing(folder, CLASSES, rows, (), skipped, known=known, folds=10)
  test = held_out((row['subject'] for row in rows), 0.3)
  for row in rows:
    row['split'] = 'test' if row['subject'] in test else 'train'
  known = {'train': (15120,), 'test': (6480,), 'subjects': (100,)}
  return Listing(folder, CLASSES[1:], rows, (), skipped, known=known)
