"""A data set ready for use: splits as a table of labels on the host and pictures read by row."""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from ferjax import labels
from ferjax.data import tables
from ferjax.data.splits import (
  Split,
  Table,
  carve_validation,
  check_class_map,
  check_subjects,
  fold_by_subject,
  parse_class_map,
  select_classes,
  select_poses,
  with_pose,
  with_rows,
)
from ferjax.datasets.catalogue import Source, make_builder, prepare
from ferjax.errors import InputError, nearest
from ferjax.images.files import decode, rescale, resize
from ferjax.images.perceptual_hash import perceptual_hash
from ferjax.terminal import progress

LOGGER = logging.getLogger(__name__)

NO_CONTENT = {'name', 'height', 'width', 'hash'}  # columns outside the fingerprint


class Pictures:
  """Random access to the encoded pictures of serialised examples."""

  def __init__(self, examples: Sequence[bytes]):
    self.examples = examples

  def __len__(self) -> int:
    return len(self.examples)

  def __getitem__(self, record: int) -> bytes:
    example = tf_example_pb2.Example.FromString(self.examples[record])
    return example.features.feature['image'].bytes_list.value[0]


class Dataset(NamedTuple):
  """A prepared data set.

  Attributes:
    name: The data set's name.
    classes: Class names in label order.
    splits: Any of `train`, `val`, `test`.
    landmark_indices: Indices of the landmarks in their scheme; None when they are unknown.
    fingerprint: SHA-256 of all pictures and labels, the same on every machine.
    poses: Pose classes, yaw in degrees, in label order; empty when they are unknown.
    known: Class names of the data set itself, before `class_map`.
    action_units: Names of the columns of `au`, such as `AU01`; empty when there are none.
    sets: Names of the data sets that were joined to form this one (see `data/sets.py`). The column
      `set` i32 of its tables is an index into them. Empty for a single data set.
    landmark_scheme: One of `labels.SCHEMES`, such as `ibug68`; '' when it is unknown.
    left_out: {column: why joining sets, or a model, left it out}.
    dropped: {split: number of rows that `near_duplicates.drop` left out}; empty where it was not
      asked.
  """

  name: str
  classes: tuple[str, ...]
  splits: dict[str, Split]
  landmark_indices: tuple[int, ...] | None
  fingerprint: str
  poses: tuple[int, ...] = ()
  known: tuple[str, ...] = ()
  action_units: tuple[str, ...] = ()
  sets: tuple[str, ...] = ()
  landmark_scheme: str = ''
  left_out: Mapping[str, str] = {}
  dropped: Mapping[str, int] = {}


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
  class_map: Sequence[tuple[str, str]] = (),
  landmarks: Sequence[int] = (),
  poses: Sequence[int] = (),
  val_fraction: float = 0.1,
  seed: int = 0,
  skip_bad: bool = False,
  allow_shared_subjects: bool = False,
  needs_every_class: bool = True,
  needs_mapped_classes: bool = True,
  test_only: bool = False,
) -> Dataset:
  """Prepares a data set on first use and loads its tables.

  Args:
    name: A package of `ferjax.datasets` that holds `<name>_dataset_builder.py`.
    path: For `manifest`: the CSV file.
    dir: The folder of prepared data sets; TFDS's default when empty.
    manual_dir: For data sets that are not downloaded: the folder that holds `<name>`. It is needed
      until they are prepared; see `builder.maker`.
    protocol: A protocol of the data set; its first one when empty.
    fold: The fold to test on, if the protocol has folds by subject.
    options: {data set: further keyword arguments of its `make`}.
    image_size: Pictures are resized to this square, landmarks with them.
    classes: Class names in label order; the data set's own when empty. Rows of other classes are
      left out.
    class_map: Pairs (class of the data set, class that it becomes), such as ('scream', 'fear').
      Several classes may become one; its share of a distribution is the sum of theirs. '' leaves
      the rows of a class out.
    landmarks: Indices of the landmarks to use, for example among the 68 iBUG points; all when
      empty. With several sets, among the points that they have in common.
    poses: Pose classes in label order, yaw in whole degrees; those of the data set, ascending, when
      empty. Rows of other poses are left out.
    val_fraction: Share of train to hold out when the data set has no `val`; by subject if subjects
      are known, else by class. 0 for none.
    seed: Seed of that hold-out.
    skip_bad: Leave bad rows out. If False, bad rows are an error.
    allow_shared_subjects: Accept people who are in more than one split.
    needs_every_class: Require that the data set has all of `classes`.
    needs_mapped_classes: Require that the data set has all classes of `class_map`. If False, pairs
      whose class it lacks are ignored.
    test_only: Read only the test split if it exists, else every row of all folds.

  Raises:
    InputError: there is no such data set, it has bad rows, it lacks a requested class or pose, or
      two of its splits share subjects.
  """
  becomes = parse_class_map(class_map)
  classes = tuple(labels.canonical(name) for name in classes)
  if len(set(classes)) != len(classes):
    raise InputError(f'config.data.classes names a class twice: {classes}')
  wanted = classes or (labels.CLASSES if becomes else ())
  wanted = (*wanted, *(theirs for theirs in becomes if theirs not in wanted))
  source = Source(path, manual_dir, protocol, wanted, skip_bad)
  builder = make_builder(name, dir or None, source, dict((options or {}).get(name, {})))
  metadata = _prepare(builder, name)

  known = tuple(labels.canonical(name) for name in builder.info.features['label'].names)
  if not needs_mapped_classes:
    becomes = {theirs: ours for theirs, ours in becomes.items() if theirs in known}
  check_class_map(name, becomes, known, classes)
  stored, classes = _classes(name, known, becomes, classes, needs_every_class)

  splits = _read(builder, test_only)
  fingerprint = _fingerprint(splits, becomes)
  _warn_of_other_classes(name, splits, stored, classes, metadata.get('other_classes'))
  splits = {k: select_classes(split, stored, classes) for k, split in splits.items()}
  splits, poses = select_poses(splits, tuple(poses), name)
  splits = with_rows(splits, name, classes)
  if not test_only:
    splits = _one_fold(splits, metadata.get('folds', 0), fold, name)
  splits = carve_validation(splits, val_fraction, seed)
  check_subjects(splits, allow_shared_subjects)
  scheme, indices = _landmarks(builder, splits, landmarks)
  return Dataset(
    name=name,
    classes=classes,
    splits={k: _at_size(s, image_size, landmarks) for k, s in splits.items()},
    landmark_indices=indices,
    fingerprint=fingerprint,
    poses=poses,
    known=known,
    action_units=tuple(metadata.get('action_units', ())),
    landmark_scheme=scheme,
  )


