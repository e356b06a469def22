"""Samplers: pure functions that lay down which rows an epoch visits, and in what order.

A sampler's factory takes its own settings and returns
`plan(epoch, epochs, seed, table, batch) -> {'index': int[steps, batch], ...}` with
steps = rows // batch whatever the sampler, so that step -> epoch is always defined.
"""

from collections.abc import Callable, Mapping

import numpy as np

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
