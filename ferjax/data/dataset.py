"""A data set ready for use: splits as a table of labels on the host and pictures read by row."""

import hashlib
import importlib
import inspect
import logging
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds

from ferjax import files
from ferjax.data import labels
from ferjax.errors import InputError, nearest

LOGGER = logging.getLogger(__name__)

Table = dict[str, np.ndarray]
TABLE_VERSION = 1


class Split(NamedTuple):
  """Some rows of a prepared data set.

  Attributes:
    records: Random access to the stored records, whose `image` stays encoded.
    rows: int[n], which records belong to this split.
    table: Columns of length n: `label` i32, `name` str, `digest` str (of the picture's bytes),
      `height width` i32 of the stored picture, and what else the data set knows (see
      `data/features.py`); landmarks f32[n, k, 2] in pixels of the picture at `image_size`.
  """

  records: Any
  rows: np.ndarray
  table: Table


class Dataset(NamedTuple):
  """A prepared data set.

  Attributes:
    name: The data set's name.
    classes: Class names in label order.
    splits: Any of `train`, `val`, `test`.
    landmark_indices: Which of the 68 iBUG points the landmarks are; None when that is unknown.
    fingerprint: Of every picture and label, whatever the machine.
  """

  name: str
  classes: tuple[str, ...]
  splits: dict[str, Split]
  landmark_indices: tuple[int, ...] | None
  fingerprint: str


def load(
  *,
  name: str,
  path: str = '',
  dir: str = '',
  manual_dir: str = '',
  protocol: str = '',
  fold: int = 0,
  options: Mapping[str, Mapping[str, Any]] | None = None,
  image_size: int = 64,
  classes: Sequence[str] = (),
  landmarks: Sequence[int] = (),
  val_fraction: float = 0.1,
  seed: int = 0,
  skip_bad: bool = False,
  allow_shared_subjects: bool = False,
) -> Dataset:
  """Prepares a data set on first use and loads its tables.

  Args:
    name: A package of `ferjax.data` that holds `<name>_dataset_builder.py`.
    path: For `manifest`: the CSV file.
    dir: Where prepared data sets lie; TFDS's default when empty.
    manual_dir: For data sets that were handed out: the folder that holds `<name>`, needed until
      they are prepared; see `builder.maker`.
    protocol: Which of the data set's protocols; its first when empty.
    fold: Which fold to test on, where the protocol has folds by subject.
    options: By data set: further keyword arguments of its `make`.
    image_size: Pictures are resized to this square, landmarks with them.
    classes: Class names in label order; the data set's own when empty.
    landmarks: Which of the 68 iBUG points to use; all when empty.
    val_fraction: Share of train to hold out when the data set has no `val`; by subject where
      subjects are known, else by class. 0 for none.
    seed: Seed of that hold-out.
    skip_bad: Leave bad rows out instead of refusing the data set.
    allow_shared_subjects: Accept people who stand in more than one split.

  Raises:
    InputError: no such data set, bad rows, a class name that the data set does not have, a split
      that shares subjects with another.
  """
  classes = tuple(labels.canonical(name) for name in classes)
  if len(set(classes)) != len(classes):
    raise InputError(f'config.data.classes names a class twice: {classes}')
  given = {'path': path, 'classes': tuple(classes), 'skip_bad': skip_bad}
  given |= {'manual_dir': manual_dir, 'protocol': protocol}
  builder = make_builder(name, dir or None, given, dict((options or {}).get(name, {})))
  if not (Path(builder.data_path) / 'dataset_info.json').exists():
    LOGGER.info('preparing %s in %s', name, builder.data_path)
  builder.download_and_prepare(file_format='array_record')
  metadata = builder.info.metadata or {}
  if 'bad_rows' in metadata:
    LOGGER.warning('left out of %s:\n%s', name, metadata['bad_rows'])
  if metadata.get('differences'):
    LOGGER.warning('%s is not as known: %s', name, '; '.join(metadata['differences']))

  stored = tuple(builder.info.features['label'].names)
  classes = tuple(classes) or stored
  missing = set(classes) - set(stored)
  if missing:
    raise InputError(
      f"{name} has no class '{min(missing)}'.{nearest(min(missing), stored)} It has {stored}"
    )
  digest = hashlib.sha256()
  splits = {}
  for split in ('train', 'val', 'test'):
    if split not in builder.info.splits:
      continue
    records = builder.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})
    table = _load_table(records, Path(builder.data_path) / f'table-{split}.npz', split)
    digest.update(split.encode())
    for column in sorted(set(table) - {'name', 'height', 'width'}):
      digest.update(column.encode() + np.ascontiguousarray(table[column]).tobytes())
    splits[split] = _select_classes(
      Split(records, np.arange(len(table['name'])), table), stored, classes
    )
  splits = _fold(splits, metadata.get('folds', 0), fold, name)
  splits = carve_validation(splits, val_fraction, seed)
  check_subjects(splits, allow_shared_subjects)
  indices = _landmark_indices(builder, splits, landmarks)
  return Dataset(
    name=name,
    classes=classes,
    splits={k: _at_size(s, image_size, landmarks) for k, s in splits.items()},
    landmark_indices=indices,
    fingerprint=digest.hexdigest(),
  )