def stored(builder: tfds.core.DatasetBuilder) -> tuple[dict[str, Split], str]:
  """All rows of a prepared data set, and the SHA-256 of its pictures and labels.

  Landmarks are in pixels of the stored pictures, and labels are indices into the data set's own
  classes.
  """
  splits = _read(builder, test_only=False)
  return splits, _fingerprint(splits, {})


def _prepare(builder, name) -> Mapping[str, Any]:
  """Prepares a data set if necessary, and returns its metadata."""
  prepare(builder)
  metadata = builder.info.metadata or {}
  if 'bad_rows' in metadata:
    LOGGER.warning('left out of %s:\n%s', name, metadata['bad_rows'])
  if metadata.get('differences'):
    LOGGER.warning('%s is not as expected: %s', name, '; '.join(metadata['differences']))
  return metadata


def _classes(name, known, becomes, classes, needs_every_class):
  """The name that each class of the data set becomes, and the classes in use in label order."""
  stored = tuple(becomes.get(theirs) or theirs for theirs in known)
  in_use = {ours for ours in stored if becomes.get(ours) != ''}
  classes = classes or tuple(ours for ours in dict.fromkeys((*known, *stored)) if ours in in_use)
  missing = set(classes) - set(stored)
  if missing and needs_every_class:
    raise InputError(
      f"{name} has no class '{min(missing)}'.{nearest(min(missing), stored)} It has {stored}"
    )
  return stored, classes


