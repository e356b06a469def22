"""Prepared data sets as manifests: with all their labels, and with annotated faces."""

import csv
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from ferjax import files, labels
from ferjax.annotation import alignment, faces, journal
from ferjax.annotation import detector as detectors
from ferjax.annotation.faces import MATRIX, NO_FACE
from ferjax.annotation.journal import Entry
from ferjax.data import dataset
from ferjax.data.sets import parse
from ferjax.data.splits import fold_of_rows
from ferjax.datasets import catalogue
from ferjax.datasets.manifest.parser import POSE
from ferjax.errors import InputError
from ferjax.images.files import ENDINGS, SIGNATURES, decode
from ferjax.terminal import progress

LONGEST = 200  # bytes of a name in a path; file systems allow 255, with all endings
REPLACED = {'landmarks': 'landmarks', 'yaw': 'pose'}


class Rows(NamedTuple):
  """All rows of a prepared data set.

  Attributes:
    name: The data set's name.
    classes: Class names in label order.
    splits: Any of `train`, `val`, `test`; landmarks are in pixels of the stored pictures.
    places: {split: for each row a path without an ending; unique, below any folder}.
    fold: The fold i[n] that each row of `train` is tested in; None without folds.
    subjects: Names of the people, by the numbers in the column `subject`.
    action_units: Names of the columns of `au`.
    fingerprint: SHA-256 of all pictures and labels.
  """

  name: str
  classes: tuple[str, ...]
  splits: Mapping[str, dataset.Split]
  places: Mapping[str, Sequence[str]]
  fold: np.ndarray | None
  subjects: tuple[str, ...]
  action_units: tuple[str, ...]
  fingerprint: str

  def keys(self, most: int = 0) -> list[str]:
    """`split/number` of each row; with `most`, of this many rows of each split, spread evenly."""
    found = []
    for name, split in self.splits.items():
      count = len(split.rows)
      taken = min(most or count, count)
      found += [f'{name}/{i * count // taken}' for i in range(taken)]
    return found

  def picture(self, key: str) -> bytes:
    """The encoded picture of a row."""
    split, row = _at(key)
    return self.splits[split].records[row]


def read(builder: tfds.core.DatasetBuilder) -> Rows:
  """The rows of a data set. It is prepared if necessary.

  Args:
    builder: See `catalogue.make_builder`.

  Raises:
    InputError: see `catalogue.prepare`.
  """
  catalogue.prepare(builder)
  splits, fingerprint = dataset.stored(builder)
  features, metadata = builder.info.features, builder.info.metadata or {}
  folds = metadata.get('folds', 0)
  fold = None
  if folds:
    fold = fold_of_rows(splits['train'].table, folds)
  return Rows(
    name=builder.name,
    classes=tuple(labels.canonical(name) for name in features['label'].names),
    splits=splits,
    places={name: _places(split.table['name'].tolist()) for name, split in splits.items()},
    fold=fold,
    subjects=tuple(features['subject'].names) if 'subject' in features else (),
    action_units=tuple(metadata.get('action_units', ())),
    fingerprint=fingerprint,
  )


def load(
  spec: str,
  *,
  manual_dir: str = '',
  dir: str = '',
  options: Mapping[str, Any] | None = None,
  classes: Sequence[str] = (),
  skip_bad: bool = False,
) -> Rows:
  """The rows of a data set that the flag `--data` names.

  If `manual_dir` is given and the folder has changed, it is prepared again.

  Args:
    spec: See `data.sets.parse`.
    manual_dir: The folder that holds it, or that holds `<name>`.
    dir: The folder of prepared data sets; TFDS's default when empty.
    options: Further keyword arguments of its `make`.
    classes: Of a manifest, if its classes are others than the canonical ones.
    skip_bad: Leave bad rows out. If False, bad rows are an error.

  Raises:
    InputError: there is no such data set, its folder does not have the expected layout, or it has
      bad rows.
  """
  which = parse(spec, '--data')
  classes = tuple(labels.canonical(name) for name in classes)
  source = catalogue.Source(
    which['path'], manual_dir, which['protocol'], classes, skip_bad, refresh=bool(manual_dir)
  )
  return read(catalogue.make_builder(which['name'], dir or None, source, options or {}))


def check(out: Path, spec: str, size: int, margin: float, most: int, workers: int) -> None:
  """Checks the arguments of `annotate`.

  Raises:
    InputError: a setting is out of range, or the manifest of `spec` would be overwritten.
  """
  faces.check_crop(size, margin)
  faces.check_workers(workers)
  if most < 0:
    raise InputError(f'--most={most}: give a number of rows, or 0 for all')
  path = parse(spec, '--data')['path']
  folder = Path(path).resolve().parent
  if path and (folder == out.resolve() or folder.is_relative_to((out / 'faces').resolve())):
    raise InputError(f'--out={out} holds {path}, which is read: give another folder')


