"""Samplers: pure functions that choose the rows of an epoch and their order.

The factory of a sampler takes its settings and returns
`plan(epoch, epochs, seed, table, batch) -> {'index': int[steps, batch], ...}`. Every sampler plans
steps = rows // batch, so that the epoch of a step is always defined. The factories named in
`OF_GRAPHS` also get the training rows `table`, the `image_size` and a `folder` for graphs.
"""

import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ferjax.data import graphs as neighbour_graphs
from ferjax.errors import InputError

LOGGER = logging.getLogger(__name__)

ROLES = ('anchor', 'pose_positive', 'pose_negative', 'identity_positive', 'identity_negative')
OF_GRAPHS = ('neighbour_groups',)
MOST_SHUFFLES = 10  # shuffles without a tuple before an error is raised

Plan = Callable[[int, int, int, Mapping[str, np.ndarray], int], dict[str, np.ndarray]]


def _fill(index: np.ndarray, batch: int, steps: int, rng: np.random.Generator) -> np.ndarray:
  """Rows int[m] as int[steps, batch]: cut off, or filled up with new shuffles of the same rows."""
  parts = [index]
  while sum(map(len, parts)) < steps * batch:
    parts.append(rng.permutation(index))
  return np.concatenate(parts)[: steps * batch].reshape(steps, batch)


