"""Finds the pictures and videos that the inputs on the command line name, in order."""

import fnmatch
import glob
import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ferjax.datasets import folders, listing
from ferjax.datasets.manifest import parser
from ferjax.errors import InputError
from ferjax.images import files

LOGGER = logging.getLogger(__name__)

VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv')
READ = (*files.ENDINGS, *VIDEOS)  # in folders


class Source(NamedTuple):
  """A file to read.

  Attributes:
    path: The path of a picture, or of a video if it has such an ending.
    landmarks: f32[k, 2], pixels of the picture, if a manifest has them; NaN for cells that are not
      finite numbers.
    error: The reason if it is already known that the file cannot be read.
  """

  path: Path
  landmarks: np.ndarray | None = None
  error: str = ''

  @property
  def is_video(self) -> bool:
    return self.path.suffix.lower() in VIDEOS and not self.error


def find(inputs: Sequence[str]) -> list[Source]:
  """The files that inputs name.

  Args:
    inputs: Pictures, videos, manifests (`.csv`), folders (with all sub-folders, in the order of
      names), patterns (`*`, `?`, `[ab]`, and `**` for any folders).

  Raises:
    InputError: an input names no picture or video. The message names the input.
  """
  return [source for name in inputs for source in _find_one(name)]


def tell_repeated(sources: Sequence[Source]) -> None:
  """Warns of files that are named more than once; they are also read more than once."""
  counts = Counter(os.path.abspath(source.path) for source in sources)
  repeated = [path for path, count in counts.items() if count > 1]
  if repeated:
    more = f' and {len(repeated) - 1} others' if len(repeated) > 1 else ''
    LOGGER.warning('named and read more than once: %s%s', repeated[0], more)


def _find_one(name: str) -> list[Source]:
  path = Path(name)
  try:
    if path.is_dir():
      found = _below(path)
    elif os.path.lexists(path):
      found = _manifest(path) if path.suffix.lower() == '.csv' else [Source(path)]
    elif glob.has_magic(name):
      found = _matching(name)
    else:
      raise InputError(f'{name}: no such file or folder, and not a pattern')
  except OSError as error:
    raise InputError(f'{name[:100]}: {error.strerror}') from error
  if not found:
    raise InputError(f'{name}: there is no picture or video ({" ".join(READ)})')
  return found


def _below(folder: Path) -> list[Source]:
  broken = []

  def trouble(error):
    broken.append(Source(Path(error.filename), error=error.strerror))

  names = folders.files(folder, trouble)
  return [Source(folder / name) for name in names if name.lower().endswith(READ)] + broken


def _matching(pattern: str) -> list[Source]:
  hits = sorted(glob.glob(pattern, recursive=True))
  endings = (*READ, '.csv') if pattern.lower().endswith('.csv') else READ
  found = {}
  for hit in map(Path, hits):
    if hit.is_dir():
      sources = _below(hit)
    elif hit.suffix.lower() == '.csv' in endings:
      sources = _manifest(hit)
    else:
      sources = [Source(hit)] if hit.name.lower().endswith(endings) else []
    found |= {source.path: source for source in sources}
  return list(found.values())


def _manifest(path: Path) -> list[Source]:
  try:
    header, records = parser.read_csv(path)
  except OSError as error:
    raise InputError(f'cannot read {path}: {error.strerror}') from error
  if 'path' not in header:
    raise InputError(
      f"{path} has no column 'path': give a manifest, a CSV file with a header line and the "
      'pictures in the column path'
    )
  points = parser.landmark_numbers(path, header)
  found = []
  for _, record in records:
    text = record['path'].strip()
    troubles = listing.path_troubles(text, path.parent)
    error = ': '.join(troubles[0]) if troubles else ''
    landmarks = None
    if points:
      cells = [[_number(record[f'{axis}_{i}']) for axis in 'xy'] for i in points]
      landmarks = np.array(cells, np.float32)
    found.append(Source(path.parent / text, landmarks, error))
  return found


def _number(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    return math.nan
  return value if abs(value) < parser.LARGEST else math.nan


def check_out(out: Path, option: str, inputs: Sequence[str], sources: Sequence[Source]) -> None:
  """Checks that an output file is not an input, and will not be one for the same command later.

  Args:
    out: The file.
    option: The option that names it, for messages.
    inputs: See `find`.
    sources: The result of `find`.

  Raises:
    InputError: the file is an input or a folder, is in an input folder, or matches a pattern.
  """
  place = Path(os.path.realpath(out))
  if place.is_dir():
    raise InputError(f'{option}={out} is a folder: give a file')
  if place.exists() and not place.is_file():
    raise InputError(f'{option}={out} is not a regular file: give another')
  read = (source.path for source in sources if not source.error)
  if any(str(place) == os.path.realpath(file) for file in (*inputs, *read)):
    raise InputError(f'{option}={out} is one of the inputs: give another file')
  if out.name.lower().endswith(READ):
    for name in inputs:
      if Path(name).is_dir() and place.is_relative_to(os.path.realpath(name)):
        raise InputError(f'{option}={out} is in {name}, where it would be read: give another file')
  if out.name.lower().endswith((*READ, '.csv')) and any(_would_match(out, n) for n in inputs):
    raise InputError(f'{option}={out} would be an input of the next command: give another file')


def _would_match(out: Path, name: str) -> bool:
  """Whether a pattern matches a file, or a folder above it."""
  if os.path.lexists(name) or (out.suffix.lower() == '.csv' and not name.lower().endswith('.csv')):
    return False
  place = Path(os.path.abspath(out))
  pattern = name if os.path.isabs(name) else os.path.join(glob.escape(os.getcwd()), name)
  if '**' in pattern:
    pattern = pattern.replace('**/', '*')  # fnmatch's * takes any number of folders
    return any(fnmatch.fnmatch(str(path), pattern) for path in (place, *place.parents))
  return any(path.match(pattern) for path in (place, *place.parents))