def label_columns(rows: Rows, key: str) -> dict[str, str]:
  """The columns of a manifest for the labels of a row: split, class, distribution, subject, pose
  class, fold, and `source`, its name in the data set."""
  split, row = _at(key)
  table = rows.splits[split].table
  found = {'split': split, 'label': rows.classes[table['label'][row]]}
  if 'distribution' in table:
    shares = zip(rows.classes, table['distribution'][row], strict=True)
    found |= {f'p_{name}': f'{share:.9g}' for name, share in shares}
  if 'subject' in table:
    found['subject'] = rows.subjects[table['subject'][row]]
  if 'yaw_bin' in table:
    found['yaw_bin'] = str(table['yaw_bin'][row])
  if rows.fold is not None:
    found['fold'] = str(rows.fold[row])
  return found | {'source': str(table['name'][row])}


def action_unit_columns(rows: Rows, key: str) -> dict[str, str]:
  """The columns of a manifest for the action units of a row."""
  split, row = _at(key)
  table = rows.splits[split].table
  if 'au' not in table:
    return {}
  units = zip(rows.action_units, table['au'][row], strict=True)
  return {f'{name}_r': f'{value:.9g}' for name, value in units}


def face_columns(rows: Rows, key: str) -> dict[str, str]:
  """The columns of a manifest for the landmarks, the pose and the action units of a row."""
  split, row = _at(key)
  table = rows.splits[split].table
  found = {}
  if 'yaw' in table:
    found |= {column: f'{np.radians(table[name][row]):.9g}' for name, column in POSE.items()}
  found |= action_unit_columns(rows, key)
  if 'landmarks' in table:
    for axis, values in zip('xy', table['landmarks'][row].T, strict=True):
      found |= {f'{axis}_{i}': f'{value:.9g}' for i, value in enumerate(values)}
  return found


def check_out(out: Path, spec: str = '') -> Path:
  """Checks the arguments of `write`.

  Args:
    out: The manifest to write.
    spec: Of the data set; see `data.sets.parse`.

  Returns:
    The folder of its pictures.

  Raises:
    InputError: `out` is the manifest of `spec`, or cannot be written, or there are pictures
      already.
  """
  path = parse(spec, '--data')['path'] if spec else ''
  if path and out.resolve() == Path(path).resolve():
    raise InputError(f'--out={out} is the manifest that is read: give another file')
  files.check_out(out)
  folder = out.with_name(f'{out.stem}_pictures')
  if folder.exists():
    raise InputError(f'--out={out}: {folder} exists already: delete it, or give another --out')
  return folder


def write(rows: Rows, out: Path) -> str:
  """Writes a data set as a manifest, with its pictures next to it in `<name of out>_pictures`.

  Args:
    rows: The data set.
    out: The manifest to write.

  Returns:
    A summary.

  Raises:
    InputError: `out` cannot be written, or there are pictures already.
  """
  folder = check_out(out)
  partial = folder.with_name(f'{folder.name}.{os.getpid()}.partial')

  def written():
    keys = rows.keys()
    for key in progress.track(keys, f'Writing {rows.name}', len(keys)):
      encoded = rows.picture(key)
      ending = '.jpg' if encoded.startswith(SIGNATURES[0]) else '.png'
      place = f'{_place(rows, key)}{ending}'
      (partial / place).parent.mkdir(parents=True, exist_ok=True)
      (partial / place).write_bytes(encoded)
      row = {'path': f'{folder.name}/{place}', **label_columns(rows, key)}
      yield row | face_columns(rows, key)

  try:
    with files.replacing(out) as file:
      _write_rows(file, written())
      os.rename(partial, folder)
  except OSError as error:
    raise InputError(f'cannot write {error.filename or out}: {error.strerror}') from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  counts = {name: len(split.rows) for name, split in rows.splits.items()}
  lines = [f'{rows.name}: ' + ', '.join(f'{name} {count}' for name, count in counts.items())]
  return '\n'.join([*lines, *_use(rows, out)])