def natural() -> Plan:
  """Every row once, shuffled; the rows % batch rows that are left out differ in each epoch."""

  def plan(epoch, epochs, seed, table, batch):
    rng = np.random.default_rng((seed, epoch))
    rows = len(table['label'])
    return {'index': _fill(rng.permutation(rows), batch, rows // batch, rng)}

  return plan


def progressively_balanced() -> Plan:
  """Class counts move from natural to uniform: (1 - t) n_c + t N / C, t = epoch / epochs.

  Rows of a class are taken in shuffled rounds: each row is used once before any is used twice.
  Reference: Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition",
  ICLR 2020, equation 3.
  """

  def plan(epoch, epochs, seed, table, batch):
    rng = np.random.default_rng((seed, epoch))
    label = table['label']
    present, natural_counts = np.unique(label, return_counts=True)
    share = epoch / epochs
    wanted = (1 - share) * natural_counts + share * len(label) / len(present)
    edges = np.round(np.cumsum(wanted)).astype(int)
    counts = np.diff(edges, prepend=0)
    rows = []
    for name, count in zip(present, counts, strict=True):
      rows.append(_fill(rng.permutation(np.flatnonzero(label == name)), count, 1, rng)[0])
    index = rng.permutation(np.concatenate(rows))
    return {'index': _fill(index, batch, len(label) // batch, rng)}

  return plan


def five_tuples() -> Plan:
  """Tuples of five rows that are used together.

  These are an anchor; a row with the same label and another pose; one with another label and the
  same pose; one with the same label and another subject; one with another label and the same
  subject.

  In shuffled order, each free row becomes an anchor if four other free rows are found, each the
  first that fits; the five are then no longer free. The share of rows that are used is logged. If
  there are fewer tuples than the plan needs, those of a new shuffle follow.

  Reference: DML-Net (Liu et al., 2021), algorithm 1.

  Returns:
    The plan. Its column `role` i32[steps, batch] is the index into `ROLES`; the five rows of a
    tuple are adjacent. It raises InputError if the batch is not a multiple of five, poses or
    subjects are unknown, or no tuple can be formed.
  """

  def plan(epoch, epochs, seed, table, batch):
    if batch % len(ROLES):
      raise InputError(f'config.batch={batch}: five-tuples need a multiple of {len(ROLES)}')
    for name, column in {'pose': 'yaw_bin', 'subject': 'subject'}.items():
      if name not in table:
        raise InputError(
          f"the sampler five_tuples needs '{name}', which the data set does not have. Add it to a "
          f'manifest (column {column})'
        )
    columns = tuple(table[name].tolist() for name in ('label', 'pose', 'subject'))
    rng = np.random.default_rng((seed, epoch))
    rows = len(table['label'])
    wanted = rows // batch * batch
    found, shuffles = [], 0
    while len(found) < wanted:
      tuples = _form_tuples(rng.permutation(rows).tolist(), *columns)
      shuffles += 1
      if shuffles == 1:
        used = 100 * len(tuples) / rows
        LOGGER.info(
          'epoch %d: five-tuples of %d of %d rows, %.1f %%', epoch, len(tuples), rows, used
        )
      found += tuples
      if not found and shuffles == MOST_SHUFFLES:
        raise InputError(_why_no_tuple(table))
    index = np.array(found[:wanted]).reshape(-1, batch)
    role = np.broadcast_to(np.arange(batch, dtype=np.int32) % len(ROLES), index.shape)
    return {'index': index, 'role': role}

  return plan


def _form_tuples(order, label, pose, subject):
  """Rows of all tuples, one tuple after the other."""
  free = {'label': {}, 'pose': {}, 'subject': {}}  # rows by value, in shuffled order
  columns = {'label': label, 'pose': pose, 'subject': subject}
  for name, pool in free.items():
    for row in order:
      pool.setdefault(columns[name][row], OrderedDict())[row] = None
  same_pose = Counter(zip(label, pose, strict=True))
  same_subject = Counter(zip(label, subject, strict=True))

  def first(pool, column, anchor, chosen):
    """The first row of a pool that differs from the anchor in a column."""
    value = column[anchor]
    return next((row for row in pool if column[row] != value and row not in chosen), None)

  found = []
  for anchor in order:
    key = label[anchor], pose[anchor], subject[anchor]
    by_label, by_pose, by_subject = (
      pool[value] for pool, value in zip(free.values(), key, strict=True)
    )
    if anchor not in by_label:
      continue
    alike, own = same_pose[key[0], key[1]], same_subject[key[0], key[2]]
    # No differing row is left: a search would go through all rows and find none.
    if alike in (len(by_label), len(by_pose)) or own in (len(by_label), len(by_subject)):
      continue
    chosen = [anchor]
    for pool, column in (
      (by_label, pose),
      (by_pose, label),
      (by_label, subject),
      (by_subject, label),
    ):
      chosen.append(first(pool, column, anchor, chosen))
    if None in chosen:
      continue
    for row in chosen:
      for name, pool in free.items():
        del pool[columns[name][row]][row]
      same_pose[label[row], pose[row]] -= 1
      same_subject[label[row], subject[row]] -= 1
    found += chosen
  return found


def _why_no_tuple(table):
  """Labels with a single pose or subject, poses and subjects with a single label."""
  pose = 'yaw_bin' if 'yaw_bin' in table else 'pose'
  parts = []
  for of, varies in (('label', pose), (pose, 'label'), ('label', 'subject'), ('subject', 'label')):
    values = np.unique(table[of])
    counts = [len(np.unique(table[varies][table[of] == value])) for value in values]
    alone = [str(value) for value, count in zip(values, counts, strict=True) if count == 1]
    if alone:
      shown = ', '.join(alone[:5]) + (' ...' if len(alone) > 5 else '')
      parts.append(f'{len(alone)} of {len(values)} values of `{of}` have one {varies} ({shown})')
  return (
    'no five-tuple can be formed: an anchor needs rows of its label with another pose and another '
    f'subject, and rows of its pose and of its subject with another label. '
    f'{"; ".join(parts) or "There are too few rows"}'
  )


def neighbour_groups(
  *,
  table: Mapping[str, np.ndarray],
  image_size: int,
  folder: Path,
  graphs: Sequence[str] = ('au', 'landmarks'),
  neighbours: int = 4,
  au_sigma: float = 1.0,
  landmark_sigma: float = 68.0,
  landmark_alignment: str = 'procrustes',
) -> Plan:
  """Groups of a row and its neighbours in each graph. Each row is once a centre, as in `natural`.

  The batch size is the number of centres, the examples that have a loss. `neighbours`
  int[steps, batch, m] are the other rows of each group, and `affinity` f32[steps, batch, m] the
  a_ij of LDL-ALSG (CVPR 2020), equation 3; m = neighbours x graphs.

  Args:
    table: The training rows, from which the graphs are built.
    image_size, folder: See `graphs.make`.
    graphs: Any of `au`, `landmarks`.
    neighbours: Number of neighbours in each graph.
    au_sigma: sigma of the action units, on their scale of 0..5.
    landmark_sigma: sigma of the landmarks, in pixels of a picture of 224x224.
    landmark_alignment: `procrustes`, which leaves the shape of the face only, or `none`; see
      `graphs.coordinates`.

  Raises:
    InputError: there is no graph, or a number is out of range; see also `graphs.make`.
  """
  if isinstance(graphs, str):
    raise InputError(f"config.sampler.graphs='{graphs}': give a tuple, such as ('{graphs}',)")
  if not graphs or len(set(graphs)) < len(graphs):
    raise InputError(f'config.sampler.graphs={tuple(graphs)}: give one or two different ones')
  if neighbours < 1:
    raise InputError(f'config.sampler.neighbours={neighbours}: it must be at least 1')
  for name, value in {'au_sigma': au_sigma, 'landmark_sigma': landmark_sigma}.items():
    if not 0 < value < math.inf:
      raise InputError(f'config.sampler.{name}={value}: it must be a number above 0')
  for space in graphs:
    neighbour_graphs.coordinates(table, space, image_size, landmark_alignment)
  sigmas = {'au': au_sigma, 'landmarks': landmark_sigma}
  made = [
    neighbour_graphs.make(
      table,
      space,
      image_size=image_size,
      neighbours=neighbours,
      sigma=sigmas.get(space, 1.0),
      folder=folder,
      landmark_alignment=landmark_alignment,
    )
    for space in graphs
  ]
  index = np.concatenate([graph.index for graph in made], 1)
  affinity = np.concatenate([graph.affinity for graph in made], 1)
  centres = natural()

  def plan(epoch, epochs, seed, table, batch):
    rows = centres(epoch, epochs, seed, table, batch)['index']
    return {'index': rows, 'neighbours': index[rows], 'affinity': affinity[rows]}

  return plan


def p_by_k(*, k: int = 32) -> Plan:
  """Batches of P = batch // k groups with k rows each.

  Groups are the classes, or the sub-classes if the table has a column `subclass`. If there are P
  groups, each is in every batch. If there are more, they take turns in shuffled rounds. If there
  are fewer, each is in a batch as often as the others, or once more. The rows of a group are also
  taken in shuffled rounds. Groups with fewer rows than places in a batch are drawn with
  replacement, and are logged.

  Reference: Hermans et al., "In Defense of the Triplet Loss for Person Re-Identification", 2017.

  Args:
    k: Rows of a group, at least 1.

  Returns:
    The plan. It raises InputError if the batch is not a multiple of k, or holds one group only.

  Raises:
    InputError: k is below 1.
  """
  if k < 1:
    raise InputError(f'config.sampler.k={k}: it must be at least 1')

  def plan(epoch, epochs, seed, table, batch):
    if batch % k or batch < 2 * k:
      nearest = [str(size) for size in {batch // k * k, batch // k * k + k} if size >= 2 * k]
      raise InputError(
        f'config.batch={batch} does not hold two or more groups of config.sampler.k={k} rows; the '
        f'nearest batch sizes that do: {" and ".join(sorted(nearest, key=int)) or 2 * k}'
      )
    column = 'subclass' if 'subclass' in table else 'label'
    rng = np.random.default_rng((seed, epoch))
    steps = len(table[column]) // batch
    groups, place = np.unique(table[column], return_inverse=True)
    rows = [np.flatnonzero(place == group) for group in range(len(groups))]
    every = np.arange(len(groups))
    rounds, others = divmod(batch // k, len(groups))
    most = k * (rounds + bool(others))
    few = [f'{groups[i]} ({len(found)} rows)' for i, found in enumerate(rows) if len(found) < most]
    if few:
      LOGGER.info(
        'epoch %d: drawn with replacement, having fewer than %d rows: %s %s',
        epoch,
        most,
        column,
        ', '.join(few),
      )
    waiting, rest = every[:0], [found[:0] for found in rows]
    index = []
    for _ in range(steps):
      taken, waiting = _draw(every, waiting, others, rng)
      places = rounds + np.isin(every, taken)
      for group in np.flatnonzero(places):
        drawn, rest[group] = _draw(rows[group], rest[group], k * places[group], rng)
        index.append(drawn)
    return {'index': np.concatenate(index).reshape(steps, batch)}

  return plan


def _draw(rows, rest, count, rng):
  """`count` rows, and the rest of the shuffled round `rest`. No row twice if there are enough."""
  if len(rows) < count:
    return rng.choice(rows, count), rest
  if len(rest) < count:
    fresh = rng.permutation(rows)
    late = np.isin(fresh, rest)
    rest = np.concatenate([rest, fresh[~late], fresh[late]])
  return rest[:count], rest[count:]