def _read(builder, test_only) -> dict[str, Split]:
  """The splits with all their rows. With `test_only`, only `test` if it exists."""
  splits = {}
  names = {'test'} if test_only and 'test' in builder.info.splits else set(builder.info.splits)
  for name in ('train', 'val', 'test'):
    if name in names:
      records = builder.as_data_source(name, decoders={'image': tfds.decode.SkipDecoding()})
      table = _load_table(builder, name, records)
      pictures = Pictures(records.data_source)
      splits[name] = Split(pictures, np.arange(len(table['name'])), table)
  return splits


def _fingerprint(splits, becomes) -> str:
  """SHA-256 of all pictures and labels, and of the class map."""
  digest = hashlib.sha256(repr(sorted(becomes.items())).encode() if becomes else b'')
  for name, split in splits.items():
    digest.update(name.encode())
    for column in sorted(set(split.table) - NO_CONTENT):
      digest.update(column.encode())
      digest.update(np.ascontiguousarray(split.table[column]).reshape(-1).view(np.uint8))
  return digest.hexdigest()


def _warn_of_other_classes(name, splits, stored, classes, never_stored) -> None:
  left_out = Counter(never_stored)
  for split in splits.values():
    named = np.array(stored)[split.table['label']]
    left_out.update(named[~np.isin(named, classes)].tolist())
  if left_out:
    LOGGER.warning('left out of %s, rows of classes not in use: %s', name, dict(left_out))


def _one_fold(splits, folds, fold, name):
  if folds:
    LOGGER.info('%s is tested on fold %d of %d', name, fold, folds)
  return fold_by_subject(splits, folds, fold, name)


def _load_table(builder, split: str, records) -> Table:
  """The label columns of a split: stored beside its records, or read from all of them and stored.

  Raises:
    InputError: a picture cannot be decoded.
  """
  folder = Path(builder.data_path)
  shards = [Path(path) for path in builder.info.splits[split].filepaths]
  stamp = tables.stamp(folder, shards)
  found = tables.read(folder, split, stamp, len(records))
  if found is None:
    table = _read_table(records, folder, split)
    stored = tables.write(folder, split, stamp, table)
    found = (tables.read(folder, split, stamp, len(records)) if stored else None) or table
  return found


def _read_table(records, folder: Path, split: str) -> Table:
  columns = {}
  rows = _rows(records, folder)
  for row in progress.track(rows, f'Reading labels of {split}', len(records)):
    for name, value in row.items():
      columns.setdefault(name, []).append(value)
  table = {}
  for name, values in columns.items():
    column = np.array(values)
    kinds = {'i': np.int32, 'f': np.float32}
    table[name] = column.astype(kinds.get(column.dtype.kind, column.dtype))
  return table


def _rows(records, folder: Path, size: int = 256) -> Iterator[dict[str, Any]]:
  """The features of all records; for the picture its digest, hash and size."""

  def row(record):
    features = dict(record)
    encoded = features.pop('image')
    image = decode(encoded)
    if image is None:
      raise InputError(
        f'{folder}: the stored picture {features["name"].decode()} cannot be decoded: remove this '
        'folder, and prepare the data set again'
      )
    height, width = image.shape[:2]
    return features | {
      'name': features['name'].decode(),
      'digest': hashlib.sha256(encoded).hexdigest()[:32],
      'hash': np.void(perceptual_hash(image).tobytes()),
      'height': height,
      'width': width,
    }

  with ThreadPoolExecutor(os.cpu_count()) as pool:
    for start in range(0, len(records), size):
      part = records.__getitems__(range(start, min(start + size, len(records))))
      yield from pool.map(row, part)