def annotate(
  rows: Rows,
  out: Path,
  command: Sequence[str],
  *,
  size: int = 112,
  margin: float = 0.1,
  drop: bool = False,
  most: int = 0,
  workers: int = 1,
) -> str:
  """Writes a data set as a manifest of aligned crops with landmarks and pose.

  The labels of a row stay. Landmarks and pose that the data set has are replaced. Rows that an
  earlier run has annotated are skipped.

  A row without a face has 0 in the column `has_face`. Its crop is at the median place of the faces
  found in the other pictures, and its landmarks and other numbers are their medians.

  Args:
    rows: The data set.
    out: The folder to write.
    command: The command of a process that finds faces; see `detector.worker`.
    size: Size of a crop in pixels.
    margin: Margin on each side of an average face, as a share of the crop.
    drop: Leave rows without a face out of the manifest.
    most: The most rows of each split, spread evenly over it; 0 for all. A later run with more rows
      continues.
    workers: Number of processes that find faces.

  Returns:
    A summary, with the numbers of rows without a face by class and split.

  Raises:
    InputError: a setting is out of range, no picture has a face, a crop cannot be written, another
      command is writing to `out`, or `out` was started with other settings, another MediaPipe or
      other data.
  """
  faces.check_crop(size, margin)
  keys = rows.keys(most)

  def look(key, detector):
    return _entry(rows, out, key, detector, size, margin)

  with journal.completed(
    out,
    keys,
    look,
    command,
    settings={'size': size, 'margin': margin, 'data': f'{rows.name} {rows.fingerprint[:12]}'},
    holds=lambda entry: faces.is_whole(entry, out),
    workers=workers,
  ) as entries:
    missing = [entry for entry in entries if not entry['faces']]
    if len(missing) == len(entries):
      raise InputError(
        f'no face found in the {len(entries)} pictures of {rows.name} (first: '
        f'{missing[0]["reason"]}): nothing is written'
      )
    typical = _typical(rows, entries)
    with files.replacing(out / 'manifest.csv') as file:
      _write_rows(file, _annotated(rows, out, entries, typical, size, drop))
    with files.replacing(out / 'without_face.csv') as file:
      columns = [label_columns(rows, entry['picture']) for entry in missing]
      reasons = [{'reason': entry['reason']} for entry in missing]
      lines = csv.writer(file)
      lines.writerow(('source', 'split', 'label', 'reason'))
      for row, reason in zip(columns, reasons, strict=True):
        lines.writerow([(row | reason)[name] for name in ('source', 'split', 'label', 'reason')])
  return '\n'.join([*_counts(rows, keys, missing, drop), *_use(rows, out / 'manifest.csv')])


def _at(key: str) -> tuple[str, int]:
  split, _, row = key.partition('/')
  return split, int(row)


def _place(rows: Rows, key: str) -> str:
  split, row = _at(key)
  return f'{split}/{rows.places[split][row]}'


def _places(names: Sequence[str]) -> list[str]:
  """For each name a path that is below any folder and has no ending of a picture file. They are
  unique, also where case is ignored, and short enough that an ending can be added."""
  found, taken = [], set()
  for name in names:
    parts = [re.sub(r'[^\w .()+-]', '_', part) for part in name.replace('\\', '/').split('/')]
    parts = [part.strip() for part in parts if part.strip(' .')]
    place = '/'.join(parts) or 'picture'
    ending = next((end for end in ENDINGS if place.lower().endswith(end)), '')
    place = place[: len(place) - len(ending)] or 'picture'
    stem = place = '/'.join(_shortened(part) for part in place.split('/'))
    number = 1
    while place.lower() in taken:
      number += 1
      place = f'{stem}-{number}'
    taken.add(place.lower())
    found.append(place)
  return found


def _shortened(part: str) -> str:
  return part.encode()[:LONGEST].decode(errors='ignore').strip()


def _write_rows(file, rows: Iterator[Mapping[str, str]]) -> None:
  writer = None
  for row in rows:
    if writer is None:
      writer = csv.DictWriter(file, list(row))
      writer.writeheader()
    writer.writerow(row)


def _entry(rows, out, key, detector, size, margin) -> Entry:
  """Annotates a row: writes its crop, and returns its entry for the journal."""
  entry = {'picture': key, 'faces': [], 'reason': ''}
  image = decode(rows.picture(key))
  try:
    found = detector.find(image)
  except detectors.DetectorError as error:
    return entry | {'reason': f'the detector failed: {error}'}
  if not found:
    return entry | {'reason': NO_FACE}
  fields, crop = faces.describe(image, found[0], size, margin)
  path = f'faces/{_place(rows, key)}.png'
  _write_crop(out / path, crop)
  return entry | {'faces': [{'path': path, 'fields': fields}]}


def _write_crop(path, crop) -> None:
  try:
    faces.write_crop(path, crop)
  except OSError as error:
    raise InputError(f'cannot write {path}: {error.strerror}') from error


