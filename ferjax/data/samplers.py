"""Samplers: pure functions that lay down which rows an epoch visits, and in what order.

A sampler's factory takes its own settings and returns
`plan(epoch, epochs, seed, table, batch) -> {'index': int[steps, batch], ...}` with
steps = rows // batch whatever the sampler, so that step -> epoch is always defined.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ferjax.data import graphs as neighbour_graphs
from ferjax.errors import InputError

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


def neighbour_groups(
  *,
  table: Mapping[str, np.ndarray],
  image_size: int,
  folder: Path,
  graphs: Sequence[str] = ('au', 'landmarks'),
  neighbours: int = 4,
  au_sigma: float = 1.0,
  landmark_sigma: float = 68.0,
) -> Plan:
  """Every row once, as the centre of a group: as `natural`, with its neighbours in each graph.

  The batch counts centres, the examples that pay a loss; `neighbours` int[steps, batch, m] are the
  other rows of each group, and `affinity` f32[steps, batch, m] the a_ij of LDL-ALSG (CVPR 2020),
  equation 3; m = neighbours x graphs.

  Args:
    table: The training rows, of which the graphs are built.
    image_size, folder: See `graphs.make`.
    graphs: Any of `au`, `landmarks`.
    neighbours: How many of each graph.
    au_sigma: sigma of the action units, on their scale of 0..5.
    landmark_sigma: sigma of the landmarks, in pixels of a face at 224 pixels a side.

  Raises:
    InputError: no graph, a number out of range; see `graphs.make`.
  """
  if not graphs or len(set(graphs)) < len(graphs):
    raise InputError(f'config.sampler.graphs={tuple(graphs)}: give one or two different ones')
  if neighbours < 1:
    raise InputError(f'config.sampler.neighbours={neighbours}: at least 1')
  for name, value in {'au_sigma': au_sigma, 'landmark_sigma': landmark_sigma}.items():
    if value <= 0:
      raise InputError(f'config.sampler.{name}={value}: it must be above 0')
  sigmas = {'au': au_sigma, 'landmarks': landmark_sigma}
  made = [
    neighbour_graphs.make(
      table,
      space,
      image_size=image_size,
      neighbours=neighbours,
      sigma=sigmas.get(space, 1.0),
      folder=folder,
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