def with_poses(data: Dataset, poses: Sequence[int]) -> Dataset:
  """The data set with the pose classes of a model.

  Poses are matched by yaw. The column `pose` is -1 for rows with another pose.
  """
  splits = {name: with_pose(split, poses) for name, split in data.splits.items()}
  return data._replace(splits=splits, poses=tuple(poses))


def with_classes(data: Dataset, classes: Sequence[str]) -> Dataset:
  """The rows of a data set with the given classes. Classes are matched by name.

  Raises:
    InputError: there is no such row.
  """
  splits = {k: select_classes(split, data.classes, classes) for k, split in data.splits.items()}
  splits = with_rows(splits, data.name, classes)
  return data._replace(splits=splits, classes=tuple(classes))


def classes_without_rows(data: Dataset) -> list[str]:
  """The classes without a row in any split."""
  seen = np.concatenate([split.table['label'] for split in data.splits.values()])
  return [name for number, name in enumerate(data.classes) if number not in seen]


def _landmarks(builder, splits, landmarks) -> tuple[str, tuple[int, ...] | None]:
  """Scheme and indices of the landmarks."""
  scheme = (builder.info.metadata or {}).get('landmark_scheme', '')
  count = next(
    (s.table['landmarks'].shape[1] for s in splits.values() if 'landmarks' in s.table), 0
  )
  if landmarks and count and max(landmarks) >= count:
    raise InputError(
      f'config.data.landmarks asks for point {max(landmarks)}; {builder.name} has {count} points'
    )
  return scheme, (tuple(landmarks) or tuple(range(count))) if scheme else None


def _at_size(split: Split, size: int, landmarks: Sequence[int]) -> Split:
  if 'landmarks' not in split.table:
    return split
  points = split.table['landmarks']
  points = points[:, list(landmarks)] if landmarks else points
  stored = np.stack([split.table['width'], split.table['height']], -1)[:, None]
  return split._replace(table=split.table | {'landmarks': rescale(points, stored, size)})


def picture(split: Split, row: int, size: int) -> np.ndarray:
  """u8[size, size, 3]: picture `row` of a split."""
  return resize(decode(split.records[int(split.rows[row])]), size)


def flip_poses(dataset: Dataset) -> np.ndarray:
  """The pose of a flipped picture for each pose: int[p]. Its yaw has the other sign.

  Raises:
    InputError: the data set has a pose but not its mirror image.
  """
  for pose in dataset.poses:
    if -pose not in dataset.poses:
      raise InputError(
        f'{dataset.name} has the pose {pose} but not {-pose}, the pose of a flipped picture: '
        'set config.augment.flip=0'
      )
  return np.array([dataset.poses.index(-pose) for pose in dataset.poses])


def flip_order(dataset: Dataset) -> np.ndarray:
  """The landmark order after a flip: int[k].

  It is that of `labels.mirrored_landmarks`, or of `labels.estimated_mirror` if the scheme of the
  landmarks is unknown.

  Raises:
    InputError: the scheme is unknown, and the order cannot be estimated from the landmarks.
  """
  if dataset.landmark_scheme:
    return labels.mirrored_landmarks(dataset.landmark_indices, dataset.landmark_scheme)
  split = dataset.splits.get('train') or next(iter(dataset.splits.values()))
  mirror = labels.estimated_mirror(split.table['landmarks'])
  if mirror is None:
    raise InputError(
      f'{dataset.name}: the scheme of its landmarks is unknown (known: '
      f'{", ".join(labels.SCHEMES)}), and their mean does not show which of them are left and '
      'right: set config.augment.flip=0'
    )
  pairs = ', '.join(f'{i}-{j}' for i, j in enumerate(mirror) if i < j)
  LOGGER.info('%s: left and right landmarks, by their mean: %s', dataset.name, pairs)
  return mirror
