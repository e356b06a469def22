"""Reads the basic set of RAF-DB (see README.md in this folder)."""

import re
from pathlib import Path

import numpy as np

from ferjax.datasets.folders import choose, files, find, wrong_folder
from ferjax.datasets.listing import Listing, Problem, text_lines
from ferjax.labels import CLASSES

PROTOCOLS = ('basic',)
IMAGES = ('aligned', 'original')
LAYOUT = """
raf_db/basic/EmoLabel/list_patition_label.txt          lines such as "train_00001.jpg 5"
raf_db/basic/Image/aligned/train_00001_aligned.jpg     or, with images=original:
raf_db/basic/Image/original/train_00001.jpg
"""
LABELS = dict(
  zip(
    '1234567',
    ('surprise', 'fear', 'disgust', 'happiness', 'sadness', 'anger', 'neutral'),
    strict=True,
  )
)
COUNTS = {
  'train': (1290, 281, 717, 4772, 1982, 705, 2524),
  'test': (329, 74, 160, 1185, 478, 162, 680),
}
KNOWN = {split: (sum(counts),) for split, counts in COUNTS.items()} | {
  f'{split}/{name}': (count,)
  for split, counts in COUNTS.items()
  for name, count in zip(LABELS.values(), counts, strict=True)
}


def parse(folder: Path, *, protocol: str = 'basic', images: str = 'aligned') -> Listing:
  """Parses the set.

  Args:
    folder: Contains `basic/`, or is `basic/`.
    protocol: `basic`: train and test by the names of the pictures.
    images: `aligned` (100 px, no landmarks), or `original`; these have Face++'s 37 landmarks if
      every picture has its file `Annotation/auto/<name>_auto_attri.txt`.

  Raises:
    InputError: the folder has another layout, or an option is unknown.
  """
  choose('config.data.protocol', protocol, PROTOCOLS)
  choose('config.data.options.raf_db.images', images, IMAGES)
  list_file = find(folder, 'EmoLabel', r'list_patition_label\.txt')
  if not list_file:
    raise wrong_folder(folder, LAYOUT)
  basic = list_file.parent.parent
  pictures = find(basic, 'Image', images, depth=0)
  if not pictures:
    raise wrong_folder(basic, LAYOUT, f'there is no folder Image/{images}')
  path_of = {Path(name).stem.lower(): name for name in files(pictures)}
  suffix = '_aligned' if images == 'aligned' else ''
  points = _landmark_files(basic) if images == 'original' else {}

  rows, problems, seen = [], [], set()
  for number, line in enumerate(text_lines(list_file), 1):
    fields = line.split()
    if not fields:
      continue
    if len(fields) != 2 or not re.fullmatch(r'(train|test)_\d+\.jpg', fields[0], re.IGNORECASE):
      problems.append(Problem(number, "line is not 'train_00001.jpg 5'", repr(line)))
      continue
    name, label = fields
    stem = Path(name).stem.lower()
    if label not in LABELS:
      problems.append(Problem(number, 'label is not 1 to 7', repr(line)))
    elif stem in seen:
      problems.append(Problem(number, 'repeated picture', name))
    elif stem + suffix not in path_of:
      problems.append(Problem(number, 'missing file', f'{stem}{suffix}.jpg in {pictures}'))
    else:
      path = (pictures / path_of[stem + suffix]).relative_to(basic).as_posix()
      row = {'path': path, 'name': name, 'split': stem.split('_')[0], 'label': LABELS[label]}
      if stem in points:
        try:
          row['landmarks'] = _read_landmarks(points[stem])
        except (ValueError, OSError) as error:
          detail = f'{points[stem]}: {error}'
          problems.append(Problem(number, 'landmarks are not 37 lines "x y"', detail))
          seen.add(stem)
          continue
      rows.append(row | {'line': number})
    seen.add(stem)
  unlisted = sorted(set(path_of) - {stem + suffix for stem in seen})
  skipped = [Problem(0, 'picture that is not in the list', path_of[stem]) for stem in unlisted]
  if not rows:
    raise wrong_folder(basic, LAYOUT, f'{list_file.name} and Image/{images} have no row in common')
  return Listing(basic, CLASSES, rows, problems, skipped, known=KNOWN)


def _landmark_files(basic: Path) -> dict[str, Path]:
  place = find(basic, 'Annotation', 'auto', depth=0)
  names = files(place) if place else ()
  return {name.lower().removesuffix('_auto_attri.txt'): place / name for name in names}


def _read_landmarks(path: Path) -> np.ndarray:
  values = np.array(path.read_text(encoding='utf-8').split(), np.float32)
  if len(values) < 74 or not np.isfinite(values[:74]).all():
    raise ValueError(f'{len(values)} numbers; 74 finite numbers are needed')
  return values[:74].reshape(37, 2)
