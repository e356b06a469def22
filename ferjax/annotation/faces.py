"""Finds, aligns and crops the faces in a folder of pictures, and lists them in a manifest."""

import csv
import errno
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from ferjax import files, labels
from ferjax.annotation import alignment, journal, mesh
from ferjax.annotation import detector as detectors
from ferjax.annotation.journal import Entry
from ferjax.datasets import folders
from ferjax.datasets.manifest.parser import POSE, SPLITS
from ferjax.errors import InputError
from ferjax.images import files as picture_files
from ferjax.images.files import ENDINGS

MATRIX = tuple(f'crop_{row}{column}' for row in range(2) for column in range(3))
NO_FACE = 'no face found'
OF_ITS_NAME = (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


def annotate(
  folder: Path,
  out: Path,
  command: Sequence[str],
  *,
  size: int = 112,
  margin: float = 0.1,
  all_faces: bool = False,
  workers: int = 1,
) -> str:
  """Annotates the pictures below a folder. Pictures that an earlier run has annotated are skipped.

  Args:
    folder: The folder of pictures, at any depth.
    out: The folder to write, outside of `folder`.
    command: The command of a process that finds faces; see `detector.worker`.
    size: Size of a crop in pixels.
    margin: Margin on each side of an average face, as a share of the crop.
    all_faces: Annotate every face of a picture, instead of the largest one.
    workers: Number of processes that find faces.

  Returns:
    A summary.

  Raises:
    InputError: there is no such folder or no picture in it, a setting is out of range, `out` is in
      `folder` or the folder is in that of the crops, another command is writing to `out`, or `out`
      was started with other settings or another MediaPipe.
  """
  check(folder, out, size, margin, workers)
  names = [name for name in folders.files(folder) if name.lower().endswith(ENDINGS)]
  if not names:
    raise InputError(f'{folder} holds no picture ({", ".join(ENDINGS)})')

  def look(name, detector):
    return _picture(folder, out, name, detector, size, margin, all_faces)

  with journal.completed(
    out,
    names,
    look,
    command,
    settings={'size': size, 'margin': margin, 'all_faces': all_faces},
    holds=lambda entry: _still_holds(entry, folder, out),
    workers=workers,
  ) as entries:
    _write_manifest(out / 'manifest.csv', entries)
    _write_left_out(out / 'left_out.csv', entries)
  return summary(entries, out)


def check(folder: Path, out: Path, size: int, margin: float, workers: int) -> None:
  """Checks the arguments of `annotate`.

  Raises:
    InputError: there is no such folder, a setting is out of range, `out` is in `folder`, or the
      folder is in that of the crops.
  """
  if not folder.is_dir():
    raise InputError(f'{folder} is not a folder')
  pictures, crops = folder.resolve(), (out / 'faces').resolve()
  if crops.is_relative_to(pictures) or out.resolve().is_relative_to(pictures):
    raise InputError(f'--out={out} is in {folder}, whose pictures are read: give another folder')
  if pictures.is_relative_to(crops):
    raise InputError(f'{folder} is in {crops}, where the crops are written: give another --out')
  check_crop(size, margin)
  check_workers(workers)


def check_workers(workers: int) -> None:
  """Checks the number of processes.

  Raises:
    InputError: it is less than 1.
  """
  if workers < 1:
    raise InputError(f'--workers={workers}: it must be at least 1')


def check_crop(size: int, margin: float) -> None:
  """Checks the size and the margin of a crop.

  Raises:
    InputError: a number is out of range. The message names it.
  """
  if not 16 <= size <= 4096:
    raise InputError(f'--size={size}: give a size from 16 to 4096 pixels')
  if not 0 <= margin <= 0.4:
    raise InputError(f'--margin={margin}: give a share of the crop from 0 to 0.4')


def is_whole(entry: Entry, out: Path) -> bool:
  """Whether a picture was searched without a failure, and has all its crops."""
  crops = [out / face['path'] for face in entry['faces']]
  try:
    return entry['reason'] in ('', NO_FACE) and all(crop.stat().st_size for crop in crops)
  except OSError:
    return False


def _still_holds(entry: Entry, folder: Path, out: Path) -> bool:
  """Whether a picture has not changed, and its entry is whole."""
  stamp = entry['stamp']
  try:
    return stamp == _stamp(folder / entry['picture']) and is_whole(entry, out)
  except OSError:
    return False


def _stamp(path: Path) -> list[int]:
  stat = path.stat()
  return [stat.st_size, stat.st_mtime_ns]


def _picture(folder, out, name, detector, size, margin, all_faces) -> Entry:
  """Annotates a picture: writes its crops, and returns its entry for the journal."""
  entry = {'picture': name, 'stamp': [], 'faces': [], 'reason': ''}
  if printable(name) != name:
    return entry | {'reason': 'its name is not UTF-8'}
  try:
    entry['stamp'] = _stamp(folder / name)
    image = picture_files.read(folder / name)
  except (OSError, InputError) as error:
    text = getattr(error, 'strerror', None) or str(error)
    return entry | {'reason': f'cannot be read: {text}'}
  try:
    found = detector.find(image, all_faces)
  except detectors.DetectorError as error:
    return entry | {'reason': f'the detector failed: {error}'}
  for number, face in enumerate(found if all_faces else found[:1]):
    path = f'faces/{name}.{number}.png' if all_faces else f'faces/{name}.png'
    fields, crop = describe(image, face, size, margin)
    try:
      write_crop(out / path, crop)
    except OSError as error:
      if error.errno not in OF_ITS_NAME:
        raise InputError(f'cannot write {out / path}: {error.strerror}') from error
      return entry | {'faces': [], 'reason': f'its crop cannot be written: {error.strerror}'}
    entry['faces'].append({'path': path, 'fields': fields})
  return entry if found else entry | {'reason': NO_FACE}


def printable(name: str) -> str:
  r"""The name of a file, with bytes that are not UTF-8 as \udc80 to \udcff."""
  return name.encode('utf-8', 'backslashreplace').decode('utf-8')


def describe(
  image: np.ndarray, face: detectors.Face, size: int, margin: float
) -> tuple[dict[str, str], np.ndarray]:
  """The columns of the manifest for a face, and its crop.

  A similarity maps five points (eyes, nose, mouth) as closely as possible to those of the average
  face, turned by the pitch and yaw of this face. So the face is upright, has the same size in every
  pose, and is in the crop as a whole.

  Args:
    image: The picture u8[h, w, 3].
    face: A face in it.
    size: Size of the crop in pixels.
    margin: Margin on each side, as a share of the crop.

  Returns:
    {column: text}, and u8[size, size, 3].
  """
  points = mesh.landmarks(face.mesh)
  pitch, yaw, _ = mesh.pose(points)
  destination = alignment.five_points(alignment.target(size, margin, pitch, yaw))
  matrix = alignment.similarity(alignment.five_points(points[:, :2]), destination)
  written = [f'{value:.9g}' for value in matrix.ravel()]
  matrix = np.array([float(text) for text in written]).reshape(2, 3)  # exactly the written numbers
  moved = alignment.apply(matrix, points)
  fields = dict(zip(MATRIX, written, strict=True))
  angles = mesh.pose(moved)
  fields |= {name: f'{value:.4f}' for name, value in zip(POSE.values(), angles, strict=True)}
  if face.blendshapes:
    intensities = mesh.action_units(face.blendshapes)
    fields |= {name: f'{value:.2f}' for name, value in intensities.items()}
  for axis, values in zip('xy', moved.T, strict=False):
    fields |= {f'{axis}_{i}': f'{value:.2f}' for i, value in enumerate(values)}
  return fields, alignment.crop(image, matrix, size)


def write_crop(path: Path, crop: np.ndarray) -> None:
  """Writes a crop u8[size, size, 3], RGB, as PNG, and makes its folder."""
  done, encoded = cv2.imencode('.png', crop[..., ::-1])
  if not done:
    raise RuntimeError('OpenCV could not write a PNG: was it built without that format?')
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path, 'wb') as file:
    file.write(encoded)


