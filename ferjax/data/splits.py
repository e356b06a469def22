"""Splits of a data set, and the choice of their rows by class, pose, fold and validation share."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ferjax import labels
from ferjax.errors import InputError, nearest

LOGGER = logging.getLogger(__name__)

Table = dict[str, np.ndarray]


class Split(NamedTuple):
  """Some rows of a prepared data set.

  Attributes:
    records: Random access to the encoded pictures.
    rows: int[n], the records that belong to this split.
    table: Columns of length n, which may be read-only: `label` i32, `name` str, `digest` str (of
      the picture's bytes), `hash` V32 (see `images/perceptual_hash.py`), `height width` i32 of the
      stored picture, and the other features of the data set (see `datasets/features.py`);
      landmarks f32[n, k, 2] in pixels of the picture at `image_size`. If `yaw_bin` is known, `pose`
      i32 is its index among the poses of the data set, or -1.
  """

  records: Any
  rows: np.ndarray
  table: Table


def take(split: Split, rows: np.ndarray) -> Split:
  """The split of the given rows int[m] of a split."""
  return Split(split.records, split.rows[rows], {k: v[rows] for k, v in split.table.items()})


def parse_class_map(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
  """{canonical class of the data set: canonical class that it becomes, or ''}.

  Raises:
    InputError: an entry is not a pair, or a class is mapped to two classes.
  """
  becomes = {}
  for pair in pairs:
    if isinstance(pair, str) or len(pair) != 2:
      raise InputError(
        f"config.data.class_map={tuple(pairs)}: give pairs, such as (('scream','fear'),)"
      )
    theirs, ours = (labels.canonical(name) for name in pair)
    if becomes.setdefault(theirs, ours) != ours:
      raise InputError(
        f"config.data.class_map maps '{theirs}' to two classes, '{becomes[theirs]}' and '{ours}': "
        'give one of them'
      )
  return becomes


def check_class_map(
  name: str, becomes: Mapping[str, str], stored: Sequence[str], classes: Sequence[str]
) -> None:
  """Checks a class map.

  Args:
    name: The data set's.
    becomes: See `parse_class_map`.
    stored: The classes of the data set.
    classes: The classes in use; empty for those of the data set.

  Raises:
    InputError: the map does not fit these classes. The message names the class, and the most
      similar one that would fit.
  """
  allowed = classes or tuple(dict.fromkeys((*labels.CLASSES_8, *stored)))
  for theirs, ours in becomes.items():
    if theirs not in stored:
      raise InputError(
        f"config.data.class_map names '{theirs}', which is not a class of {name}."
        f'{nearest(theirs, stored)} It has {stored}'
      )
    if ours and ours not in allowed:
      raise InputError(
        f"config.data.class_map maps '{theirs}' to '{ours}', which is not a class in use."
        f'{nearest(ours, allowed)} There are: {", ".join(allowed)}'
      )
    if not ours and theirs in classes:
      raise InputError(
        f"config.data.class_map leaves out '{theirs}', which is a class in use: remove it from the "
        'map, or from config.data.classes'
      )


def select_classes(split: Split, stored: Sequence[str], classes: Sequence[str]) -> Split:
  """The split with labels and distributions over `classes`. Rows of other classes are left out.

  Args:
    split: Its labels are indices into `stored`.
    stored: The class that each class of the data set becomes.
    classes: The classes in use.
  """
  if tuple(stored) == tuple(classes):
    return split
  number = np.array([classes.index(name) if name in classes else -1 for name in stored])
  split = take(split, np.flatnonzero(number[split.table['label']] >= 0))
  table = split.table | {'label': number[split.table['label']].astype(np.int32)}
  if 'distribution' in table:
    onto = (number[:, None] == np.arange(len(classes))).astype(np.float32)
    shares = table['distribution'] @ onto
    total = shares.sum(1, keepdims=True)
    one_hot = np.eye(len(classes), dtype=np.float32)[table['label']]
    table['distribution'] = np.where(total > 0, shares / np.maximum(total, 1e-12), one_hot)
  return split._replace(table=table)


def with_rows(splits: Mapping[str, Split], name: str, classes: Sequence[str]) -> dict[str, Split]:
  """The splits that have rows. A warning names the empty ones.

  Raises:
    InputError: no split has a row.
  """
  kept = {key: split for key, split in splits.items() if len(split.rows)}
  if not kept:
    raise InputError(f'no row of {name} is of a class in use: {", ".join(classes)}')
  for key in splits.keys() - kept.keys():
    LOGGER.warning('no row of %s (%s) is of a class in use', name, key)
  return kept


def select_poses(
  splits: Mapping[str, Split], poses: tuple[int, ...], name: str
) -> tuple[dict[str, Split], tuple[int, ...]]:
  """The splits with the column `pose`, and the poses. Rows of other poses are left out.

  Args:
    splits: By name.
    poses: Yaw in degrees, in label order; all poses of the data set when empty.
    name: The data set's.

  Raises:
    InputError: a pose is given twice, or the data set does not have it.
  """
  bins = [split.table['yaw_bin'] for split in splits.values() if 'yaw_bin' in split.table]
  known = tuple(int(pose) for pose in np.unique(np.concatenate(bins))) if bins else ()
  if poses:
    if not known:
      raise InputError(
        f'config.data.poses={poses}: {name} has no poses of its pictures (column yaw_bin)'
      )
    if len(set(poses)) != len(poses):
      raise InputError(f'config.data.poses names a pose twice: {poses}')
    missing = sorted(set(poses) - set(known))
    if missing:
      raise InputError(f'config.data.poses: {name} has no pose {missing[0]}. It has {known}')
  splits = {key: with_pose(split, poses or known) for key, split in splits.items()}
  if poses:
    splits = {
      key: take(split, np.flatnonzero(split.table['pose'] >= 0)) if 'pose' in split.table else split
      for key, split in splits.items()
    }
  return splits, poses or known


def with_pose(split: Split, poses: Sequence[int]) -> Split:
  """The split with the column `pose`, if `yaw_bin` is known: its index in `poses`, or -1."""
  if 'yaw_bin' not in split.table:
    return split
  place = {pose: number for number, pose in enumerate(poses)}
  pose = np.array([place.get(int(yaw), -1) for yaw in split.table['yaw_bin']], np.int32)
  return split._replace(table=split.table | {'pose': pose})


def fold_of_rows(table: Table, folds: int) -> np.ndarray:
  """The fold i[n] in which each row is tested.

  It is the column `fold`. Without it, subjects are numbered in the order of their names, and the
  fold is number % folds.
  """
  if 'fold' in table:
    return table['fold']
  return np.unique(table['subject'], return_inverse=True)[1] % folds


def fold_by_subject(
  splits: Mapping[str, Split], folds: int, fold: int, name: str
) -> Mapping[str, Split]:
  """Train and test of one fold; see `fold_of_rows`. Without folds, the splits are returned
  unchanged.

  Raises:
    InputError: there is no such fold, it has no row or all rows, or there are fewer subjects than
      folds.
  """
  if not 0 <= fold < max(folds, 1):
    text = f'0 to {folds - 1}' if folds else '0, because it has no folds'
    raise InputError(f'config.data.fold={fold}: with this protocol of {name} it must be {text}')
  if not folds:
    return splits
  train = splits['train']
  tested = fold_of_rows(train.table, folds) == fold
  if 'fold' in train.table:
    train = train._replace(table={k: v for k, v in train.table.items() if k != 'fold'})
    if tested.all() or not tested.any():
      rows = 'every row is' if tested.all() else 'no row is'
      raise InputError(f'config.data.fold={fold}: {rows} in this fold of {name}')
  else:
    people = np.unique(train.table['subject'])
    if len(people) < folds:
      raise InputError(f'{name} has {len(people)} subjects, too few for {folds} folds')
  return {
    'train': take(train, np.flatnonzero(~tested)),
    'test': take(train, np.flatnonzero(tested)),
  }


def carve_validation(splits: Mapping[str, Split], fraction: float, seed: int) -> dict[str, Split]:
  """Holds a validation split out of train if there is none.

  Args:
    splits: By name.
    fraction: Share of train's rows, 0..1; 0 for none.
    seed: Seed of the draw.

  Returns:
    The splits with `val`: whole subjects if they are known, else the same share of each class.
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
  """Rows bool[n] of people in random order. A person is taken if the number of rows then is nearer
  to `wanted`, and every class keeps training rows."""
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
  """Checks that no two splits share people. If they may, a warning names the splits.

  Raises:
    InputError: a subject is in two splits and `allow_shared` is False.
  """
  known = {k: np.unique(s.table['subject']) for k, s in splits.items() if 'subject' in s.table}
  for first in known:
    for second in known:
      shared = np.intersect1d(known[first], known[second])
      if first < second and len(shared):
        text = f'{len(shared)} subjects are in both {first} and {second}'
        if not allow_shared:
          raise InputError(
            f'{text}: results would be too good. Make the splits subject-disjoint, or accept it '
            'with --config.data.allow_shared_subjects=True'
          )
        LOGGER.warning('%s (config.data.allow_shared_subjects=True)', text)


def duplicates(splits: Mapping[str, Split]) -> dict[str, int]:
  """{'train/test': n, ...}: numbers of pictures of the second split that are in the first too, byte
  for byte."""
  names = list(splits)
  counts = {}
  for i, first in enumerate(names):
    for second in names[i + 1 :]:
      shared = np.isin(splits[second].table['digest'], splits[first].table['digest']).sum()
      if shared:
        counts[f'{first}/{second}'] = int(shared)
  return counts
