"""Reads a folder of pictures with a sub-folder for each class (see README.md in this folder)."""

from pathlib import Path

from ferjax.datasets.folders import files, wrong_folder
from ferjax.datasets.listing import Listing, Problem
from ferjax.datasets.manifest.parser import SPLITS
from ferjax.images.files import ENDINGS
from ferjax.labels import CLASSES_8, canonical

LAYOUT = """
FOLDER/train/happiness/any/name.jpg     and val/, test/; or, if all pictures are for training:
FOLDER/happiness/any/name.jpg
"""


def parse(folder: Path) -> Listing:
  """Parses a folder: first the splits, if there are any, then the classes, by name.

  Args:
    folder: Every picture is below `<split>/<class>/` or `<class>/`. The class names are the
      canonical ones for all of their synonyms (`Happy`), in canonical order, then other names in
      alphabetical order.

  Raises:
    InputError: the folder has another layout, or pictures are next to the splits, in none of them.
  """
  found = files(folder)
  of_pictures = (path for path in found if '/' in path and path.lower().endswith(ENDINGS))
  tops = {path.split('/')[0] for path in of_pictures}
  splits = {top for top in tops if top.lower() in SPLITS}
  if splits and splits != tops:
    others = ', '.join(sorted(tops - splits))
    what = f'{others} is next to {", ".join(sorted(splits))}, but is not a split: move it elsewhere'
    raise wrong_folder(folder, LAYOUT, what)
  depth = 1 if splits else 0
  rows, skipped = [], []
  for path in found:
    parts = path.split('/')
    if not path.lower().endswith(ENDINGS):
      skipped.append(Problem(0, 'no picture', path))
    elif len(parts) < depth + 2:
      skipped.append(Problem(0, 'picture in no class', path))
    else:
      split = SPLITS[parts[0].lower()] if depth else 'train'
      rows.append({'path': path, 'split': split, 'label': canonical(parts[depth])})
  if not rows:
    raise wrong_folder(folder, LAYOUT, 'there is no picture in a sub-folder')
  present = {row['label'] for row in rows}
  for name in present:
    try:
      name.encode()
    except UnicodeEncodeError as error:
      raise wrong_folder(folder, LAYOUT, f'the class name {name!r} is not UTF-8') from error
  classes = [name for name in CLASSES_8 if name in present]
  return Listing(folder, (*classes, *sorted(present - {*classes})), rows, (), skipped)
