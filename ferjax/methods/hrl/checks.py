"""Checks of HRL's settings, `config.method`, before anything is built."""

from collections.abc import Sequence

from ferjax.errors import InputError, choose
from ferjax.methods.hrl.graphs import GRAPHS

BRANCHES = ('lgmp', 'dense', 'none')
OFFSETS = ('landmark', 'pixel')


def names(branch: str, graph: str, offsets: str) -> None:
  """Raises an InputError for a name that does not exist; it suggests the nearest."""
  choose('config.method.branch', branch, BRANCHES)
  choose('config.method.graph', graph, GRAPHS)
  choose('config.method.offsets', offsets, OFFSETS)


def transformation(flip: float, perspective: float) -> None:
  """Raises an InputError for a random transformation that cannot be drawn."""
  if not 0 <= flip <= 1:
    raise InputError(f'config.method.flip={flip} lies outside 0..1')
  if not 0 <= perspective < 2 / 3:
    raise InputError(f'config.method.perspective={perspective}: it must lie within 0..2/3')


def branches(branch: str, naive: bool, groups: int, pool_size: int, widths: Sequence[int]) -> None:
  """Raises an InputError for branches that cannot be built, or none at all."""
  if groups < 1:
    raise InputError(f'config.method.groups={groups}: at least 1')
  if pool_size < 1 or pool_size % 2 == 0:
    raise InputError(f'config.method.pool_size={pool_size}: give an odd number')
  if len(widths) != 2:
    raise InputError(f'config.method.widths={tuple(widths)}: give two, one for each LGMP module')
  if branch == 'none' and not naive:
    raise InputError(
      'nothing is left to predict with: set config.method.naive=True, or config.method.branch to '
      'lgmp or dense'
    )