def names() -> tuple[str, ...]:
  """The data sets that exist: packages of `ferjax.data` with a builder."""
  here = Path(__file__).parent
  return tuple(sorted(p.parent.name for p in here.glob('*/*_dataset_builder.py')))


def make_builder(
  name: str, data_dir: str | None, given: Mapping[str, Any], options: Mapping[str, Any]
) -> tfds.core.DatasetBuilder:
  """The TFDS builder of a data set.

  Args:
    name: See `load`.
    data_dir: Where prepared data sets lie; TFDS's default when None.
    given: Keyword arguments for its `make`; those that it does not take are left out, and an empty
      `protocol`.
    options: Further ones; they must fit.

  Raises:
    InputError: no such data set, or an option or protocol that it does not have.
  """
  if name not in names():
    raise InputError(
      f"no data set '{name}'.{nearest(name, names())} There are: {', '.join(names())}"
    )
  make = importlib.import_module(f'ferjax.data.{name}.{name}_dataset_builder').make
  accepted = set(inspect.signature(make).parameters) - {'data_dir'}
  for key in options:
    if key not in accepted or key in given:
      raise InputError(
        f'unknown key config.data.options.{name}.{key}.{nearest(key, accepted - set(given))}'
      )
  given = {k: v for k, v in given.items() if k != 'protocol' or v}
  if 'protocol' in given and 'protocol' not in accepted:
    raise InputError(f'config.data.protocol={given["protocol"]!r}: {name} has no protocols')
  return make(data_dir, **{k: v for k, v in given.items() if k in accepted}, **options)


def _load_table(records, path: Path, split: str) -> Table:
  """The label columns of all records; scanned once, then kept beside the records."""
  try:
    with path.open('rb') as file, np.load(file, allow_pickle=False) as stored:
      if stored['table_version'] == TABLE_VERSION:
        return {name: stored[name] for name in stored.files if name != 'table_version'}
  except (OSError, KeyError, ValueError, zipfile.BadZipFile):
    pass
  columns = {}
  for record in tfds.core.utils.tqdm(_all(records), f'Reading labels of {split}', len(records)):
    record = dict(record)
    encoded = record.pop('image')
    record['name'] = record['name'].decode()
    record['digest'] = hashlib.sha256(encoded).hexdigest()[:32]
    record['height'], record['width'] = decode(encoded).shape[:2]
    for name, value in record.items():
      columns.setdefault(name, []).append(value)
  table = {}
  for name, values in columns.items():
    column = np.array(values)
    kinds = {'i': np.int32, 'f': np.float32}
    table[name] = column.astype(kinds.get(column.dtype.kind, column.dtype))
  with files.replacing(path, 'wb') as file:
    np.savez(file, table_version=TABLE_VERSION, **table)
  return table


def _all(records, size=256):
  for start in range(0, len(records), size):
    yield from records.__getitems__(range(start, min(start + size, len(records))))


def take(split: Split, rows: np.ndarray) -> Split:
  """The split of the given rows int[m] of a split."""
  return Split(split.records, split.rows[rows], {k: v[rows] for k, v in split.table.items()})


def _select_classes(split: Split, stored: Sequence[str], classes: Sequence[str]) -> Split:
  if tuple(stored) == tuple(classes):
    return split
  number = np.array([classes.index(name) if name in classes else -1 for name in stored])
  split = take(split, np.flatnonzero(number[split.table['label']] >= 0))
  table = split.table | {'label': number[split.table['label']].astype(np.int32)}
  if 'distribution' in table:
    shares = table['distribution'][:, [stored.index(name) for name in classes]]
    total = shares.sum(1, keepdims=True)
    one_hot = np.eye(len(classes), dtype=np.float32)[table['label']]
    table['distribution'] = np.where(total > 0, shares / np.maximum(total, 1e-12), one_hot)
  return split._replace(table=table)


def _fold(splits, folds, fold, name):
  """Train and test of one fold: every folds-th subject, in the order of their names, is tested."""
  if not 0 <= fold < max(folds, 1):
    text = f'0 to {folds - 1}' if folds else '0, for it has no folds'
    raise InputError(f'config.data.fold={fold}: with this protocol of {name} it must be {text}')
  if not folds:
    return splits
  train = splits['train']
  people, position = np.unique(train.table['subject'], return_inverse=True)
  if len(people) < folds:
    raise InputError(f'{name} has {len(people)} subjects, too few for {folds} folds')
  tested = position % folds == fold
  return {
    'train': take(train, np.flatnonzero(~tested)),
    'test': take(train, np.flatnonzero(tested)),
  }


