"""Reads annotations of OpenFace 2, py-feat and LibreFace, `.pts` files and lists of points.

All readers return the same structure and units: landmarks in pixels with pixel centres at integers,
action units on OpenFace's scale 0 to 5, angles in radians. Yaw is positive if the nose points to
the right of the picture, pitch if it points down, roll if the eye on the right of the picture is
the higher one.

References: OpenFace 2's wiki (Output Format), py-feat's `Fex` table, LibreFace's README (Output
Format), the `.pts` files of iBUG's 300-W.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ferjax.datasets.folders import files
from ferjax.datasets.listing import Problem, csv_rows, text_lines
from ferjax.errors import InputError, nearest
from ferjax.images.files import ENDINGS

POINTS = (5, 19, 37, 68)
ANGLES = ('degrees', 'radians')
NOT_PRESENT = ('', 'nan', 'none', 'null')


class Annotation(NamedTuple):
  """One face.

  Attributes:
    picture: The tool's name of the picture, or the name of the tool's file without its ending.
    source: The file with the annotation.
    place: The place in that file, for messages.
    size: Area of the face in square pixels; the largest of several is kept. 0 if unknown.
    values: {column of a manifest: value}.
  """

  picture: str
  source: str
  place: str
  size: float
  values: Mapping[str, float]


class Annotations(NamedTuple):
  """The annotations in the files of a tool.

  Attributes:
    faces: The faces, in the order of the files and their rows.
    problems: Faces that cannot be used, with the reasons.
    remarks: Columns that were left out or changed.
  """

  faces: Sequence[Annotation]
  problems: Sequence[Problem] = ()
  remarks: Sequence[str] = ()


class _Bad(Exception):
  """A face that cannot be used: the kind and the details of its problem."""


def read(
  path: Path,
  format: str,
  *,
  angles: str = '',
  mirror_yaw: bool = False,
  confidence: float = 0.0,
  origin: int | None = None,
  points: int = 0,
  suffix: str = '',
) -> Annotations:
  """Reads a tool's file, or all its files below a folder.

  Args:
    path: The file or folder.
    format: `openface`, `pyfeat`, `libreface`, `pts` or `points`.
    angles: For `pyfeat`, whose versions differ: `degrees` or `radians`.
    mirror_yaw: For `openface` and `pyfeat`: yaw has the opposite of the tool's usual sign.
    confidence: Faces with a lower confidence are left out, 0..1.
    origin: The coordinate of the first pixel's centre. None is 1 for `pts`, else 0.
    points: For `pts` and `points`: number of points of a face, one of 5, 19, 37, 68. With 0, it is
      the number in the `.pts` file.
    suffix: The text after the picture's name in the names of the files, such as `_manu_attri`.

  Raises:
    InputError: there is no such file or format, a file is not of this format, or the columns of two
      files differ.
  """
  if format not in FORMATS:
    raise InputError(
      f"--format='{format}'.{nearest(format, FORMATS)} There are: {', '.join(FORMATS)}"
    )
  if points and points not in POINTS:
    raise InputError(f'--points={points}: there are sets of {", ".join(map(str, POINTS))} points')
  ending, reader = FORMATS[format]
  path = Path(path)
  if path.is_file():
    folder, names = path.parent, [path.name]
  elif path.is_dir():
    folder, names = path, [name for name in files(path) if name.lower().endswith(ending)]
  else:
    raise InputError(f'no such file or folder: --annotations={path}')
  if not names:
    raise InputError(f'{path} holds no file *{ending}, which --format={format} reads')
  options = {
    'angles': angles,
    'mirror_yaw': mirror_yaw,
    'confidence': confidence,
    'origin': (format == 'pts') if origin is None else origin,
    'points': points,
    'only': path.is_file(),
  }
  faces, problems, remarks, columns = [], [], {}, None
  for name in names:
    stem = name[: name.rindex('.')] if '.' in name else name
    stem = stem.removesuffix(suffix)
    found = reader(folder / name, stem, options)
    problems += found.problems
    remarks |= dict.fromkeys(found.remarks)
    for face in found.faces:
      columns = columns or (set(face.values), face.source)
      if set(face.values) != columns[0]:
        odd = sorted(set(face.values) ^ columns[0])[0]
        raise InputError(
          f"{face.source} and {columns[1]} have different columns: only one of them has '{odd}'. "
          'Import them one after the other, or leave one out'
        )
      faces.append(face)
  found = Annotations(faces, problems, list(remarks))
  if faces:
    _check_yaw(found)
  return found


def _openface(path, stem, options) -> Annotations:
  """Reads a table of FaceLandmarkImg, which is for one picture and has its name."""
  header, rows = _table(path, ('x_0', 'pose_Ry', 'AU01_r'), 'OpenFace 2')
  frames = {row['frame'] for _, row in rows if row.get('frame')}
  if len(frames) > 1:
    raise InputError(
      f'{path} has {len(frames)} frames of a sequence, but not the names of their pictures. '
      "Run OpenFace's FaceLandmarkImg -fdir FOLDER, which writes one file for each picture"
    )
  units = [name for name in header if re.fullmatch(r'AU\d+_r', name)]
  has_pose = {'pose_Rx', 'pose_Ry', 'pose_Rz'} <= set(header)
  yaw_sign = 1 if options['mirror_yaw'] else -1

  def face(row):
    if row.get('success') and _number(row, 'success') == 0:
      raise _Bad('no face found', 'success = 0')
    _check_confidence(row, 'confidence', options)
    values = _landmarks(header, row, options)
    if has_pose:
      values['pose_Rx'] = _number(row, 'pose_Rx')
      values['pose_Ry'] = yaw_sign * _number(row, 'pose_Ry')
      values['pose_Rz'] = -_number(row, 'pose_Rz')
    return values | {name: _number(row, name) for name in units}

  turned = 'yaw and roll have the opposite sign of the files' if yaw_sign < 0 else ''
  remarks = [turned or 'roll has the opposite sign of the files'] if has_pose else []
  return _faces(path, rows, lambda row: stem, face, _extent, remarks)


def _pyfeat(path, stem, options) -> Annotations:
  header, rows = _table(path, ('AU01', 'x_0', 'Yaw'), 'py-feat')
  units = {name: f'{name}_r' for name in header if re.fullmatch(r'AU\d\d', name)}
  has_pose = {'Pitch', 'Roll', 'Yaw'} <= set(header)
  if has_pose and options['angles'] not in ANGLES:
    raise InputError(
      f"{path} has angles, and py-feat's versions differ in their unit (0.7 writes radians, older "
      'ones degrees): say --angles=radians or --angles=degrees'
    )
  scale = math.pi / 180 if options['angles'] == 'degrees' else 1.0
  yaw_sign = -1 if options['mirror_yaw'] else 1

  def face(row):
    if all(row.get(name, '').lower() in NOT_PRESENT for name in ('FaceScore', 'AU01', 'x_0')):
      raise _Bad('no face found', '')
    _check_confidence(row, 'FaceScore', options)
    values = _landmarks(header, row, options)
    if has_pose:
      values['pose_Rx'] = scale * _number(row, 'Pitch')
      values['pose_Ry'] = scale * yaw_sign * _number(row, 'Yaw')
      values['pose_Rz'] = scale * _number(row, 'Roll')
      if max(abs(values[name]) for name in ('pose_Rx', 'pose_Ry', 'pose_Rz')) > math.pi:
        raise _Bad('angle above a half turn', 'is --angles right?')
    for name, column in units.items():
      share = _number(row, name)
      if not 0 <= share <= 1:
        raise _Bad('action unit outside 0..1', f'{name} = {row[name]}')
      values[column] = 5 * share
    return values

  def size(row, values):
    try:
      return float(row['FaceRectWidth']) * float(row['FaceRectHeight'])
    except (KeyError, ValueError):
      return _extent(row, values)

  remarks = ['action units are probabilities, 0..1, times 5'] if units else []
  if any(re.fullmatch(r'x_\d+', n) for n in header) and not _has_68(header):
    remarks.append('landmarks left out: they are not the 68 iBUG points')
  return _faces(path, rows, lambda row: row.get('input') or stem, face, size, remarks)


def _libreface(path, stem, options) -> Annotations:
  header, rows = _table(path, ('au_1_intensity',), 'LibreFace')
  units = {n: re.fullmatch(r'au_(\d+)_intensity', n) for n in header}
  units = {name: f'AU{int(match[1]):02}_r' for name, match in units.items() if match}
  if len(rows) > 1 and 'input_image_path' not in header:
    raise InputError(
      f'{path} has {len(rows)} rows of a video, but not the names of their pictures. Run '
      'LibreFace on each picture, with --output_path=<name of the picture>.csv'
    )
  remarks = []
  if {'yaw', 'pitch'} & set(header):
    remarks.append("LibreFace's head pose is left out: it is not an angle in degrees")
  if 'lm_mp_0_x' in header:
    remarks.append('landmarks left out: they are not the 68 iBUG points')

  def face(row):
    values = {column: _number(row, name) for name, column in units.items()}
    for column, value in values.items():
      if not -0.5 <= value <= 5.5:
        raise _Bad('action unit outside 0..5', f'{column} = {value}')
    return {column: min(max(value, 0.0), 5.0) for column, value in values.items()}

  def picture(row):
    return row.get('input_image_path') or stem

  return _faces(path, rows, picture, face, _extent, remarks)


def _pts(path, stem, options) -> Annotations:
  text = '\n'.join(re.sub(r'(//|#).*', '', line) for line in text_lines(path))
  header = re.search(r'n_?points\s*:\s*(\d+)', text)
  body = re.search(r'\{(.*?)\}', text, re.S)
  if not header or not body:
    raise InputError(
      f'{path} is not a .pts file. Expected: "version: 1", "n_points: 68", and between braces a '
      'line "x y" for each point'
    )
  count, wanted = int(header[1]), options['points'] or int(header[1])
  fields = body[1].split()
  face = {}
  try:
    if wanted not in POINTS or count != wanted:
      raise _Bad(f'not a set of {options["points"] or "5, 19, 37 or 68"} points', f'{count} points')
    if len(fields) != 2 * count:
      raise _Bad('not two numbers for each point', f'{len(fields)} numbers for {count} points')
    face = _columns(fields, options)
  except _Bad as bad:
    return Annotations([], [Problem(0, bad.args[0], f'{path}: {bad.args[1]}')])
  return Annotations([Annotation(stem, str(path), 'the file', _extent({}, face), face)])


def _points(path, stem, options) -> Annotations:
  count = options['points']
  if not count:
    raise InputError('--format=points: give the number of points of a face, such as --points=5')
  lines = [re.split(r'[\s,;]+', line.strip()) for line in text_lines(path)]
  lines = [(number, fields) for number, fields in enumerate(lines, 1) if fields != ['']]
  named = [len(fields) == 2 * count + 1 and not _is_number(fields[0]) for _, fields in lines]
  if options['only'] and any(named):
    return _list_of_points(path, lines[named.index(True) :], options)
  fields = [field for _, pair in lines[:count] for field in pair]
  try:
    if len(lines) < count or any(len(pair) != 2 for _, pair in lines[:count]):
      raise _Bad(f'not {count} lines "x y"', f'{len(lines)} lines')
    face = _columns(fields, options)
  except _Bad as bad:
    return Annotations([], [Problem(0, bad.args[0], f'{path}: {bad.args[1]}')])
  return Annotations([Annotation(stem, str(path), 'the file', _extent({}, face), face)])


def _list_of_points(path, lines, options) -> Annotations:
  """Reads lines `name x y x y ...`, as in the lists of CelebA."""
  faces, problems = [], []
  for number, fields in lines:
    try:
      if len(fields) != 2 * options['points'] + 1:
        raise _Bad(f'not a name and {options["points"]} points', f'{len(fields)} fields')
      face = _columns(fields[1:], options)
      faces.append(Annotation(fields[0], str(path), f'line {number}', _extent({}, face), face))
    except _Bad as bad:
      problems.append(Problem(number, bad.args[0], f'{path.name}: {bad.args[1]}'))
  return Annotations(faces, problems)


FORMATS: Mapping[str, tuple[str, Callable[..., Annotations]]] = {
  'openface': ('.csv', _openface),
  'pyfeat': ('.csv', _pyfeat),
  'libreface': ('.csv', _libreface),
  'pts': ('.pts', _pts),
  'points': ('.txt', _points),
}


def _table(path, any_of, tool) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
  """The header, and (line, row) pairs. Blanks around names and cells are removed."""
  lines = csv_rows(path)
  header = [name.strip() for name in next(lines, (0, []))[1]]
  if not set(any_of) & set(header):
    raise InputError(f'{path} is not a table of {tool}: it has none of the columns {any_of}')
  return header, [
    (line, {k: v.strip() for k, v in zip(header, fields, strict=False)}) for line, fields in lines
  ]


def _faces(path, rows, picture, face, size, remarks) -> Annotations:
  faces, problems = [], []
  for line, row in rows:
    try:
      values = face(row)
    except _Bad as bad:
      kind, detail = bad.args
      detail = f'{path.name}, line {line}{": " if detail else ""}{detail}'
      problems.append(Problem(0, kind, detail))
      continue
    place = f'line {line}'
    faces.append(Annotation(picture(row), str(path), place, size(row, values), values))
  if not rows:
    problems.append(Problem(0, 'no face found', f'{path}: no row'))
  return Annotations(faces, problems, remarks)


def _number(row, name) -> float:
  text = row.get(name, '')
  if not _is_number(text):
    raise _Bad(f'{_kind(name)} is not a finite number', f'{name} = {text!r}')
  return float(text)


def _kind(name) -> str:
  return 'landmark' if re.fullmatch(r'[xy]_\d+', name) else name


def _is_number(text) -> bool:
  try:
    return abs(float(text)) < math.inf
  except ValueError:
    return False


def _has_68(header) -> bool:
  return {f'{axis}_{i}' for axis in 'xy' for i in range(68)} <= set(header) and 'x_68' not in header


def _landmarks(header, row, options) -> dict[str, float]:
  if not _has_68(header):
    return {}
  names = [f'{axis}_{i}' for axis in 'xy' for i in range(68)]
  return {name: _number(row, name) - options['origin'] for name in names}


def _columns(fields, options) -> dict[str, float]:
  """x, y, x, y, ... as the columns x_0, ..., y_0, ..."""
  for field in fields:
    if not _is_number(field):
      raise _Bad('landmark is not a finite number', repr(field))
  values = np.array(fields, np.float64).reshape(-1, 2) - options['origin']
  return {f'{axis}_{i}': float(v[a]) for a, axis in enumerate('xy') for i, v in enumerate(values)}


def _check_confidence(row, name, options) -> None:
  if options['confidence'] and row.get(name):
    if _number(row, name) < options['confidence']:
      raise _Bad(f'{name} below {options["confidence"]:g}', f'{name} = {row[name]}')


def _extent(row, values) -> float:
  """The area of the box around the landmarks; 0 without landmarks."""
  sides = [[v for k, v in values.items() if re.fullmatch(rf'{axis}_\d+', k)] for axis in 'xy']
  return float(np.ptp(sides[0]) * np.ptp(sides[1])) if sides[0] else 0.0


def _check_yaw(found: Annotations) -> None:
  """Checks the sign of yaws against 68 landmarks: when a head turns to the right of the picture,
  the tip of its nose comes nearer to the right end of the jaw line."""
  faces = [face.values for face in found.faces]
  if not {'pose_Ry', 'x_30', 'x_67'} <= set(faces[0]) or len(faces) < 10:
    return
  yaw, nose, left, right = (
    np.array([face[name] for face in faces]) for name in ('pose_Ry', 'x_30', 'x_0', 'x_16')
  )
  offset = (nose - (left + right) / 2) / np.maximum(np.abs(right - left), 1e-6)
  if min(yaw.std(), offset.std()) < 0.02:
    return
  agreement = np.corrcoef(yaw, offset)[0, 1]
  if agreement < -0.3:
    raise InputError(
      f'yaw contradicts the landmarks of {len(faces)} faces (correlation {agreement:.2f} with the '
      'place of the nose): these files have the other sign of yaw. Turn --mirror_yaw on, or off if '
      'it was on'
    )


def by_picture(
  faces: Iterable[Annotation], pictures: Sequence[str]
) -> tuple[dict[str, Annotation], list[Problem]]:
  """Finds the picture of each face.

  A name fits a picture if one of the two paths ends with the whole other path. Case is ignored,
  backslashes are slashes, and a name without the ending of a picture file fits any ending. If no
  path fits, the file name alone decides, if it is unique among the pictures and the annotations.

  Args:
    faces: The annotations.
    pictures: Paths of the pictures below their folder.

  Returns:
    {picture: its face}, the largest one if a file has several; and problems for the other faces.
  """
  by_stem = {}
  for picture in pictures:
    parts, ending = _parts(picture)
    by_stem.setdefault(parts[-1], []).append((parts, ending, picture))
  faces = list(faces)
  named = {}
  for face in faces:
    named.setdefault(_parts(face.picture)[0][-1], set()).add(_parts(face.picture)[0])
  found, problems, twice = {}, [], set()
  for face in faces:
    parts, ending = _parts(face.picture)
    same = [c for c in by_stem.get(parts[-1], ()) if not ending or c[1] == ending]
    same = same or by_stem.get(parts[-1], [])
    fits = [c for c in same if _covers(parts, c[0])]
    longest = max((min(len(parts), len(c[0])) for c in fits), default=0)
    fits = [c for c in fits if min(len(parts), len(c[0])) == longest]
    if not fits and len(same) == 1 and len(named[parts[-1]]) == 1:
      fits = same
    if len(fits) != 1:
      kind = 'several pictures have this name' if fits else 'annotation without a picture'
      detail = f': {fits[0][2]}, {fits[1][2]}' if fits else ''
      problems.append(Problem(0, kind, f'{face.picture} ({face.source}){detail}'))
      continue
    picture = fits[0][2]
    other = found.setdefault(picture, face)
    if other is face:
      continue
    if other.source != face.source:
      twice.add(picture)
      problems.append(
        Problem(0, 'picture annotated by two files', f'{picture}: {other.source}, {face.source}')
      )
    else:
      problems.append(Problem(0, 'smaller of several faces in a picture', picture))
      found[picture] = max(other, face, key=lambda one: one.size)
  return {picture: face for picture, face in found.items() if picture not in twice}, problems


def _parts(path: str) -> tuple[tuple[str, ...], str]:
  """The names of a path, the last without the ending of a picture file; and that ending, or ''."""
  names = [name for name in path.lower().replace('\\', '/').split('/') if name not in ('', '.')]
  ending = next((e for e in ENDINGS if names and names[-1].endswith(e)), '')
  return (*names[:-1], names[-1].removesuffix(ending)) if names else ('',), ending


def _covers(one: Sequence[str], other: Sequence[str]) -> bool:
  length = min(len(one), len(other))
  return tuple(one[-length:]) == tuple(other[-length:])
