"""The result of parsing a data set on disk: its rows, and what was left out with the reasons."""

import csv
import functools
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from ferjax.datasets.folders import files, wrong_folder
from ferjax.errors import InputError
from ferjax.images.files import ENDINGS, FORMATS, STORED_AS_THEY_ARE, encoded_picture, png

Row = dict[str, Any]


class Problem(NamedTuple):
  """Something that was left out: its line in a file (0 if it has none), the reason, and details."""

  line: int
  kind: str
  detail: str


class Listing(NamedTuple):
  """The rows of a data set, in the order in which they are stored.

  Attributes:
    folder: The folder from which the paths of the pictures start.
    classes: Class names in label order.
    rows: Each has `split` (train, val or test), `label` (a class name) and a picture: `path`
      (POSIX, below `folder`; with `box`, the face x0, y0, x1, y1 in pixels is cut out) or `image`
      (encoded bytes). It has a `name` if that is not the path, and any of the features in
      `datasets/features.py`. A feature that only some rows have is left out of all.
    problems: Bad rows. They are an error, or are left out on request.
    skipped: Files and rows that are not part of the data set or protocol.
    other_classes: {class: number of rows left out because their class is not in use}.
    known: Counts that the data set should have: {split, `split/class` or `subjects`: the counts
      that are correct}.
    folds: Number of folds by subject in the protocol; 0 for none.
    action_units: Names of the entries of `au`.
    source: The folder, or the file that lists the rows; named in messages.
  """

  folder: Path
  classes: tuple[str, ...]
  rows: Sequence[Row]
  problems: Sequence[Problem] = ()
  skipped: Sequence[Problem] = ()
  other_classes: Mapping[str, int] = {}
  known: Mapping[str, Collection[int]] = {}
  folds: int = 0
  action_units: tuple[str, ...] = ()
  source: Path | None = None


def pictures(
  folder: Path, pattern: str, layout: str
) -> tuple[list[tuple[str, re.Match]], list[Problem]]:
  """The pictures below a folder whose paths match a pattern.

  Args:
    folder: The folder to search, at any depth.
    pattern: Regular expression of the last names of a path, case-insensitive; it begins with a
      group.
    layout: The expected layout, for the error.

  Returns:
    (path, match) pairs, sorted by path, and the other pictures as skipped. A picture is also
    skipped if its last names, without the ending, are the same as those of an earlier one.

  Raises:
    InputError: no picture matches, or a folder cannot be read.
  """
  grammar = re.compile(rf'(?:.*/)?{pattern}', re.IGNORECASE)
  matched, skipped, seen = [], [], set()
  for path in files(folder):
    if path.lower().endswith(ENDINGS):
      match = grammar.fullmatch(path)
      last_names = match and path[match.start(1) :].lower().rpartition('.')[0]
      if not match:
        skipped.append(Problem(0, 'name outside the grammar', path))
      elif last_names in seen:
        skipped.append(Problem(0, 'second copy', path))
      else:
        matched.append((path, match))
        seen.add(last_names)
  if not matched:
    raise wrong_folder(folder, layout, 'no picture there has an expected name')
  return matched, skipped


def csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
  """(line, fields) of each row of a CSV file that is not empty.

  Raises:
    InputError: the file cannot be read as CSV.
  """
  try:
    with path.open(newline='', encoding='utf-8-sig') as file:
      reader = csv.reader(file)
      for fields in reader:
        if any(fields):
          yield reader.line_num, fields
  except (UnicodeDecodeError, csv.Error, OSError) as error:
    raise InputError(f'cannot read {path} as a CSV file: {error}') from error


def text_lines(path: Path) -> list[str]:
  """The lines of a text file.

  Raises:
    InputError: the file cannot be read as text.
  """
  try:
    return path.read_text(encoding='utf-8-sig').splitlines()
  except (UnicodeDecodeError, OSError) as error:
    raise InputError(f'cannot read {path}: {error}') from error