def split_and_label(name: str) -> tuple[str, str]:
  """The split and the class of a picture; '' if no folder in its path has the name of a class."""
  folders = PurePosixPath(name).parts[:-1]
  split = SPLITS.get(folders[0].lower(), 'train') if folders else 'train'
  known = [c for c in map(labels.canonical, folders) if c in labels.CLASSES_8]
  return split, known[-1] if known else ''


def _rows(entries: Sequence[Entry]) -> Iterator[dict[str, str]]:
  for entry in entries:
    split, label = split_and_label(entry['picture'])
    for number, face in enumerate(entry['faces']):
      row = {'path': face['path'], 'split': split, 'label': label}
      yield row | {'source': entry['picture'], 'face': str(number)} | face['fields']


def _write_manifest(path: Path, entries: Sequence[Entry]) -> None:
  """Writes the manifest, without a column `label` if no folder has the name of a class."""
  rows = list(_rows(entries))
  header = list(rows[0]) if rows else ['path', 'split', 'label', 'source', 'face']
  if not any(row['label'] for row in rows):
    header.remove('label')
  with files.replacing(path) as file:
    writer = csv.DictWriter(file, header, extrasaction='ignore')
    writer.writeheader()
    writer.writerows(rows)


def _write_left_out(path: Path, entries: Sequence[Entry]) -> None:
  with files.replacing(path) as file:
    writer = csv.writer(file)
    writer.writerow(('picture', 'reason'))
    writer.writerows((printable(e['picture']), e['reason']) for e in entries if e['reason'])


def summary(entries: Sequence[Entry], out: Path) -> str:
  """A text with the numbers of faces found and not found, and what the manifest lacks."""
  rows = list(_rows(entries))
  reasons = Counter(e['reason'].partition(':')[0] for e in entries if e['reason'])
  found = sum(bool(entry['faces']) for entry in entries)
  share = 100 * found / len(entries)
  lines = [f'{len(entries)} pictures, {found} with a face ({share:.1f} %), {len(rows)} crops']
  lines += [f'{reason}: {count} (left_out.csv)' for reason, count in reasons.most_common()]
  counts = Counter(row['label'] for row in rows)
  unnamed = counts.pop('', 0)
  if counts:
    lines.append(', '.join(f'{name} {counts[name]}' for name in labels.CLASSES_8 if counts[name]))
  if unnamed:
    which = f'of {unnamed} crops ' if counts else ''
    lines.append(
      f'no folder {which}has the name of a class: fill in the column `label` of the manifest '
      f'before training on it ({", ".join(labels.CLASSES_8)})'
    )
  lines.append(f'written to {out / "manifest.csv"}')
  return '\n'.join(lines)
