"""Reads SFEW 2.0, frames of films (see README.md in this folder)."""

from pathlib import Path

from ferjax.datasets.folders import choose, wrong_folder
from ferjax.datasets.listing import Listing, Problem, pictures
from ferjax.labels import CLASSES, canonical

PROTOCOLS = ('official',)
IMAGES = ('aligned', 'original')
LAYOUT = """
sfew/Train/Angry/AlexEmma_012701000_00000070.png, Disgust, Fear, Happy, Neutral, Sad, Surprise
sfew/Val/Angry/...
sfew/Train_Aligned_Faces/Angry/..., sfew/Val_Aligned_Faces_new/Angry/...    the aligned faces
"""
KNOWN = {
  'aligned': {'train': range(879, 892), 'test': range(406, 432)},
  'original': {'train': (958,), 'test': (436,)},
}


def parse(folder: Path, *, protocol: str = 'official', images: str = 'aligned') -> Listing:
  """Parses the set.

  Args:
    folder: Contains the unpacked archives.
    protocol: `official`: SFEW's Val is `test`, as in papers; SFEW's own test set has no labels.
    images: `aligned` faces, or the `original` frames of films. If the folder has only one of the
      two kinds, by `Aligned` in the folder names, it is used for either value.

  Raises:
    InputError: the folder has another layout, or an option is unknown.
  """
  choose('config.data.protocol', protocol, PROTOCOLS)
  choose('config.data.options.sfew.images', images, IMAGES)
  found, skipped = pictures(
    folder,
    r'(Train|Val)([^/]*)/(?:[^/]+/)?(Angry|Disgust|Fear|Happy|Neutral|Sad|Surprise)/'
    r'[^/]+_\d{9}_\d{8}\.(?:png|jpg)',
    LAYOUT,
  )
  both = len({'aligned' in match[2].lower() for _, match in found}) == 2
  rows = []
  for path, match in found:
    if both and ('aligned' in match[2].lower()) != (images == 'aligned'):
      skipped.append(Problem(0, f'not of images={images}', path))
    else:
      split = 'train' if match[1].lower() == 'train' else 'test'
      rows.append({'path': path, 'split': split, 'label': canonical(match[3])})
  lacking = {'train', 'test'} - {row['split'] for row in rows}
  if lacking:
    name = {'train': 'Train', 'test': 'Val'}[min(lacking)]
    raise wrong_folder(folder, LAYOUT, f'there is no picture of {name}')
  return Listing(folder, CLASSES, rows, (), skipped, known=KNOWN[images])