def _typical(rows: Rows, entries: Sequence[Entry]) -> dict[str, float]:
  """The medians of the columns of all faces. Those of the matrix map a picture whose longer side is
  1 and whose centre is 0 to the crop."""
  names, values = None, []
  for entry in entries:
    for face in entry['faces']:
      names = names or list(face['fields'])
      fields = np.array([float(face['fields'][name]) for name in names], np.float32)
      matrix = _matrix(face['fields'])
      centre, longer = _extent(rows, entry['picture'])
      shift = matrix[:, :2] @ centre + matrix[:, 2]
      fields[: len(MATRIX)] = np.column_stack([matrix[:, :2] * longer, shift]).ravel()
      values.append(fields)
  return dict(zip(names, np.median(values, 0).astype(float).tolist(), strict=True))


def _matrix(fields: Mapping[str, str]) -> np.ndarray:
  return np.array([float(fields[name]) for name in MATRIX]).reshape(2, 3)


def _extent(rows: Rows, key: str) -> tuple[np.ndarray, int]:
  """The centre of a picture, x and y in pixels, and its longer side."""
  split, row = _at(key)
  table = rows.splits[split].table
  width, height = int(table['width'][row]), int(table['height'][row])
  return np.array([width - 1, height - 1]) / 2, max(width, height)


def _annotated(rows, out, entries, typical, size, drop) -> Iterator[dict[str, str]]:
  """The rows of the manifest. The crops of pictures without a face are written on the way."""
  for entry in entries:
    key, found = entry['picture'], bool(entry['faces'])
    if found:
      path, fields = entry['faces'][0]['path'], entry['faces'][0]['fields']
    elif drop:
      continue
    else:
      path = f'faces/{_place(rows, key)}.png'
      fields, crop = _usual(rows, key, typical, size)
      _write_crop(out / path, crop)
    estimated = any(name.startswith('AU') for name in fields)
    own = {} if estimated else action_unit_columns(rows, key)
    labelled = label_columns(rows, key)
    yield {'path': path, **labelled, 'has_face': str(int(found)), **own, **fields}


def _usual(rows: Rows, key: str, typical: Mapping[str, float], size: int):
  """The columns and the crop of a picture without a face."""
  centre, longer = _extent(rows, key)
  matrix = np.array([typical[name] for name in MATRIX]).reshape(2, 3)
  linear = matrix[:, :2] / longer
  matrix = np.column_stack([linear, matrix[:, 2] - linear @ centre])
  fields = {name: f'{value:.9g}' for name, value in zip(MATRIX, matrix.ravel(), strict=True)}
  digits = {name: 4 for name in POSE.values()}
  fields |= {n: f'{v:.{digits.get(n, 2)}f}' for n, v in typical.items() if n not in MATRIX}
  return fields, alignment.crop(decode(rows.picture(key)), _matrix(fields), size)


def _counts(rows: Rows, keys: Sequence[str], missing: Sequence[Entry], drop: bool) -> list[str]:
  """The numbers of rows with and without a face, the latter by class and split."""
  found = len(keys) - len(missing)
  lines = [f'{rows.name}: {len(keys)} rows, {found} with a face ({100 * found / len(keys):.1f} %)']
  tables = [split.table for split in rows.splits.values()]
  replaced = [text for column, text in REPLACED.items() if any(column in t for t in tables)]
  if replaced:
    lines.append(f'replaced: {" and ".join(replaced)} of the data set')
  if not missing:
    return lines
  reasons = Counter(entry['reason'].partition(':')[0] for entry in missing)
  lines += [f'{reason}: {count} (without_face.csv)' for reason, count in reasons.most_common()]
  lines.append(
    'They are left out.'
    if drop
    else 'They stay, with has_face=0, a crop at the median place and the median landmarks.'
  )

  def cell(key):
    split, row = _at(key)
    return int(rows.splits[split].table['label'][row]), split

  of_all, without = Counter(map(cell, keys)), Counter(cell(entry['picture']) for entry in missing)
  width = max(map(len, rows.classes))
  lines.append(' ' * width + ''.join(f'{name:>16}' for name in rows.splits))
  for label, name in enumerate(rows.classes):
    cells = [f'{without[label, split]} of {of_all[label, split]}' for split in rows.splits]
    lines.append(f'{name:<{width}}' + ''.join(f'{text:>16}' for text in cells))
  return lines


def _use(rows: Rows, manifest: Path) -> list[str]:
  """How to train on a manifest that was written."""
  used = {rows.classes[i] for s in rows.splits.values() for i in np.unique(s.table['label'])}
  default = labels.CLASSES_8 if 'contempt' in used else labels.CLASSES
  flags = f'--config.data.name=manifest --config.data.path={manifest}'
  if rows.classes != default:
    flags += f' --config.data.classes="{rows.classes}"'
  return [f'written to {manifest}', f'to train on it: {flags}']
