"""Reads Oulu-CASIA, sequences from a neutral face to a peak (see README.md in this folder)."""

from pathlib import Path

from ferjax.datasets.folders import choose, wrong_folder
from ferjax.datasets.listing import Listing, Problem, pictures
from ferjax.labels import CLASSES, canonical

PROTOCOLS = ('last_three', 'ldl_alsg')
CAMERAS = ('VL', 'NI')
LIGHTS = ('Strong', 'Weak', 'Dark')
IMAGES = ('original', 'cropped')
LAYOUT = """
oulu_casia/B_OriginalImg/VL/Strong/P001/Anger/000.jpeg     or, with images=cropped:
oulu_casia/VL_Acropped/Strong/P001/Anger/000.jpeg
"""


def parse(
  folder: Path,
  *,
  protocol: str = 'last_three',
  camera: str = 'VL',
  light: str = 'Strong',
  images: str = 'original',
) -> Listing:
  """Parses the set. The folder names of other lights than Strong are unverified.

  Args:
    folder: Contains the pictures, at any depth.
    protocol: `last_three`: the last three frames of each sequence, six classes without neutral, 10
      folds by subject. `ldl_alsg`: the first two as neutral and the last two fifths; all are
      `test`.
    camera: `VL` (visible light) or `NI` (near infrared).
    light: `Strong`, `Weak` or `Dark`.
    images: `original`, or the `cropped` version.

  Raises:
    InputError: the folder has another layout, or an option is unknown.
  """
  choose('config.data.protocol', protocol, PROTOCOLS)
  for name, value, values in (
    ('camera', camera, CAMERAS),
    ('light', light, LIGHTS),
    ('images', images, IMAGES),
  ):
    choose(f'config.data.options.oulu_casia.{name}', value, values)
  found, skipped = pictures(
    folder,
    r'(VL|NI)(_Acropped)?/(Strong|Weak|Dark)/(P\d{3})/'
    r'(Anger|Disgust|Fear|Happiness|Sadness|Surprise)/(\d+)\.jpe?g',
    LAYOUT,
  )
  sequences = {}
  for path, match in found:
    kind = 'cropped' if match[2] else 'original'
    if (match[1].upper(), match[3].title(), kind) != (camera, light, images):
      skipped.append(Problem(0, f'not {camera}, {light}, {images}', path))
    else:
      key = match[4].upper(), canonical(match[5])
      sequences.setdefault(key, []).append((int(match[6]), path))
  if not sequences:
    raise wrong_folder(folder, LAYOUT, f'there is no picture of {camera}, {light}, {images}')
  rows, problems = [], []
  for (subject, label), numbered in sorted(sequences.items()):
    frames = [path for _, path in sorted(numbered)]
    if len(frames) < 4:
      problems.append(Problem(0, 'sequence has fewer than 4 pictures', frames[0]))
      continue
    neutral, expressive = ([], frames[-3:])
    if protocol == 'ldl_alsg':
      neutral, expressive = frames[:2], frames[-(2 * len(frames) // 5) :]
    for name, part in (('neutral', neutral), (label, expressive)):
      rows += [{'path': path, 'label': name, 'subject': subject} for path in part]
  for row in rows:
    row['split'] = 'test' if protocol == 'ldl_alsg' else 'train'
  if protocol == 'ldl_alsg':
    known = {'test/neutral': (960,), 'subjects': (80,)}
    return Listing(folder, CLASSES, rows, problems, skipped, known=known)
  known = {'train': (1440,), 'subjects': (80,)}
  return Listing(folder, CLASSES[1:], rows, problems, skipped, known=known, folds=10)
