"""Samplers: pure functions that lay down which rows an epoch visits, and in what order.

A sampler's factory takes its own settings and returns
`plan(epoch, epochs, seed, table, batch) -> {'index': int[steps, batch], ...}` with
steps = rows // batch whatever the sampler, so that step -> epoch is always defined.
"""

import logging
from collections.abc import Callable, Mapping

import numpy as np

from ferjax.errors import InputError

LOGGER = logging.getLogger(__name__)

Plan = Callable[[int, int, int, Mapping[str, np.ndarray], int], dict[str, np.ndarray]]


def _fill(index: np.ndarray, batch: int, steps: int, rng: np.random.Generator) -> np.ndarray:
  """Cuts rows int[m] to int[steps, batch], refilled by fresh shuffles of themselves when short."""
  parts = [index]
  while sum(map(len, parts)) < steps * batch:
    parts.append(rng.permutation(index))
  return np.concatenate(parts)[: steps * batch].reshape(steps, batch)


def natural() -> Plan:
  """Every row once, shuffled; the remainder rows // batch leaves out differs with each epoch."""

  def plan(epoch, epochs, seed, table, batch):
    rng = np.random.default_rng((seed, epoch))
    rows = len(table['label'])
    return {'index': _fill(rng.permutation(rows), batch, rows // batch, rng)}

  return plan


def progressively_balanced() -> Plan:
  """Class counts move from natural to uniform: (1 - t) n_c + t N / C, t = epoch / epochs.

  Rows of a class are taken in shuffled rounds, so none comes twice before each came once.
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


def p_by_k(*, k: int = 32) -> Plan:
  """Batches of P = batch // k groups with k rows each.

  Groups are the classes, or the sub-classes where the table has a column `subclass`. With P groups
  each is in every batch; with more they take turns, in shuffled rounds; with fewer each stands in a
  batch as often as the others, or once more. A group's rows come in shuffled rounds too; a group
  with fewer than k rows is drawn with replacement, which is logged. Reference: Hermans et al., "In
  Defense of the Triplet Loss for Person Re-Identification", 2017.

  Args:
    k: Rows of a group, at least 1.

  Returns:
    The plan. It raises InputError where the batch is no multiple of k, or has room for one group.

  Raises:
    InputError: k is below 1.
  """
  if k < 1:
    raise InputError(f'config.sampler.k={k}: at least 1')

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
    few = [f'{groups[i]} ({len(found)} rows)' for i, found in enumerate(rows) if len(found) < k]
    if few:
      LOGGER.info(
        'epoch %d: drawn with replacement, having fewer than %d rows: %s %s',
        epoch,
        k,
        column,
        ', '.join(few),
      )
    every = np.arange(len(groups))
    rounds, others = divmod(batch // k, len(groups))
    waiting, rest = every[:0], [found[:0] for found in rows]
    index = []
    for _ in range(steps):
      taken, waiting = _draw(every, waiting, others, rng)
      for group in (*np.tile(every, rounds), *taken):
        drawn, rest[group] = _draw(rows[group], rest[group], k, rng)
        index.append(drawn)
    return {'index': np.reshape(index, (steps, batch))}

  return plan


def _draw(rows, rest, count, rng):
  """`count` rows, and what is left of the shuffled round `rest`; none twice if there are enough."""
  if len(rows) < count:
    return rng.choice(rows, count), rest
  if len(rest) < count:
    fresh = rng.permutation(rows)
    late = np.isin(fresh, rest)
    rest = np.concatenate([rest, fresh[~late], fresh[late]])
  return rest[:count], rest[count:]