def carve_validation(splits: Mapping[str, Split], fraction: float, seed: int) -> dict[str, Split]:
  """Holds a validation split out of train when there is none.

  Args:
    splits: By name.
    fraction: Share of train's rows, 0..1; 0 for none.
    seed: Seed of the draw.

  Returns:
    The splits, with `val`: whole subjects where they are known, else the same share of each class.
  """
  if 'val' in splits or 'train' not in splits or not fraction:
    return dict(splits)
  train = splits['train']
  rng = np.random.default_rng(seed)
  if 'subject' in train.table:
    held_out = _hold_out_people(rng, train.table, fraction * len(train.rows))
  else:
    held_out = np.zeros(len(train.rows), bool)
    for label in np.unique(train.table['label']):
      rows = rng.permutation(np.flatnonzero(train.table['label'] == label))
      held_out[rows[: round(fraction * len(rows))]] = True
  LOGGER.info('no validation split: %d of %d training rows held out', held_out.sum(), len(held_out))
  if not held_out.any():
    return dict(splits)
  carved = {'train': np.flatnonzero(~held_out), 'val': np.flatnonzero(held_out)}
  return dict(splits) | {name: take(train, rows) for name, rows in carved.items()}


def _hold_out_people(rng, table, wanted):
  """Rows bool[n] of people drawn in turn, each taken if that brings the number of rows nearer to
  `wanted` and leaves no class without training rows."""
  label, subject = table['label'], table['subject']
  held_out = np.zeros(len(label), bool)
  left = np.bincount(label)
  for person in rng.permutation(np.unique(subject)):
    rows = subject == person
    left_then = left - np.bincount(label[rows], minlength=len(left))
    nearer = abs(held_out.sum() + rows.sum() - wanted) < abs(held_out.sum() - wanted)
    if nearer and not ((left > 0) & (left_then == 0)).any():
      held_out, left = held_out | rows, left_then
  return held_out


def check_subjects(splits: Mapping[str, Split], allow_shared: bool) -> None:
  """Refuses splits that share people, unless told otherwise.

  Raises:
    InputError: a subject stands in two splits and `allow_shared` is False.
  """
  known = {k: np.unique(s.table['subject']) for k, s in splits.items() if 'subject' in s.table}
  for first in known:
    for second in known:
      shared = np.intersect1d(known[first], known[second])
      if first < second and len(shared):
        text = f'{len(shared)} subjects stand in both {first} and {second}'
        if not allow_shared:
          raise InputError(
            f'{text}: results would be too good. Make the splits subject-disjoint, or accept it '
            'with --config.data.allow_shared_subjects=True'
          )
        LOGGER.warning('%s (config.data.allow_shared_subjects=True)', text)


def duplicates(splits: Mapping[str, Split]) -> dict[str, int]:
  """{'train/test': n, ...}: pictures of the second split that the first has too, byte for byte."""
  names = list(splits)
  counts = {}
  for i, first in enumerate(names):
    for second in names[i + 1 :]:
      shared = np.isin(splits[second].table['digest'], splits[first].table['digest']).sum()
      if shared:
        counts[f'{first}/{second}'] = int(shared)
  return counts


def _landmark_indices(builder, splits, landmarks) -> tuple[int, ...] | None:
  scheme = (builder.info.metadata or {}).get('landmark_scheme', '')
  count = next(
    (s.table['landmarks'].shape[1] for s in splits.values() if 'landmarks' in s.table), 0
  )
  if landmarks and count and max(landmarks) >= count:
    raise InputError(
      f'config.data.landmarks asks for point {max(landmarks)}; {builder.name} has {count} points'
    )
  if scheme != 'ibug68':
    return None
  return tuple(landmarks) or tuple(range(68))


def _at_size(split: Split, size: int, landmarks: Sequence[int]) -> Split:
  if 'landmarks' not in split.table:
    return split
  points = split.table['landmarks']
  points = points[:, list(landmarks)] if landmarks else points
  stored = np.stack([split.table['width'], split.table['height']], -1)[:, None]
  points = (points + 0.5) * (size / stored) - 0.5
  return split._replace(table=split.table | {'landmarks': points.astype(np.float32)})


def decode(encoded: bytes) -> np.ndarray:
  """Encoded picture -> u8[h, w, 3] RGB; grey is repeated, EXIF orientation is applied."""
  return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)


def resize(image: np.ndarray, size: int) -> np.ndarray:
  """u8[h, w, 3] -> u8[size, size, 3]; shrinks by area averages, enlarges bilinearly."""
  if image.shape[:2] == (size, size):
    return image
  shrinks = size < min(image.shape[:2])
  method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  return cv2.resize(image, (size, size), interpolation=method)


def picture(split: Split, row: int, size: int) -> np.ndarray:
  """u8[size, size, 3]: picture `row` of a split."""
  return resize(decode(split.records[int(split.rows[row])]['image']), size)


def flip_order(dataset: Dataset) -> np.ndarray:
  """int[k]: landmark order after a flip; see `labels.mirrored_landmarks`.

  Raises:
    InputError: the data set's landmarks are in no known scheme.
  """
  if dataset.landmark_indices is None:
    raise InputError(
      f'{dataset.name}: its landmarks are not the 68 iBUG points, so left and right are unknown: '
      'set config.augment.flip=0'
    )
  return labels.mirrored_landmarks(dataset.landmark_indices)