def path_troubles(text: str, folder: Path) -> list[tuple[str, str]]:
  """The (kind, detail) pairs of what is wrong with a path in a file: it is not below the folder, or
  does not exist."""
  relative = PurePosixPath(text)
  if not text or relative.is_absolute() or '..' in relative.parts:
    return [('path is not below its folder', f'{text!r}: give paths relative to {folder}')]
  try:
    found = (folder / relative).is_file()
  except (OSError, ValueError):  # a name that no file can have, such as one with a NUL
    found = False
  return [] if found else [('missing file', text)]


def held_out(subjects: Iterable[str], share: float) -> set[str]:
  """A share 0..1 of the subjects, spread evenly over their sorted names."""
  names = sorted(set(subjects))
  count = round(share * len(names))
  return {names[(2 * i + 1) * len(names) // (2 * count)] for i in range(count)}


def differences(listing: Listing) -> list[str]:
  """The counts of rows and subjects that are not as expected, each as a text."""
  counts = Counter(row['split'] for row in listing.rows)
  counts.update(f'{row["split"]}/{row["label"]}' for row in listing.rows)
  counts['subjects'] = len({row['subject'] for row in listing.rows if 'subject' in row})
  found = []
  for key, expected in listing.known.items():
    if counts[key] not in expected:
      low, high = min(expected), max(expected)
      known = f'{low}' if low == high else f'{low} to {high}'
      found.append(f'{key} {counts[key]} instead of {known}')
  return found


def check_pictures(
  listing: Listing, track: Callable[..., Iterable] = lambda items, total: items
) -> Listing:
  """Decodes every picture once, and moves the rows of broken pictures to the problems.

  Args:
    listing: The parsed data set.
    track: (items, total=n) -> the same items; it can show the progress of the check.
  """

  def troubles():
    parts = (listing.rows[i : i + 64] for i in range(0, len(listing.rows), 64))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
      for part in pool.map(functools.partial(picture_troubles, listing.folder), parts):
        yield from part

  return without_broken(listing, track(troubles(), total=len(listing.rows)))


def without_broken(listing: Listing, troubles: Iterable[str]) -> Listing:
  """Moves the rows with broken pictures to the problems.

  Args:
    listing: The parsed data set.
    troubles: One for each row; see `picture_trouble`.
  """
  good, problems = [], list(listing.problems)
  for row, trouble in zip(listing.rows, troubles, strict=True):
    if trouble:
      detail = f'{row.get("path", row.get("name"))}: {trouble}'
      problems.append(Problem(row.get('line', 0), 'broken picture', detail))
    else:
      good.append(row)
  return listing._replace(rows=good, problems=sorted(problems))


def picture_troubles(folder: Path, rows: Sequence[Row]) -> list[str]:
  """`picture_trouble` of each row."""
  return [picture_trouble(folder, row) for row in rows]


def picture_trouble(folder: Path, row: Row) -> str:
  """The reason why the picture of a row cannot be used; '' if it can.

  JPEG is decoded by Pillow, which detects truncated files. PNG is decoded by OpenCV, as in
  training, because it detects errors that Pillow ignores, such as a wrong checksum.
  """
  if 'image' in row:
    return ''
  try:
    str(row['path']).encode()
  except UnicodeEncodeError:
    return 'its name is not UTF-8: rename it'
  try:
    path = folder / row['path']
    with Image.open(path, formats=FORMATS) as picture:
      if picture.format != 'PNG':
        picture.load()
      elif cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR_RGB) is None:
        picture.load()  # raises a precise error if Pillow also detects the damage
        return 'the PNG file is damaged, or larger than OpenCV reads'
      if picture.format not in STORED_AS_THEY_ARE and picture.mode in ('I', 'F'):
        return f'{picture.mode} (32-bit) pixels: save it with 8 or 16 bits'
      if 'box' in row and not _box_area(_clipped(row['box'], picture.size)):
        return f'the face box {row["box"]} is outside the picture of size {picture.size}'
  except OSError as error:
    return error.strerror or str(error)
  except Exception as error:  # Pillow's decoders raise many kinds; each means "cannot be read"
    return str(error) or type(error).__name__
  return ''


def examples(
  folder: Path, rows: Iterable[Row], features: Collection[str]
) -> Iterator[tuple[int, Row]]:
  """(number, `example` of the row) for each row, with the given features only."""
  for number, row in enumerate(rows):
    found = example(folder, row)
    yield number, {name: value for name, value in found.items() if name in features}


def _clipped(box, size) -> tuple[int, int, int, int]:
  x0, y0, x1, y1 = box
  return max(x0, 0), max(y0, 0), min(x1, size[0]), min(y1, size[1])


def _box_area(box) -> int:
  x0, y0, x1, y1 = box
  return max(x1 - x0, 0) * max(y1 - y0, 0)


def example(folder: Path, row: Row) -> Row:
  """The features of a row, with the encoded picture. Formats that TFDS cannot store, and faces cut
  out of larger pictures, are converted to PNG without loss."""
  features = {k: v for k, v in row.items() if k not in ('path', 'split', 'line', 'box')}
  features.setdefault('name', row.get('path'))
  if 'image' in row:
    encoded = row['image']
  elif 'box' in row:
    encoded, origin = _cut_out(folder / row['path'], row['box'])
    if 'landmarks' in row:
      features['landmarks'] = np.asarray(row['landmarks'], np.float32) - origin
  else:
    encoded = encoded_picture(folder / row['path'])
  return features | {'image': BytesIO(encoded)}


def _cut_out(path: Path, box) -> tuple[bytes, np.ndarray]:
  with Image.open(path, formats=FORMATS) as picture:
    box = _clipped(box, picture.size)
    return png(picture.crop(box)), np.float32(box[:2])


def report(problems: Iterable[Problem]) -> str:
  """A text of the problems by kind: counts, line numbers, and the first three details of each kind.

  Bytes that are not UTF-8 in names are written as `\\udcff`.
  """
  kinds = {}
  for problem in problems:
    kinds.setdefault(problem.kind, []).append(problem)
  parts = []
  for kind, found in sorted(kinds.items(), key=lambda item: -len(item[1])):
    lines = sorted({p.line for p in found if p.line})
    count = len(lines) or len(found)
    rows = f' row{"s" * (count > 1)}, line{"s" * (count > 1)} {_ranges(lines)}' if lines else ''
    parts.append(f'  {kind}: {count}{rows}')
    for problem in found[:3]:
      if problem.detail:
        parts.append(f'    {f"line {problem.line}: " if problem.line else ""}{problem.detail}')
  return '\n'.join(parts).encode(errors='backslashreplace').decode()


def _ranges(lines: list[int]) -> str:
  runs = []
  for line in lines:
    if runs and runs[-1][1] == line - 1:
      runs[-1][1] = line
    else:
      runs.append([line, line])
  texts = [str(a) if a == b else f'{a}-{b}' for a, b in runs]
  return ', '.join(texts if len(texts) <= 50 else [*texts[:50], '...'])


def fingerprint(listing: Listing) -> str:
  """A cache key, which changes with any row, any problem, and the size or date of any picture."""
  digest = hashlib.sha256(repr((listing.classes, listing.folds, listing.action_units)).encode())
  for problem in (*listing.problems, *listing.skipped):
    digest.update(repr(tuple(problem)).encode())
  for row in listing.rows:
    for name, value in row.items():
      plain = value.tobytes() if isinstance(value, np.ndarray) else value
      digest.update(name.encode() + (plain if isinstance(plain, bytes) else repr(plain).encode()))
    if 'path' in row:
      status = os.stat(f'{listing.folder}/{row["path"]}')
      digest.update(f'{status.st_size} {status.st_mtime_ns}\n'.encode())
  return digest.hexdigest()[:16]
