"""Reads CMU Multi-PIE, faces from thirteen angles in many lights (see README.md in this folder)."""

from collections.abc import Sequence
from pathlib import Path

from ferjax.datasets.folders import choose, wrong_folder
from ferjax.datasets.listing import Listing, Problem, held_out, pictures
from ferjax.errors import InputError

PROTOCOLS = ('dml_net', 'all_cameras')
LAYOUT = """
multi_pie/data/session02/multiview/108/01/05_1/108_02_01_051_17.png
          subject_session_recording_camera_illumination
"""
CLASSES = ('neutral', 'happiness', 'surprise', 'disgust', 'squint', 'scream')
LABELS = {  # by session and recording
  (1, 1): 'neutral',
  (2, 1): 'neutral',
  (3, 1): 'neutral',
  (4, 1): 'neutral',
  (4, 2): 'neutral',
  (1, 2): 'happiness',
  (3, 2): 'happiness',
  (2, 2): 'surprise',
  (2, 3): 'squint',
  (3, 3): 'disgust',
  (4, 3): 'scream',
}
YAWS = {  # by camera; 110 is camera 11_0
  '110': -90,
  '120': -75,
  '090': -60,
  '080': -45,
  '130': -30,
  '140': -15,
  '051': 0,
  '050': 15,
  '041': 30,
  '190': 45,
  '200': 60,
  '010': 75,
  '240': 90,
}
OVERHEAD = ('191', '081')


def parse(
  folder: Path, *, protocol: str = 'dml_net', illuminations: tuple[int, ...] = (7,)
) -> Listing:
  """Parses the set. Squint and scream are not canonical classes: select them with
  config.data.classes.

  Camera 24_0 sees the right profile, yaw 90, and 11_0 the left profile, -90. The signs of the yaws
  in between are inferred from the order of the cameras.

  Args:
    folder: Contains the sessions, at any depth.
    protocol: `dml_net`: the five cameras up to 30 degrees. `all_cameras`: the thirteen at the
      height of the face. Both test on 44 of 337 people, spread evenly: the paper does not say
      which, nor how its 8,100 and 660 pictures were chosen.
    illuminations: Numbers of the lights, 0 to 19. Light 7 is usually taken as the frontal flash
      (unverified, as is the range).

  Raises:
    InputError: the folder has another layout, or an option is unknown.
  """
  choose('config.data.protocol', protocol, PROTOCOLS)
  if isinstance(illuminations, str) or not isinstance(illuminations, Sequence):
    raise InputError(
      f'config.data.options.multi_pie.illuminations is {illuminations!r}: give a tuple of numbers, '
      'such as (7,)'
    )
  found, skipped = pictures(
    folder, r'(\d{3})_(0[1-4])_(0[1-4])_(\d{3})_(\d{2})\.(?:png|jpe?g)', LAYOUT
  )
  rows, problems = [], []
  for path, match in found:
    subject, session, recording, camera, light = match.groups()
    label = LABELS.get((int(session), int(recording)))
    yaw = YAWS.get(camera)
    if camera in OVERHEAD:
      skipped.append(Problem(0, 'overhead camera', path))
    elif yaw is None:
      problems.append(Problem(0, 'unknown camera', path))
    elif label is None:
      problems.append(Problem(0, 'session and recording without an expression', path))
    elif int(light) not in illuminations:
      skipped.append(Problem(0, 'other illumination', path))
    elif protocol == 'dml_net' and abs(yaw) > 30:
      skipped.append(Problem(0, f'not of protocol {protocol}', path))
    else:
      rows.append({'path': path, 'label': label, 'subject': subject, 'yaw_bin': yaw})
  if not rows:
    raise wrong_folder(folder, LAYOUT, f'no picture of protocol {protocol} under {illuminations}')
  test = held_out((row['subject'] for row in rows), 44 / 337)
  for row in rows:
    row['split'] = 'test' if row['subject'] in test else 'train'
  return Listing(folder, CLASSES, rows, problems, skipped, known={'subjects': (337,)})
